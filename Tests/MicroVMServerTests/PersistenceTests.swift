#if Server
import Foundation
import Glibc
import MicroVM
import SystemPackage
import Testing

@testable import MicroVMServer
@testable import MicroVMSupervisor

/// What outlives a server, and what must not.
@Suite(.requiresKVM, .timeLimit(.minutes(2))) struct PersistenceTests {
    @Test func `modules and records of calls are there again after a restart, and numbers go on`() async throws {
        let first = try await TestServer()
        try await first.upload("spin", "?poolMaximum=2")
        try await first.request("PATCH", "/v1/modules/spin", json: #"{"minimum": 1, "maximum": 3}"#, status: 200)
        try await first.upload("hello")
        try await first.request("DELETE", "/v1/modules/hello", status: 204)
        let json = #"{"module": "spin", "function": "answer", "labels": {"tenant": "a"}}"#
        let call = try await first.request("POST", "/v1/calls?waitMicroseconds=1e7", json: json, status: 201)
        let id = try #require(call["id"]?.integer)
        let spinning = try await first.startSpinning()
        let report = try await first.shutDown()
        #expect(report.killed.map { Int64($0.id.rawValue) } == [spinning])

        let second = try await TestServer(in: first.directory)
        #expect(second.summary.lostCalls == 0 && second.summary.refusedModules.isEmpty)
        let modules = try await second.request("GET", "/v1/modules")["modules"]
        #expect(modules?.elements.map { $0["name"]?.text } == ["spin"])
        #expect(modules?[0]?["pool"]?["maximum"]?.integer == 3)
        let known = try await second.request("GET", "/v1/calls/\(id)", status: 200)
        #expect(known["outcome"]?["result"]?["value"]?.integer == 42 && known["labels"]?["tenant"]?.text == "a")
        let killed = try await second.request("GET", "/v1/calls/\(spinning)", status: 200)
        #expect(killed["outcome"]?["killedBy"]?.text == "shutdown")
        let next = try await second.request("POST", "/v1/calls?waitMicroseconds=1e7", json: json, status: 201)
        #expect(next["id"]?.integer == spinning + 1)
        var calls: [JSONNode] = []
        repeat {
            calls = try await second.request("GET", "/v1/history?module=spin")["calls"]?.elements ?? []
        } while calls.count < 3
        #expect(calls.map { $0["id"]?.integer } == [spinning + 1, spinning, id])
        try await second.shutDown()
        try? FileManager.default.removeItem(atPath: first.directory.string)
    }

    @Test func `calls without an end are recorded as lost when the next server begins`() async throws {
        let directory = TestServer.newDirectory()
        let store = try Store(directory: directory, recordedCalls: 10)
        #expect(store.nextCall == CallID(rawValue: 1))
        let supervisor = Supervisor(
            configuration: {
                var configuration = SupervisorConfiguration()
                configuration.recorder = store
                return configuration
            }()
        )
        let writing = Task { await store.run() }
        try await supervisor.register(
            GuestModule(contentsOf: FilePath("\(GuestImages.directory)/spin.so")),
            as: "spin"
        )
        let id = try await supervisor.start(CallRequest(module: "spin", function: "spin", returns: .void))
        while try await store.call(id) == nil { try await Task.sleep(for: .milliseconds(1)) }
        // As a server that is no more would have left it.
        let next = try Store(directory: directory, recordedCalls: 10)
        #expect(next.lostCalls == 1 && next.nextCall == CallID(rawValue: 2))
        let lost = try #require(try await next.call(id))
        #expect(lost.outcome?.kind == "lost" && lost.state == "finished")
        #expect(try await next.history(before: nil, module: nil, limit: 10).map(\.id) == [id.rawValue])
        try await supervisor.kill(id)
        await supervisor.shutDown()
        store.end()
        await writing.value
        try? FileManager.default.removeItem(atPath: directory.string)
    }

    @Test func `only the last calls are kept on the disk`() async throws {
        try await TestServer.with(configure: { $0.recordedCalls = 5 }) { server in
            try await server.upload("spin")
            for _ in 0..<12 {
                let json = #"{"module": "spin", "function": "answer"}"#
                try await server.request("POST", "/v1/calls?waitMicroseconds=1e7", json: json, status: 201)
            }
            while try await server.request("GET", "/v1/history")["calls"]?[0]?["id"]?.integer != 12 {}
            let calls = try await server.request("GET", "/v1/history")["calls"]?.elements ?? []
            #expect((5...6).contains(calls.count))
        }
    }

    @Test func `the socket is its owner's alone, and one server's at a time`() async throws {
        try await TestServer.with { server in
            let socket = server.directory.appending("socket")
            var status = stat()
            // The structure outlives the call.
            #expect(unsafe lstat(socket.string, &status) == 0)
            #expect(status.st_mode & 0o7777 == 0o600)
            let other = await #expect(throws: ServerError.self) { _ = try await TestServer(in: server.directory) }
            #expect(other?.description.contains("Another server uses") == true)
            var elsewhere = ServerConfiguration(address: .socket(server.directory.appending("socket")))
            elsewhere.directory = server.directory.appending("other")
            #expect(throws: ServerError.self) { _ = try SupervisorServer(elsewhere) }
        }
    }

    @Test func `a socket that nobody listens at any more does not stop the next server`() async throws {
        let directory = TestServer.newDirectory()
        let path = directory.appending("socket").string
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        // The path fits, and the structure outlives the call.
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: Array(path.utf8)) }
        let bound = unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        #expect(bound == 0)
        close(descriptor)
        let server = try await TestServer(in: directory)
        try await server.request("GET", "/health/ready", status: 200)
        try await server.shutDown()
        // It takes its socket away, and what is no socket it leaves alone.
        #expect(!FileManager.default.fileExists(atPath: path))
        try Data("precious".utf8).write(to: URL(filePath: path))
        await #expect(throws: (any Error).self) { _ = try await TestServer(in: directory) }
        #expect(try String(contentsOfFile: path, encoding: .utf8) == "precious")
        try? FileManager.default.removeItem(atPath: directory.string)
    }

    @Test func `times are written as in RFC 3339`() {
        #expect(WallTime(nanoseconds: 0).text == "1970-01-01T00:00:00.000000Z")
        #expect(WallTime(nanoseconds: 951_782_400_123_456_789).text == "2000-02-29T00:00:00.123456Z")
        #expect(WallTime(nanoseconds: 1_796_019_897_000_001_000).text == "2026-11-30T06:24:57.000001Z")
        #expect(WallTime(nanoseconds: -1_000).text == "1969-12-31T23:59:59.999999Z")
    }
}
#endif
