import Foundation

/// The client of the tests: one curl a request, each with a connection of its own.
struct Curl: Sendable {
    let port: Int

    /// The status and the body of an answer.
    func post(_ path: String, _ body: some Collection<UInt8>) async throws -> (Int, String) {
        try await answer(path, Array(body))
    }

    func get(_ path: String) async throws -> (Int, String) { try await answer(path, nil) }

    private func answer(_ path: String, _ body: [UInt8]?) async throws -> (Int, String) {
        let output = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: output) }
        let (ends, ended) = AsyncStream<Void>.makeStream()
        let curl = try start(path, body, output: output.path) { ended.finish() }
        for await _ in ends {}
        let status = (curl.standardOutput as? Pipe)?.fileHandleForReading.readDataToEndOfFile() ?? Data()
        let text = try String(decoding: Data(contentsOf: output), as: UTF8.self)
        return (Int(String(decoding: status, as: UTF8.self)) ?? 0, text)
    }

    /// Starts a request. Its status goes to a pipe.
    func start(
        _ path: String,
        _ body: [UInt8]?,
        output: String,
        _ whenEnded: @escaping @Sendable () -> Void
    ) throws -> Process {
        let curl = Process()
        curl.executableURL = URL(fileURLWithPath: "/usr/bin/curl")
        curl.arguments = ["-s", "-o", output, "-w", "%{http_code}", "http://127.0.0.1:\(port)\(path)"]
        curl.standardOutput = Pipe()
        curl.terminationHandler = { _ in whenEnded() }
        if let body {
            curl.arguments? += ["--data-binary", "@-"]
            let input = Pipe()
            curl.standardInput = input
            try curl.run()
            // Less than a pipe holds.
            try input.fileHandleForWriting.write(contentsOf: Data(body))
            try input.fileHandleForWriting.close()
        } else {
            try curl.run()
        }
        return curl
    }
}
