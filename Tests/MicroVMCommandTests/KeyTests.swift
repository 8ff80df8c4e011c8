import Foundation
import Glibc
import Testing

@Suite(.requiresKVM, .timeLimit(.minutes(5)))
struct KeyTests {
    private static let keys = "Keys: k kill, s stop, c continue, ? where it is."

    // MARK: - Keys

    @Test func `k kills the guest, and the report says where it was`() async throws {
        let run = try TerminalRun("run", CommandRun.guest("spin"), "spin", "--returns", "void")
        try await run.wait(for: Self.keys)
        #expect(run.mode.isForKeys)
        run.type("k")
        #expect(try await run.end() == 130)
        #expect(run.text.contains("Killed after "))
        #expect(run.text.contains(", at spin"))
        #expect(run.mode == run.modeBefore)
        // Keys are not echoed.
        #expect(!run.text.contains("kKilled"))
    }

    @Test func `k kills an initialiser, and one key explains where it is`() async throws {
        let run = try TerminalRun("run", CommandRun.guest("spin_in_initializer"), "answer", "--json")
        try await run.wait(for: Self.keys)
        let place = try await run.place("Running, at ")
        #expect(place.contains("spin_while_loading"))
        run.type("k")
        #expect(try await run.end() == 130)
        let json = try #require(try JSONSerialization.jsonObject(with: run.output) as? [String: Any])
        #expect(json["outcome"] as? String == "killed")
        #expect(json["exitStatus"] as? Int == 130)
        let symbol = (json["interruption"] as? [String: Any])?["symbol"] as? [String: Any]
        #expect(symbol?["name"] as? String == "spin_while_loading")
        #expect(run.mode == run.modeBefore)
    }

    @Test func `a guest that is stopped stands still, and goes on when it is told to`() async throws {
        let run = try TerminalRun("run", CommandRun.guest("spin"), "spin_and_count", "--returns", "void")
        try await run.wait(for: Self.keys)
        try await run.place("Running, at spin_and_count")
        try await run.type("c", answer: "Not stopped.")
        try await run.type("s", answer: "Stopped; c continues.")
        try await run.type("s", answer: "Stopped already.")
        let first = try await run.place("Stopped, at spin_and_count")
        let second = try await run.place("Stopped, at spin_and_count")
        // The CPU time is that of the thread, which has answered in between.
        let place = { (line: String) in line.components(separatedBy: ", CPU time")[0] }
        #expect(place(first) == place(second))
        #expect(first.contains(", call depth 0, CPU time "))
        try await run.type("c", answer: "Continued.")
        try await run.place("Running, at spin_and_count")
        run.type("k")
        #expect(try await run.end() == 130)
        #expect(run.mode == run.modeBefore)
    }

    @Test func `a stop ends by a kill as well, and the other way round nothing else happens`() async throws {
        let run = try TerminalRun("run", CommandRun.guest("spin"), "spin_with_host_calls", "--returns", "void")
        try await run.wait(for: Self.keys)
        try await run.place("Running")
        // All that are no keys of the command's are passed over.
        run.type("x\n\u{4}\u{1b}[A")
        try await run.type("s", answer: "Stopped; c continues.")
        try await run.place("Stopped, at spin_with_host_calls")
        run.type("k?sc")
        #expect(try await run.end() == 130)
        #expect(run.text.contains("Killed after "))
    }

    @Test func `a stop holds the time limit`() async throws {
        let seconds = isEmulated ? 30.0 : 4
        let run = try TerminalRun(
            "run",
            CommandRun.guest("spin"),
            "spin",
            "--returns",
            "void",
            "--time-limit",
            "\(seconds)s",
            "--stats",
            "--json"
        )
        // It waits in the terminal for the command to listen.
        try await run.type("s", answer: "Stopped; c continues.")
        // Before the call begins the answer is another one.
        try await run.wait(until: "the call's beginning") {
            run.type("?")
            return run.text.contains("Stopped, at spin")
        }
        try await Task.sleep(for: .milliseconds(300))
        try await run.type("c", answer: "Continued.")
        #expect(try await run.end() == 124)
        let json = try #require(try JSONSerialization.jsonObject(with: run.output) as? [String: Any])
        #expect(json["outcome"] as? String == "timeLimitExceeded")
        let statistics = try #require(json["statistics"] as? [String: Any])
        let duration = try #require(statistics["durationMicroseconds"] as? Double)
        let stopped = try #require(statistics["stoppedMicroseconds"] as? Double)
        #expect(stopped >= 300_000)
        // What both count is the moment in which the clock is held.
        #expect(duration - stopped >= seconds * 1e6 - 50_000)
    }

    // MARK: - Ends

    @Test(
        arguments: [
            ("spin", "spin", "\u{3}", 130), ("spin", "spin", "\u{1c}", 131),
            ("spin_in_initializer", "answer", "\u{3}", 130),
        ]
    )
    func `keys of the terminal's own do what they always do`(
        guest: String,
        function: String,
        key: String,
        status: Int32
    ) async throws {
        let run = try TerminalRun(
            "run",
            CommandRun.guest(guest),
            function,
            "--returns",
            "void"
        )
        try await run.wait(for: Self.keys)
        #expect(run.mode != run.modeBefore)
        run.type(key)
        #expect(try await run.end() == status)
        #expect(run.mode == run.modeBefore)
    }

    @Test(arguments: [(SIGTERM, 130 as Int32), (SIGHUP, 128 + SIGHUP), (SIGQUIT, 128 + SIGQUIT)])
    func `a signal that ends the command leaves the terminal as it was`(signal: Int32, status: Int32) async throws {
        let run = try TerminalRun(
            "run",
            CommandRun.guest("spin"),
            "spin",
            "--returns",
            "void"
        )
        try await run.wait(until: "the terminal's mode") { run.mode.isForKeys }
        run.send(signal)
        #expect(try await run.end() == status)
        #expect(run.mode == run.modeBefore)
    }

    @Test func `every other end leaves the terminal as it was`() async throws {
        let spin = CommandRun.guest("spin")
        let runs: [([String], Int32)] = [
            (["run", spin, "answer"], 0),
            (["run", spin, "iterate", "i64:1000000000"], 0),
            (["run", spin, "no_such_function"], 65),
            (["run", spin, "spin", "--time-limit", "1500ms"], 124),
            (["run", CommandRun.guest("faults"), "divide_by_zero"], 139),
            (["run", CommandRun.guest("faults"), "abort_with_message", "string:no"], 134),
        ]
        for (arguments, status) in runs {
            let run = try TerminalRun(arguments)
            #expect(try await run.end() == status)
            #expect(run.mode == run.modeBefore)
        }
    }

    @Test func `the second signal leaves the terminal as it was, whatever the command waits for`() async throws {
        // Nobody reads the guest's output, so that the host call does not return.
        let run = try TerminalRun(
            "run",
            CommandRun.guest("spin"),
            "spin_with_output",
            "--returns",
            "void",
            script: "fifo=$(mktemp -u); mkfifo $fifo; exec 1<>$fifo; rm $fifo; exec \"$@\""
        )
        try await run.wait(for: Self.keys)
        // Two that are pending at the same time are one.
        for _ in 0..<50 where run.isUnderWay {
            run.type("\u{3}")
            try await Task.sleep(for: .milliseconds(200))
        }
        #expect(try await run.end() == 128 + SIGINT)
        #expect(run.mode == run.modeBefore)
    }

    // MARK: - Shells

    @Test func `a suspended command leaves the terminal as it was until it continues`() async throws {
        let run = try TerminalRun(
            "run",
            CommandRun.guest("spin"),
            "spin",
            "--returns",
            "void",
            script: "set -m; \"$@\"; echo suspended $? >&2; read line; fg >&2; echo ended $? >&2"
        )
        try await run.wait(for: Self.keys)
        #expect(run.mode.isForKeys)
        run.type("\u{1a}")
        try await run.wait(for: "suspended 148")
        #expect(run.mode == run.modeBefore)
        run.type("\n")
        try await run.wait(until: "the terminal's mode") { run.mode.isForKeys }
        try await run.place("Running, at spin")
        run.type("k")
        try await run.wait(for: "ended 130")
        #expect(try await run.end() == 0)
        #expect(run.mode == run.modeBefore)
    }

    @Test func `in the background the terminal is left alone, until the command comes to the front`() async throws {
        let run = try TerminalRun(
            "run",
            CommandRun.guest("spin"),
            "spin",
            "--returns",
            "void",
            script: """
                set -m; "$1" run "$3" answer >&2 & wait; echo waited $? >&2
                "$@" & read line; echo read $line >&2; fg >&2; echo ended $? >&2
                """
        )
        try await run.wait(for: "42")
        try await run.wait(for: "waited 0")
        // The line is the shell's to read, whatever keys it consists of.
        run.type("ks?\n")
        try await run.wait(for: "read ks?")
        try await run.wait(for: Self.keys)
        #expect(run.mode.isForKeys)
        run.type("k")
        try await run.wait(for: "Killed after ")
        try await run.wait(for: "ended 130")
        #expect(try await run.end() == 0)
        #expect(run.mode == run.modeBefore)
    }

    // MARK: - No keys

    @Test func `standard input that is not a terminal has no keys`() async throws {
        let run = try await CommandRun.microvm(
            ["run", CommandRun.guest("spin"), "spin", "--returns", "void", "--time-limit", "1500ms"],
            input: Data("k?s".utf8)
        )
        #expect(run.status == 124)
        #expect(run.error.hasPrefix("Time limit exceeded after "))
        #expect(!run.error.contains("Keys"))
    }

    @Test func `standard input that is the guest's has no keys`() async throws {
        let run = try TerminalRun("run", CommandRun.guest("echo"), "byte_length", "stdin:")
        // A line, and the end of the input.
        run.type("k?\n\u{4}")
        #expect(try await run.end() == 0)
        #expect(try String(decoding: run.output, as: UTF8.self) == "3\n")
        #expect(run.mode == run.modeBefore)
    }

    @Test func `keys are not explained where nobody would read it`() async throws {
        let run = try TerminalRun(
            "run",
            CommandRun.guest("spin"),
            "spin",
            "--returns",
            "void",
            script: "exec \"$@\" 2>/dev/null"
        )
        try await run.wait(until: "the terminal's mode") { run.mode.isForKeys }
        run.type("k")
        #expect(try await run.end() == 130)
        #expect(run.text == "")
        #expect(run.mode == run.modeBefore)
    }
}

/// Whether the processor is emulated, and so everything much slower.
let isEmulated = ProcessInfo.processInfo.environment["MICROVM_EMULATED"] == "1"
