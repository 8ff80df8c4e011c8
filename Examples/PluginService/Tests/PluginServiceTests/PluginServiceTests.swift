import Foundation
import Glibc
import Logging
import MicroVM
import NIOCore
import ServiceLifecycle
import Testing

@testable import PluginService

/// The service as its clients see it, over real connections.
@Suite(.requiresKVM, .serialized, .timeLimit(.minutes(2))) struct PluginServiceTests {
    private static func withService(
        _ configure: (inout ServiceLimits) -> Void = { _ in },
        _ test: (PluginService, Curl) async throws -> Void
    ) async throws {
        var limits = ServiceLimits()
        configure(&limits)
        let service = try await PluginService(
            inflate: TestGuests.path("inflate"),
            plugins: ["tag": TestGuests.path("plugin_tag"), "hostile": TestGuests.path("plugin_hostile")],
            limits: limits,
            metrics: metricsPage
        )
        let (ports, running) = AsyncStream<Int>.makeStream()
        let application = service.application(hostname: "127.0.0.1", port: 0, logger: Logger(label: "tests")) {
            running.yield($0.localAddress?.port ?? 0)
        }
        let group = ServiceGroup(configuration: .init(services: [application], logger: Logger(label: "tests")))
        let run = Task { try await group.run() }
        let port = try #require(await ports.first { _ in true })
        do {
            try await test(service, Curl(port: port))
        } catch {
            await group.triggerGracefulShutdown()
            throw error
        }
        await group.triggerGracefulShutdown()
        try await run.value
    }

    @Test func `a zlib stream comes back inflated`() async throws {
        try await Self.withService { _, client in
            // "hello" as zlib stores it.
            let stream: [UInt8] = [0x78, 1, 1, 5, 0, 0xfa, 0xff, 104, 101, 108, 108, 111, 0x06, 0x2c, 0x02, 0x15]
            #expect(try await client.post("/inflate", stream) == (200, "hello"))
            let (status, text) = try await client.post("/inflate", stream.dropLast())
            #expect(status == 422 && text.hasPrefix("guestFault\n"))
            #expect(text.contains("unexpected end of data"))
        }
    }

    @Test func `no request sees anything of another`() async throws {
        try await Self.withService { _, client in
            for number in 0..<20 {
                let answer = try await client.post("/plugin/tag", "request \(number)".utf8)
                #expect(answer == (200, "request \(number)/"))
            }
        }
    }

    @Test(arguments: [
        ("f", 422, "guestFault"), ("a", 422, "guestFault"), ("l", 422, "invalidResult"), ("p", 422, "guestFault"),
        ("x", 422, "guestFault"), ("d", 422, "guestFault"), ("s", 504, "timeLimitExceeded"),
    ])
    func `what a guest does wrong has a status and a code`(_ deed: String, _ status: Int, _ code: String) async throws {
        try await Self.withService {
            $0.timeLimit = .milliseconds(100)
        } _: { _, client in
            let (found, text) = try await client.post("/plugin/hostile", deed.utf8)
            #expect(found == status && text.hasPrefix("\(code)\n"))
            #expect(try await client.post("/plugin/hostile", "ok".utf8) == (200, "ok"))
        }
    }

    @Test func `a body that is too large is refused, and an unknown plugin`() async throws {
        try await Self.withService {
            $0.bodyLimit = 1000
        } _: { _, client in
            let (status, text) = try await client.post("/plugin/tag", [UInt8](repeating: 1, count: 1001))
            #expect(status == 413 && text.hasPrefix("bodyTooLarge\n"))
            #expect(try await client.post("/plugin/none", "x".utf8).0 == 404)
        }
    }

    @Test func `a service that is full says so`() async throws {
        try await Self.withService {
            $0.sandboxes = 1...1
            $0.maximumWaiters = 0
        } _: { service, client in
            let pool = try #require(service.plugins["tag"]).pool
            try await pool.withSandbox { _ in
                let (status, text) = try await client.post("/plugin/tag", "x".utf8)
                #expect(status == 503 && text.hasPrefix("poolExhausted\n"))
            }
            await waitUntil { pool.statistics.idle == 1 }
            #expect(try await client.post("/plugin/tag", "x".utf8).0 == 200)
        }
    }

    @Test func `a client that goes takes its call with it`() async throws {
        try await Self.withService {
            $0.timeLimit = .seconds(3600)
        } _: { service, client in
            let pool = try #require(service.plugins["hostile"]).pool
            for round in 1...3 {
                let curl = try client.start("/plugin/hostile", Array("s".utf8), output: "/dev/null") {}
                await waitUntil { pool.statistics.inUse == 1 }
                // Which cannot be blocked, as other signals are in processes that are started by worker threads.
                kill(curl.processIdentifier, SIGKILL)
                await waitUntil { pool.statistics.restores == round }
                #expect(pool.statistics.inUse == 0)
            }
            #expect(try await client.post("/plugin/hostile", "ok".utf8) == (200, "ok"))
        }
    }

    @Test func `metrics tell what the pools do`() async throws {
        try await Self.withService { service, client in
            _ = try await client.post("/plugin/hostile", "f".utf8)
            let pool = try #require(service.plugins["hostile"]).pool
            await waitUntil { pool.statistics.restores == 1 }
            let (_, text) = try await client.get("/metrics")
            var numbers: [Substring: Int] = [:]
            for line in text.split(separator: "\n") {
                let words = line.split(separator: " ")
                numbers[words[0]] = Int(words[1])
            }
            #expect(numbers["microvm_pool_in_use{pool=\"hostile\"}"] == 0)
            #expect(numbers["microvm_pool_waiting{pool=\"hostile\"}"] == 0)
            for counter in ["restores", "poisoned_returns", "pages_copied"] {
                #expect(numbers["microvm_pool_\(counter){pool=\"hostile\"}"] ?? 0 > 0)
            }
            #expect(numbers["plugin_service_failures{code=\"guestFault\"}"] ?? 0 > 0)
            #expect(numbers["microvm_calls{outcome=\"faulted\",pool=\"hostile\"}"] ?? 0 > 0)
        }
    }
}
