import Foundation
import Testing

/// `microvm run --gdb`.
@Suite(.timeLimit(.minutes(5))) struct DebuggerTests {
    private static let gdb = "/usr/bin/gdb"

    private func temporaryPath() -> String {
        FileManager.default.temporaryDirectory.appending(path: "microvm-\(UUID().uuidString.prefix(8))").path
    }

    @Test(.requiresKVM, .enabled(if: FileManager.default.isExecutableFile(atPath: gdb), "This test needs gdb."))
    func `GDB attaches to a run that waits for it, changes an argument, and sees the end`() async throws {
        let socket = temporaryPath()
        let output = temporaryPath()
        defer { try? FileManager.default.removeItem(atPath: output) }
        let commands = [
            "target remote \(socket)", "break measure", "continue", "set var scale = 3", "delete", "continue",
        ]
        let run = try await CommandRun.microvm(
            "run",
            CommandRun.guest("debug"),
            "measure",
            "i64:2",
            "--gdb",
            socket,
            "--wait"
        ) { _ in
            while !FileManager.default.fileExists(atPath: socket) { usleep(1000) }
            let process = Process()
            process.executableURL = URL(filePath: Self.gdb)
            process.arguments = ["-nx", "-batch"] + commands.flatMap { ["-ex", $0] }
            _ = FileManager.default.createFile(atPath: output, contents: nil)
            process.standardOutput = FileHandle(forWritingAtPath: output)
            process.standardError = FileHandle(forWritingAtPath: output)
            process.standardInput = FileHandle.nullDevice
            // Where it does not start, the run is ended by its own watchdog.
            try? process.run()
            process.waitUntilExit()
        }
        #expect(run.status == 0)
        #expect(run.outputText.trimmingCharacters(in: .newlines) == "225")
        #expect(
            run.error.contains("gdb -ex 'target remote \(socket)'")
                && run.error.contains("add-symbol-file /") && run.error.contains("/debug.so -o 0x")
        )
        #expect(!FileManager.default.fileExists(atPath: socket))
        let said = try String(contentsOfFile: output, encoding: .utf8)
        #expect(said.contains("Breakpoint 1, measure (scale=2)") && said.contains("exited normally"))
    }

    @Test(.requiresKVM) func `a run that nobody attaches to is as any other`() async throws {
        let run = try await CommandRun.microvm("run", CommandRun.guest("debug"), "measure", "i64:2", "--gdb", "0")
        #expect(run.status == 0 && run.outputText.trimmingCharacters(in: .newlines) == "100")
        #expect(run.error.contains("target remote 127.0.0.1:"))
    }

    @Test(arguments: [["--wait"], ["--gdb", ""], ["--gdb", "65536"], ["--gdb", "-1"]])
    func `what cannot be is wrong usage`(_ options: [String]) async throws {
        let run = try await CommandRun.microvm(["run", CommandRun.guest("debug"), "measure", "i64:2"] + options)
        #expect(run.status == 64)
    }

    @Test(.requiresKVM) func `an address that cannot be listened on is said`() async throws {
        let run = try await CommandRun.microvm(
            "run",
            CommandRun.guest("debug"),
            "measure",
            "i64:2",
            "--gdb",
            "/nowhere/at/all"
        )
        #expect(run.status != 0 && run.error.contains("cannot listen"))
    }
}
