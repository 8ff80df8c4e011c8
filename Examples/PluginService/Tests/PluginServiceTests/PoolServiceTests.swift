import Logging
import MicroVM
import ServiceLifecycle
import Synchronization
import Testing

@testable import PluginService

/// A pool as a service of ServiceLifecycle.
@Suite(.requiresKVM, .serialized, .timeLimit(.minutes(2))) struct PoolServiceTests {
    private static func pool() async throws -> SandboxPool {
        try await SandboxPool(GuestModule(contentsOf: TestGuests.path("plugin_hostile")), size: 1...2)
    }

    @Test func `the graceful shutdown waits for what is lent`() async throws {
        let pool = try await Self.pool()
        let group = ServiceGroup(configuration: .init(services: [pool], logger: Logger(label: "tests")))
        let run = Task { try await group.run() }
        let isOver = Mutex(false)
        try await pool.withSandbox { sandbox in
            await group.triggerGracefulShutdown()
            await waitUntil { pool.statistics.sandboxes == 1 }
            let error = await #expect(throws: SandboxError.self) { try await pool.withSandbox { _ in } }
            #expect(error?.code == .poolShutDown)
            let answer: [UInt8] = try await sandbox.call("handle", [1, 2, 3] as [UInt8])
            #expect(answer == [1, 2, 3])
            isOver.withLock { $0 = true }
        }
        try await run.value
        #expect(isOver.withLock { $0 })
        #expect(pool.statistics.sandboxes == 0)
    }

    @Test func `the cancellation of the service ends what is lent`() async throws {
        let pool = try await Self.pool()
        let service = Task { try await pool.run() }
        let borrower = Task {
            try await pool.withSandbox { sandbox in
                let _: [UInt8] = try await sandbox.call("handle", Array("s".utf8))
            }
        }
        await waitUntil { pool.statistics.inUse == 1 }
        service.cancel()
        let error = await #expect(throws: SandboxError.self) { try await borrower.value }
        #expect(error?.code == .killed || error?.code == .closed || error?.code == .poolShutDown)
        try await service.value
        #expect(pool.statistics.sandboxes == 0)
    }
}
