import Foundation
import Testing

/// `microvm test` and the people in front of it.
@Suite(.requiresKVM, .timeLimit(.minutes(5)))
struct TestProgressTests {
    private static let line = "\r\u{1b}[K"

    @Test func `a terminal has a line that tells how far it is, and nothing of it stays`() async throws {
        let run = try TerminalRun(
            "test",
            CommandRun.guest("outcomes"),
            "--filter",
            "test_passes|seven|leaks",
            "--parallel",
            "1"
        )
        #expect(try await run.end() == 1)
        #expect(run.text.hasPrefix("\(Self.line)[0/3] outcomes/test_passes\(Self.line)"))
        #expect(run.text.contains("\(Self.line)[2/3] 1 failed, outcomes/test_leaks\(Self.line)"))
        #expect(run.text.hasSuffix(Self.line))
        // Standard output is a file, and as it always is.
        let lines = String(decoding: try run.output, as: UTF8.self).split(separator: "\n")
        #expect(lines.last == "2 passed, 1 failed, 0 skipped")
        #expect(lines.count { $0.hasPrefix("PASS   ") } == 2)
    }

    @Test func `on a terminal tests that pass are only counted`() async throws {
        let run = try TerminalRun(
            "test",
            CommandRun.guest("outcomes"),
            "--filter",
            "test_passes|seven|leaks",
            script: "exec \"$@\" >&2"
        )
        #expect(try await run.end() == 1)
        #expect(!run.text.contains("PASS"))
        #expect(run.text.contains("\(Self.line)FAIL   outcomes/test_returns_seven"))
        #expect(run.text.hasSuffix("2 passed, 1 failed, 0 skipped\n"))
    }

    @Test func `the line fits, whatever the test is called`() async throws {
        let run = try TerminalRun("test", CommandRun.guest("hostile_tests"), "--parallel", "1")
        #expect(try await run.end() == 1)
        for line in run.text.components(separatedBy: Self.line) {
            #expect(line.count < 80)
            #expect(line.unicodeScalars.allSatisfy { (" "..."~").contains($0) })
        }
    }

    @Test func `Ctrl-C ends the tests that run, and what is known is reported`() async throws {
        let report = FileManager.default.temporaryDirectory.appending(path: "microvm-report-\(UUID().uuidString).xml")
        defer { try? FileManager.default.removeItem(at: report) }
        let run = try TerminalRun(
            "test",
            CommandRun.guest("outcomes"),
            "--filter",
            "test_passes|test_returns_seven|test_hangs$|leaks",
            "--parallel",
            "1",
            "--time-limit",
            "1h",
            "--junit",
            report.path
        )
        try await run.wait(until: "the test that hangs") { run.text.contains("[2/4] 1 failed, outcomes/test_hangs") }
        run.type("\u{3}")
        #expect(try await run.end() == 130)
        let lines = String(decoding: try run.output, as: UTF8.self).split(separator: "\n")
        #expect(lines.suffix(2) == ["Interrupted.", "1 passed, 1 failed, 0 skipped, 2 not run"])
        let root = try XMLElement.parse(Data(contentsOf: report))
        JUnitSchema.check(root)
        #expect(root.number("tests") == 2)
    }

    @Test(arguments: [(SIGINT, "outcomes"), (SIGTERM, "outcomes"), (SIGINT, "setup_hangs_tests")])
    func `a signal ends several tests at once, and initialisers`(signal: Int32, guest: String) async throws {
        let run = try await CommandRun.microvm(
            ["--default-signal=INT,TERM", CommandRun.executable.path, "test", CommandRun.guest(guest)]
                + ["--filter", "hangs", "--parallel", "2", "--time-limit", "1h"],
            program: "/usr/bin/env"
        ) { process in
            wait { process.runsGuest }
            kill(process, signal)
        }
        #expect(run.status == 130)
        #expect(run.outputText == "Interrupted.\n0 passed, 0 failed, 0 skipped, 2 not run\n")
    }
}
