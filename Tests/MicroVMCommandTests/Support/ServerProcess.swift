#if Server
import Foundation
import Glibc
import Testing

/// `microvm serve` as a process of its own, with a socket and a directory of its own.
final class ServerProcess: Sendable {
    let directory: URL
    private let process: Process
    private let errorFile: URL

    var socket: String { directory.appending(path: "socket").path }

    /// Begins a server, and waits until it listens.
    ///
    /// - Parameters:
    ///   - directory: where a former one has kept its things; a new one unless given.
    ///   - inMemory: whether it keeps nothing on the disk.
    init(in directory: URL? = nil, inMemory: Bool = false) async throws {
        self.directory =
            directory
            ?? FileManager.default.temporaryDirectory.appending(path: "microvm-serve-\(UUID().uuidString.prefix(8))")
        try FileManager.default.createDirectory(at: self.directory, withIntermediateDirectories: true)
        errorFile = self.directory.appending(path: "error-\(UUID().uuidString.prefix(8))")
        try Data().write(to: errorFile)
        process = Process()
        process.executableURL = CommandRun.executable
        process.arguments =
            [
                "serve", "--socket", self.directory.appending(path: "socket").path, "--drain", "100ms",
            ]
            + (inMemory ? ["--in-memory"] : ["--directory", self.directory.appending(path: "state").path])
        process.standardOutput = FileHandle.nullDevice
        process.standardInput = FileHandle.nullDevice
        process.standardError = try FileHandle(forWritingTo: errorFile)
        try process.run()
        let began = ContinuousClock.now
        while true {
            let text = try errors
            if text.contains("Listening at") { return }
            try #require(process.isRunning && began.duration(to: .now) < .seconds(60), "\(text)")
            try await Task.sleep(for: .milliseconds(5))
        }
    }

    deinit {
        if process.isRunning { kill(process.processIdentifier, SIGKILL) }
    }

    var number: pid_t { process.processIdentifier }

    /// What it has written to standard error.
    var errors: String { get throws { try String(contentsOf: errorFile, encoding: .utf8) } }

    /// Sends a signal, and waits for the end.
    ///
    /// - Returns: the exit status, or 128 and the number of the signal that ended it.
    @discardableResult
    func end(by signal: Int32 = SIGTERM) async throws -> Int32 {
        kill(process.processIdentifier, signal)
        let began = ContinuousClock.now
        while process.isRunning {
            try #require(began.duration(to: .now) < .seconds(60))
            try await Task.sleep(for: .milliseconds(5))
        }
        return process.terminationStatus + (process.terminationReason == .uncaughtSignal ? 128 : 0)
    }

    /// Takes away what it has kept.
    func remove() { try? FileManager.default.removeItem(at: directory) }

    /// Runs a client of the server.
    func run(_ arguments: String...) async throws -> CommandRun {
        try await CommandRun.microvm(arguments + ["--server", socket])
    }

    func upload(_ guest: String, _ options: String...) async throws {
        let run = try await CommandRun.microvm(["upload", CommandRun.guest(guest), "--server", socket] + options)
        #expect(run.status == 0, "\(run.error)")
    }

    /// Starts a call, and waits until it is in its sandbox.
    func start(_ arguments: String..., until state: String = "running") async throws -> String {
        let run = try await CommandRun.microvm(["start"] + arguments + ["--server", socket])
        #expect(run.status == 0, "\(run.error)")
        let id = String(run.outputText.dropLast())
        while try await stateOfCall(id) != state { try await Task.sleep(for: .milliseconds(5)) }
        return id
    }

    /// How a call is; nothing where there is none that waits or runs.
    func stateOfCall(_ id: String) async throws -> String? {
        let calls = try await self.run("ps", "--all", "--json").json()["calls"] as? [[String: Any]]
        return calls?.first { "\($0["id"] ?? "")" == id }?["state"] as? String
    }
}
#endif
