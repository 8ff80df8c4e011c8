#if Server
import Foundation
import Glibc
import MicroVM
import Synchronization
import SystemPackage
import Testing

@testable import MicroVMServer
@testable import MicroVMSupervisor

extension Trait where Self == ConditionTrait {
    /// The test runs guests: without a usable KVM device it is skipped, and says why.
    static var requiresKVM: Self {
        .enabled(if: reasonKVMIsMissing == nil, "\(reasonKVMIsMissing ?? "")")
    }
}

/// Why no guest can run here, or nil where one can.
private let reasonKVMIsMissing: String? = {
    do throws(SandboxError) {
        _ = try HostSupport()
        return nil
    } catch {
        return "This test needs a KVM that runs sandboxes. \(error.message)"
    }
}()

/// A server in this process, and a client of it whose every answer is checked against the description.
struct TestServer: Sendable {
    let directory: FilePath
    let supervisor: Supervisor
    let client: APIClient
    let summary: SupervisorServer.Summary
    private let end: AsyncStream<Void>.Continuation
    private let running: Task<ShutdownReport, any Error>

    /// - Parameters:
    ///   - directory: where it keeps its things; a new one unless given.
    ///   - token: makes it listen on TCP.
    init(
        in directory: FilePath? = nil,
        token: String? = nil,
        configure: (inout ServerConfiguration) -> Void = { _ in }
    ) async throws {
        let directory = directory ?? TestServer.newDirectory()
        self.directory = directory
        let address: ServerConfiguration.Address =
            token == nil ? .socket(directory.appending("socket")) : .tcp(host: "127.0.0.1", port: 0)
        var configuration = ServerConfiguration(address: address)
        configuration.token = token
        configuration.directory = directory.appending("state")
        configuration.guestMemory = 16 << 20
        configuration.supervisor.watchInterval = .milliseconds(5)
        configuration.supervisor.drainTime = .milliseconds(1)
        configure(&configuration)
        let server = try SupervisorServer(configuration)
        supervisor = server.supervisor
        let (ends, end) = AsyncStream.makeStream(of: Void.self)
        self.end = end
        let (summaries, summary) = AsyncStream.makeStream(of: SupervisorServer.Summary.self)
        running = Task {
            defer { summary.finish() }
            return try await server.run(
                until: { for await _ in ends {} },
                whenListening: { summary.yield($0) }
            )
        }
        var iterator = summaries.makeAsyncIterator()
        guard let found = await iterator.next() else {
            _ = try await running.value
            throw ServerError("It did not listen.")
        }
        self.summary = found
        client = APIClient(found.port.map { .tcp(host: "127.0.0.1", port: $0) } ?? address, token: token)
    }

    /// Does something with a server, which is gone afterwards.
    static func with(
        token: String? = nil,
        configure: (inout ServerConfiguration) -> Void = { _ in },
        _ body: (TestServer) async throws -> Void
    ) async throws {
        let server = try await TestServer(token: token, configure: configure)
        do {
            try await body(server)
        } catch {
            _ = try await server.shutDown()
            throw error
        }
        _ = try await server.shutDown()
        try? FileManager.default.removeItem(atPath: server.directory.string)
    }

    static func newDirectory() -> FilePath {
        let path = FilePath("/tmp/microvm-server-\(UUID().uuidString.prefix(13))")
        unsafe _ = mkdir(path.string, 0o700)
        return path
    }

    @discardableResult
    func shutDown() async throws -> ShutdownReport {
        end.finish()
        return try await running.value
    }

    // MARK: - Requests

    /// Makes a request, whose answer has to be as it is described.
    @discardableResult
    func request(
        _ method: String,
        _ path: String,
        body: [UInt8]? = nil,
        status: Int? = nil,
        location: SourceLocation = #_sourceLocation
    ) async throws -> JSONNode {
        let answer = try await client.request(method, path, body: body)
        APIDescription.shared.check(method, path, answer, sourceLocation: location)
        if let status { #expect(answer.status == status, "\(method) \(path)", sourceLocation: location) }
        guard answer.headers["content-type"] == "application/json" else { return .null }
        return try JSONNode(answer.body)
    }

    @discardableResult
    func request(
        _ method: String,
        _ path: String,
        json: String,
        status: Int? = nil,
        location: SourceLocation = #_sourceLocation
    ) async throws -> JSONNode {
        try await request(method, path, body: Array(json.utf8), status: status, location: location)
    }

    /// Expects a request to fail with a status and a code.
    func expect(
        _ status: Int,
        _ code: String,
        _ method: String,
        _ path: String,
        body: [UInt8]? = nil,
        location: SourceLocation = #_sourceLocation
    ) async throws {
        let answer = try await request(method, path, body: body, status: status, location: location)
        #expect(answer["error"]?["code"]?.text == code, "\(method) \(path): \(answer)", sourceLocation: location)
    }

    func upload(_ name: String, _ query: String = "") async throws {
        let bytes = Array(try Data(contentsOf: URL(filePath: "\(GuestImages.directory)/\(name).so")))
        try await request("PUT", "/v1/modules/\(name)\(query)", body: bytes, status: 201)
    }

    /// Starts a call that spins for ever, once it is in its sandbox.
    func startSpinning(_ function: String = "spin") async throws -> Int64 {
        let json = #"{"module": "spin", "function": "\#(function)", "returns": "void", "labels": {"tenant": "a"}}"#
        let call = try await request("POST", "/v1/calls", json: json, status: 201)
        let id = try #require(call["id"]?.integer)
        while try await request("GET", "/v1/calls/\(id)")["state"]?.text != "running" {
            try await Task.sleep(for: .milliseconds(1))
        }
        return id
    }
}
#endif
