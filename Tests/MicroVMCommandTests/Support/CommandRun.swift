import Dispatch
import Foundation
import Testing

/// One run of the built executable, and what came of it.
struct CommandRun: Sendable {
    /// The exit status, or 128 and the number of the signal that ended the process.
    var status: Int32
    var output: Data
    var error: String
    var duration: Duration

    var outputText: String { String(decoding: output, as: UTF8.self) }

    /// The one JSON object that standard output is.
    func json() throws -> [String: Any] {
        try #require(try JSONSerialization.jsonObject(with: output) as? [String: Any])
    }

    /// The executable, which lies beside the test bundle.
    static let executable = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath()
        .deletingLastPathComponent().appending(path: "microvm")

    /// Path of a guest module.
    static func guest(_ name: String) -> String { "\(GuestImages.directory)/\(name).so" }

    /// Runs `microvm`, or another program, to its end. It is killed after a minute.
    ///
    /// - Parameters:
    ///   - input: what it reads from standard input; nothing unless given.
    ///   - whileRunning: called on another thread once the process has begun, with its number.
    static func microvm(
        _ arguments: String...,
        program: String = executable.path,
        input: Data? = nil,
        whileRunning: (@Sendable (pid_t) -> Void)? = nil
    ) async throws -> CommandRun {
        try await microvm(arguments, program: program, input: input, whileRunning: whileRunning)
    }

    /// The same with a list of arguments.
    static func microvm(
        _ arguments: [String],
        program: String = executable.path,
        input: Data? = nil,
        whileRunning: (@Sendable (pid_t) -> Void)? = nil
    ) async throws -> CommandRun {
        let command = [program] + arguments
        // Waiting blocks, which must not happen in the cooperative pool.
        return try await withCheckedThrowingContinuation { continuation in
            DispatchQueue.global().async {
                continuation.resume(with: Result { try run(command, input, whileRunning) })
            }
        }
    }

    private static func run(
        _ command: [String],
        _ input: Data?,
        _ whileRunning: (@Sendable (pid_t) -> Void)?
    ) throws -> CommandRun {
        let folder = FileManager.default.temporaryDirectory.appending(path: "microvm-command-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let errorFile = folder.appending(path: "error")
        try Data().write(to: errorFile)
        let inputFile = folder.appending(path: "input")
        try (input ?? Data()).write(to: inputFile)

        let process = Process()
        process.executableURL = URL(filePath: command[0])
        process.arguments = Array(command.dropFirst())
        let output = Pipe()
        process.standardOutput = output
        process.standardError = try FileHandle(forWritingTo: errorFile)
        process.standardInput = try FileHandle(forReadingFrom: inputFile)
        let clock = ContinuousClock()
        let began = clock.now
        try process.run()
        let number = process.processIdentifier
        let watchdog = DispatchWorkItem { kill(number, SIGKILL) }
        DispatchQueue.global().asyncAfter(deadline: .now() + 60, execute: watchdog)
        defer { watchdog.cancel() }
        if let whileRunning { DispatchQueue.global().async { whileRunning(number) } }
        let bytes = try output.fileHandleForReading.readToEnd() ?? Data()
        process.waitUntilExit()
        let isSignalled = process.terminationReason == .uncaughtSignal
        return CommandRun(
            status: process.terminationStatus + (isSignalled ? 128 : 0),
            output: bytes,
            error: String(decoding: try Data(contentsOf: errorFile), as: UTF8.self),
            duration: began.duration(to: clock.now)
        )
    }
}
