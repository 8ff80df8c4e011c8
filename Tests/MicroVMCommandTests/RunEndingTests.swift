import Foundation
import Testing

@Suite(.timeLimit(.minutes(2)))
struct RunEndingTests {
    @Test(.requiresKVM)
    func `a fault is reported with kind, address, access, place and registers`() async throws {
        let run = try await CommandRun.microvm("run", CommandRun.guest("faults"), "write_address", "u64:0x40", "u64:1")
        #expect(run.status == 139)
        #expect(run.outputText == "")
        #expect(run.error.contains("Illegal memory access"))
        #expect(run.error.contains("address  0x40"))
        #expect(run.error.contains("access   write"))
        #expect(run.error.contains("at       write_address"))
        #expect(run.error.contains("rdi    0000000000000040"))
    }

    @Test(.requiresKVM)
    func `a fault is an object in JSON`() async throws {
        let run = try await CommandRun.microvm("run", CommandRun.guest("faults"), "read_address", "u64:64", "--json")
        #expect(run.status == 139)
        #expect(run.error == "")
        let json = try run.json()
        #expect(json["outcome"] as? String == "fault")
        #expect(json["exitStatus"] as? Int == 139)
        let fault = try #require(json["fault"] as? [String: Any])
        #expect(fault["kind"] as? String == "memoryAccess")
        #expect(fault["address"] as? String == "0x40")
        #expect(fault["access"] as? String == "read")
        #expect(fault["vector"] as? Int == 14)
        #expect((fault["symbol"] as? [String: Any])?["name"] as? String == "read_address")
        #expect((fault["registers"] as? [String: String])?["rdi"] == "0x40")
    }

    @Test(.requiresKVM)
    func `a fault while initialising is a fault`() async throws {
        let run = try await CommandRun.microvm("run", CommandRun.guest("fault_in_initializer"), "answer")
        #expect(run.status == 134)
        #expect(run.error.hasPrefix("Guest abort: the initializer gave up\n"))
    }

    @Test(.requiresKVM)
    func `an abort has a status of its own, and its message cannot write to the terminal`() async throws {
        let arguments = ["run", CommandRun.guest("faults"), "abort_with_message", "string:bad\u{1b}[2Jnews\n"]
        let run = try await CommandRun.microvm(arguments)
        #expect(run.status == 134)
        #expect(run.error.hasPrefix("Guest abort: bad\\u{1B}[2Jnews\\n\n"))
        let json = try await CommandRun.microvm(arguments + ["--json"]).json()
        #expect(json["outcome"] as? String == "abort")
        #expect((json["fault"] as? [String: Any])?["message"] as? String == "bad\u{1b}[2Jnews\n")
    }

    @Test(.requiresKVM, arguments: [("spin", "spin"), ("spin_in_initializer", "answer")])
    func `a time limit ends calls and initialisers`(guest: String, function: String) async throws {
        let arguments = ["run", CommandRun.guest(guest), function, "--time-limit", "150ms"]
        let run = try await CommandRun.microvm(arguments)
        #expect(run.status == 124)
        #expect(run.error.hasPrefix("Time limit exceeded after "))
        #expect(run.error.contains(", at spin"))
        #expect(run.duration > .milliseconds(150) && run.duration < .seconds(20))
        let json = try await CommandRun.microvm(arguments + ["--json"]).json()
        #expect(json["outcome"] as? String == "timeLimitExceeded")
        #expect(json["exitStatus"] as? Int == 124)
        #expect(try #require(json["durationMicroseconds"] as? Double) >= 150_000)
        #expect((json["interruption"] as? [String: Any])?["symbol"] != nil)
    }

    @Test(.requiresKVM, arguments: [("spin", "spin"), ("spin_in_initializer", "answer")])
    func `a CPU limit ends calls and initialisers, and the report tells it from a time limit`(
        guest: String,
        function: String
    ) async throws {
        let arguments = [
            "run", CommandRun.guest(guest), function, "--cpu-limit", "150ms", "--time-limit", "10min", "--stats",
        ]
        let run = try await CommandRun.microvm(arguments)
        #expect(run.status == 124)
        #expect(run.error.hasPrefix("CPU limit exceeded after "))
        #expect(run.error.contains(", at spin"))
        let json = try await CommandRun.microvm(arguments + ["--json"]).json()
        #expect(json["outcome"] as? String == "cpuTimeLimitExceeded")
        #expect(json["exitStatus"] as? Int == 124)
        #expect((json["interruption"] as? [String: Any])?["symbol"] != nil)
        let statistics = try #require(json["statistics"] as? [String: Any])
        #expect(try #require(statistics["cpuTimeMicroseconds"] as? Double) >= 150_000)
        // The other way round.
        let limits = ["--cpu-limit", "10min", "--time-limit", "150ms"]
        let other = try await CommandRun.microvm(Array(arguments.prefix(3)) + limits)
        #expect(other.status == 124)
        #expect(other.error.hasPrefix("Time limit exceeded after "))
    }

    @Test(
        .requiresKVM,
        arguments: [
            ("hello", ["hello", "--returns", "void"], 0, 1), ("spin", ["answer"], 0, 0),
            ("spin", ["spin", "--time-limit", "50ms"], 124, 0), ("faults", ["divide_by_zero"], 139, 0),
            ("faults", ["abort_with_message", "string:no"], 134, 1), ("fault_in_initializer", ["answer"], 134, 1),
        ]
    )
    func `statistics come however the call has ended`(
        guest: String,
        call: [String],
        status: Int32,
        hostCalls: Int
    ) async throws {
        let arguments = ["run", CommandRun.guest(guest)] + call
        let run = try await CommandRun.microvm(arguments + ["--stats"])
        #expect(run.status == status)
        let lines = run.error.split(separator: "\n")
        let first = try #require(lines.firstIndex(of: "Statistics"))
        let names = ["duration", "stopped", "CPU time", "exits", "host calls", "nested calls", "debug interrupts"]
        #expect(lines[(first + 1)...].count == names.count)
        for (line, name) in zip(lines[(first + 1)...], names) { #expect(line.hasPrefix("  \(name) ")) }
        #expect(lines.contains("  host calls        \(hostCalls)"))

        let json = try await CommandRun.microvm(arguments + ["--stats", "--json"])
        #expect(!json.error.contains("Statistics"))
        let statistics = try #require(try json.json()["statistics"] as? [String: Any])
        #expect(statistics["hostCalls"] as? Int == hostCalls)
        #expect(statistics["nestedCalls"] as? Int == 0)
        #expect(statistics["debugInterrupts"] as? Int == 0)
        #expect(statistics["stoppedMicroseconds"] as? Double == 0)
        #expect(try #require(statistics["exits"] as? Int) >= max(1, hostCalls))
        #expect(try #require(statistics["durationMicroseconds"] as? Double) > 0)
        #expect(try #require(statistics["cpuTimeMicroseconds"] as? Double) > 0)
    }

    @Test(.requiresKVM)
    func `statistics come only where they are asked for, and where there was a call`() async throws {
        let run = try await CommandRun.microvm("run", CommandRun.guest("spin"), "answer", "--json")
        #expect(try run.json()["statistics"] == nil)
        #expect(run.error == "")
        let none = try await CommandRun.microvm("run", CommandRun.guest("spin"), "no_such_function", "--stats")
        #expect(none.status == 65)
        #expect(!none.error.contains("Statistics"))
    }

    @Test(.requiresKVM)
    func `text that is not UTF-8 and spans that are not the guest's are refused`() async throws {
        let text = try await CommandRun.microvm("run", CommandRun.guest("echo"), "not_utf8", "--returns", "string")
        #expect(text.status == 65)
        #expect(text.error.contains("not valid UTF-8"))
        let span = try await CommandRun.microvm(
            "run",
            CommandRun.guest("echo"),
            "null_span_with_length",
            "--returns",
            "bytes",
            "--json"
        )
        #expect(span.status == 65)
        #expect((try span.json()["error"] as? [String: Any])?["code"] as? String == "invalidResult")
    }

    @Test func `all missing imports are named at once`() async throws {
        let run = try await CommandRun.microvm("run", CommandRun.guest("missing_import"), "use_both", "i64:1")
        #expect(run.status == 65)
        #expect(run.error.contains("first_missing_function, second_missing_function"))
    }

    @Test func `an unknown function is answered with near names`() async throws {
        let run = try await CommandRun.microvm("run", CommandRun.guest("faults"), "red_null")
        #expect(run.status == 65)
        #expect(run.error.contains("Did you mean read_null?"))
        let json = try await CommandRun.microvm("run", CommandRun.guest("faults"), "red_null", "--json").json()
        #expect(json["outcome"] as? String == "error")
        #expect((json["error"] as? [String: Any])?["code"] as? String == "unknownExport")
    }

    @Test(arguments: ["/etc/passwd", "/nonexistent.so", "/dev/null", "/"])
    func `what is no module is refused`(path: String) async throws {
        let run = try await CommandRun.microvm("run", path, "answer")
        #expect(run.status == 65)
        #expect(run.error.hasPrefix("Error: The module "))
    }

    @Test(
        arguments: [
            (["i8:128"], "128 is out of range for i8, which reaches from -128 to 127"),
            (["u8:-1"], "-1 is out of range for u8"),
            (["i64:two"], "“two” is not a whole number"),
            (["i65:2"], "“i65” is not a type; there are i8"),
            (["2"], "“2” has no type"),
            (["-2"], "-2"),
            (["bool:yes"], "neither true nor false"),
            (["stdin:", "stdin:"], "only once"),
            (["--returns", "i7"], "“i7” is not a type"),
            (["--time-limit", "5"], "has no unit"),
            (["--cpu-limit", "0s"], "is no time at all"),
            (["--memory", "64Mib"], "“Mib” is not a unit"),
            (["--memory", "1MiB"], "--memory 1MiB is too little"),
            (["--stack", "1B"], "--stack 1B is not between"),
            (["file:/nonexistent"], "/nonexistent cannot be read: No such file or directory"),
            (["file:/dev/zero", "--memory", "8MiB"], "larger than 8MiB"),
            (["--unknown"], "Unknown option"),
        ]
    )
    func `wrong usage is refused before anything runs`(arguments: [String], message: String) async throws {
        let run = try await CommandRun.microvm(["run", CommandRun.guest("hello"), "hello"] + arguments)
        #expect(run.status == 64)
        #expect(run.error.contains(message))
        #expect(run.outputText == "")
    }

    @Test(.enabled(if: nobodyMayNotOpenKVM, "This test needs a user who may not open /dev/kvm."))
    func `without KVM the status says so, and doctor says what to do`() async throws {
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", CommandRun.executable.path]
        let run = try await CommandRun.microvm(
            nobody + ["run", CommandRun.guest("hello"), "answer"],
            program: "/usr/bin/setpriv"
        )
        #expect(run.status == 69)
        #expect(run.error.contains("/dev/kvm"))
        let tests = try await CommandRun.microvm(
            nobody + ["test", CommandRun.guest("setup_skips_tests")],
            program: "/usr/bin/setpriv"
        )
        #expect(tests.status == 69)
        #expect(tests.error.contains("/dev/kvm"))
        let doctor = try await CommandRun.microvm(nobody + ["doctor"], program: "/usr/bin/setpriv")
        #expect(doctor.status == 69)
        #expect(doctor.outputText.contains("usermod -aG kvm"))
        let json = try await CommandRun.microvm(nobody + ["doctor", "--json"], program: "/usr/bin/setpriv").json()
        #expect(json["isReady"] as? Bool == false)
        #expect((json["device"] as? [String: Any])?["opens"] as? Bool == false)
    }
}

/// Whether another user can be had who runs the executable but may not open the device.
private let nobodyMayNotOpenKVM: Bool = {
    let process = Process()
    process.executableURL = URL(filePath: "/bin/sh")
    let check = "test -e /dev/kvm && test -x '\(CommandRun.executable.path)' && test -r '\(CommandRun.guest("hello"))'"
    process.arguments = [
        "-c",
        "setpriv --reuid=65534 --regid=65534 --clear-groups sh -c \"\(check) && ! test -w /dev/kvm\" 2>/dev/null",
    ]
    guard (try? process.run()) != nil else { return false }
    process.waitUntilExit()
    return process.terminationStatus == 0
}()
