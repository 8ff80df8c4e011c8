import Testing

@testable import MicroVM

#if Logging
import Logging
#endif

/// A pool's size changes under those who use it.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct SandboxPoolResizeTests {
    @Test func `a larger pool serves those who wait at once, beyond its first reservation`() async throws {
        let pool = try await SandboxPool(Guest.state.module(), size: 1...1)
        let first = await Borrower(of: pool)
        let others = (0..<3).map { _ in Task { try await pool.withSandbox { try await $0.call("count") as Int } } }
        await waitUntil { pool.statistics.waiting == 3 }
        try await pool.resize(to: 0...3)
        #expect(pool.size == 0...3)
        for other in others { #expect(try await other.value == 1) }
        #expect(pool.statistics.sandboxes == 3)
        await first.finish()
        let statistics = await pool.settled()
        #expect(statistics.sandboxes == 3 && statistics.loans == 4)
    }

    @Test func `a smaller pool closes what is idle now, and what is lent when it comes back`() async throws {
        let pool = try await SandboxPool(Guest.state.module(), size: 4...4)
        let borrowers = [await Borrower(of: pool), await Borrower(of: pool), await Borrower(of: pool)]
        try await pool.resize(to: 0...1)
        await waitUntil { pool.statistics.sandboxes == 3 }
        #expect(pool.statistics.inUse == 3 && pool.statistics.idle == 0)
        let next = Task { try await pool.withSandbox { try await $0.call("count") as Int } }
        await waitUntil { pool.statistics.waiting == 1 }
        await borrowers[0].finish()
        await borrowers[1].finish()
        await waitUntil { pool.statistics.sandboxes == 1 }
        // Room for one, and that is lent.
        #expect(pool.statistics.waiting == 1)
        await borrowers[2].finish()
        #expect(try await next.value == 1)
        await waitUntil { pool.statistics.idle == 1 }
        #expect(pool.statistics.sandboxes == 1)
        await pool.shutDown()
        #expect(pool.statistics.sandboxes == 0)
    }

    @Test func `a minimum is made at once, and the maximum holds while sizes and borrowers come and go`() async throws {
        let pool = try await SandboxPool(Guest.state.module(), size: 0...2)
        try await pool.resize(to: 5...6)
        #expect(pool.statistics.idle == 5)
        try await withThrowingTaskGroup { group in
            for _ in 0..<4 {
                group.addTask {
                    for _ in 0..<25 {
                        let count: Int = try await pool.withSandbox { try await $0.call("count") }
                        #expect(count == 1)
                    }
                }
            }
            group.addTask {
                for round in 0..<20 {
                    let maximum = 1 + round % 7
                    try await pool.resize(to: (round % 2)...max(round % 2, maximum))
                    #expect(pool.size.upperBound == max(round % 2, maximum))
                }
            }
            try await group.waitForAll()
        }
        try await pool.resize(to: 0...2)
        // Not each loan has ended in a restore: sandboxes that came back to a smaller pool have been closed.
        await waitUntil {
            let now = pool.statistics
            return now.sandboxes <= 2 && now.idle == now.sandboxes && now.inUse == 0
        }
        let count: Int = try await pool.withSandbox { try await $0.call("count") }
        #expect(count == 1)
    }

    #if Logging
    /// Holds whoever reports that a sandbox came back poisoned: that is the sandbox's thread, before it restores it.
    private struct Holder: LogHandler {
        let isHeld = Flag()
        let goesOn = Flag()
        var logLevel = Logger.Level.debug
        var metadata: Logger.Metadata = [:]

        subscript(metadataKey key: String) -> Logger.MetadataValue? {
            get { metadata[key] }
            set { metadata[key] = newValue }
        }

        func log(event: LogEvent) {
            guard "\(event.message)".hasPrefix("A sandbox came back") else { return }
            isHeld.set()
            goesOn.block()
        }
    }

    @Test func `a pool that becomes smaller while a sandbox is restored does not keep that`() async throws {
        let holder = Holder()
        var configuration = SandboxConfiguration()
        configuration.logger = Logger(label: "test") { _ in holder }
        let pool = try await SandboxPool(Guest.faults.module(), configuration: configuration, size: 2...2)
        let borrower = await Borrower(of: pool)
        _ = await CallEnd { try await pool.withSandbox { try await $0.call("write_null") } }
        await waitUntil { holder.isHeld.isSet }
        try await pool.resize(to: 0...1)
        holder.goesOn.set()
        await waitUntil { pool.statistics.restores == 1 && pool.statistics.sandboxes == 1 }
        #expect(pool.statistics.idle == 0 && pool.statistics.inUse == 1)
        await borrower.finish()
        await waitUntil { pool.statistics.idle == 1 }
        #expect(pool.statistics.sandboxes == 1)
    }
    #endif

    @Test func `sizes that make no sense are refused, and so is every size after the shutdown`() async throws {
        let pool = try await SandboxPool(Guest.state.module(), size: 0...2)
        await #expect(performing: { try await pool.resize(to: 0...0) }, throws: Self.code(.invalidConfiguration))
        await #expect(performing: { try await pool.resize(to: -1...3) }, throws: Self.code(.invalidConfiguration))
        await #expect(performing: { try await pool.resize(to: 0...(1 << 21)) }, throws: Self.code(.systemCallFailed))
        #expect(pool.size == 0...2)
        await pool.shutDown()
        await #expect(performing: { try await pool.resize(to: 0...3) }, throws: Self.code(.poolShutDown))
    }

    private static func code(_ code: SandboxError.Code) -> (any Error) -> Bool {
        { ($0 as? SandboxError)?.code == code }
    }
}
