import Glibc
import Testing

@testable import MicroVM

/// Pools under load, short of resources, and at their end.
@Suite(.requiresKVM, .timeLimit(.minutes(10))) struct SandboxPoolStressTests {
    private struct OwnError: Error {}

    /// How a borrower can end its loan.
    private enum Deed: Int, CaseIterable {
        case call, fault, throwError, timeLimit, leaveCall, leaveQueue, cancel, keep
    }

    private static func borrow(_ pool: SandboxPool, _ deed: Deed) async throws {
        try await pool.withSandbox { sandbox in
            try await expectCount(1, sandbox)
            switch deed {
            case .call: _ = try await sandbox.call("hide", [UInt8](repeating: 7, count: 8), 1 as UInt64, 9, 0) as Int
            case .fault:
                let code = await CallEnd {
                    let _: Int = try await sandbox.call("hide", [7 as UInt8], 1 as UInt64, 9, 1)
                }.code
                #expect(code == .guestFault)
            case .throwError: throw OwnError()
            case .timeLimit:
                let code = await CallEnd {
                    let _: Int = try await sandbox.call("hide", [7 as UInt8], 1, 9, 3, timeLimit: .microseconds(50))
                }.code
                #expect(code == .timeLimitExceeded)
            case .leaveCall:
                _ = try sandbox.start("hide", [7 as UInt8], 1, 9, 3, returning: Int.self)
                await Task.yield()
            case .leaveQueue: for _ in 0..<4 { _ = try sandbox.start("count", returning: Int.self) }
            case .cancel:
                let call = Task {
                    await CallEnd { let _: Int = try await sandbox.call("hide", [7 as UInt8], 1, 9, 3) }
                }
                await Task.yield()
                call.cancel()
                #expect(await call.value.code == .taskCancelled)
            case .keep: Task { await CallEnd { let _: Int = try await sandbox.call("count") } }
            }
        }
    }

    /// Borrows many times at once, in every way there is, and expects the numbers to add up.
    private static func load(tasks: Int, requests: Int, size: ClosedRange<Int>) async throws {
        let pool = try await SandboxPool(Guest.tenant.module(), size: size)
        let ownErrors = Counter()
        await withTaskGroup { group in
            for task in 0..<tasks {
                group.addTask {
                    for request in 0..<requests {
                        let deed = Deed.allCases[(task * 3 + request) % Deed.allCases.count]
                        do {
                            try await borrow(pool, deed)
                            #expect(deed != .throwError)
                        } catch is OwnError {
                            ownErrors.next()
                            #expect(deed == .throwError)
                        } catch {
                            Issue.record("\(deed): \(error)")
                        }
                    }
                }
            }
        }
        let statistics = await pool.settled()
        let total = tasks * requests
        #expect(statistics.loans == total && statistics.restores == total && statistics.failedRestores == 0)
        #expect(statistics.refusals == 0 && statistics.sandboxes <= size.upperBound)
        // Faults, time limits and cancellations of calls poison, as does a call that was left and had begun.
        #expect(statistics.poisonedReturns >= total / 8)
        #expect(ownErrors.value >= total / 16)
        await pool.shutDown()
        #expect(pool.statistics.sandboxes == 0)
    }

    @Test(arguments: [2, 8])
    func `many borrowers at once, and all accounts balanced`(_ tasks: Int) async throws {
        try await Self.load(tasks: tasks, requests: Surroundings.scaled(500), size: 1...4)
    }

    @Test func `a pool leaves nothing behind, however it ends`() async {
        await #expect(processExitsWith: .success) {
            @Sendable func round(_ number: Int) async throws {
                let pool = try await SandboxPool(Guest.tenant.module(), size: 1...3)
                try await withThrowingTaskGroup { group in
                    for deed in [Deed.call, .fault, .leaveCall, .leaveQueue] {
                        group.addTask { try await Self.borrow(pool, deed) }
                    }
                    try await group.waitForAll()
                }
                switch number % 3 {
                case 0: await pool.shutDown()
                case 1: await pool.shutDownNow()
                default: break
                }
            }
            for number in 0..<6 { try await round(number) }
            try await Task.sleep(for: .milliseconds(200))
            let before = Resources()
            for number in 0..<60 { try await round(number) }
            let after = await Resources.settled { $0.isWithin(before) }
            #expect(after.isWithin(before), "\(before) have become \(after)")
            #expect(after.sandboxThreads == 0)
        }
    }

    @Test func `a long life costs no more memory than a short one`() async {
        await #expect(processExitsWith: .success) {
            let pool = try await SandboxPool(Guest.tenant.module(), size: 2...4)
            func serve(_ count: Int) async throws {
                try await withThrowingTaskGroup { group in
                    for task in 0..<4 {
                        group.addTask {
                            for number in 0..<count {
                                try await Self.borrow(pool, [Deed.call, .fault, .leaveQueue][(task + number) % 3])
                            }
                        }
                    }
                    try await group.waitForAll()
                }
                _ = await pool.settled()
            }
            try await serve(20)
            let before = Resources()
            try await serve(Surroundings.scaled(300))
            let after = Resources()
            #expect(after.descriptors <= before.descriptors + 8 && after.sandboxThreads <= 4)
            #expect(after.residentKibibytes < before.residentKibibytes + (16 << 10), "\(before) became \(after)")
        }
    }

    // A sanitizer takes memory of its own all the time.
    @Test(.enabled(if: !Surroundings.isSanitized)) func `a sandbox that cannot be restored is replaced`() async {
        await #expect(processExitsWith: .success) {
            var configuration = SandboxConfiguration()
            configuration.initialMemorySize = 8 << 20
            let pool = try await SandboxPool(Guest.tenant.module(), configuration: configuration, size: 1...1)
            let addressSpace = __rlimit_resource_t(UInt32(RLIMIT_AS.rawValue))
            for round in 1...3 {
                let isOver = Flag()
                try await pool.withSandbox { sandbox in
                    // The heap has grown, and no memory can be mapped to take that back. Nobody else needs any then.
                    try await sandbox.growHeap(by: 1 << 20)
                    startThread {
                        while pool.statistics.failedRestores < round { usleep(100) }
                        limit(addressSpace, to: .max)
                        isOver.set()
                    }
                    try await sandbox.run { _ in limit(addressSpace, to: 1 << 20) }
                }
                isOver.block()
                try await pool.withSandbox { try await expectCount(1, $0) }
            }
            let statistics = await pool.settled()
            #expect(statistics.loans == 6 && statistics.restores == 3 && statistics.sandboxes == 1)
            #expect(Resources().sandboxThreads <= 2)
        }
    }

    @Test func `a sandbox that cannot be made leaves its place to the next caller`() async {
        await #expect(processExitsWith: .success) {
            let pool = try await SandboxPool(Guest.tenant.module(), size: 0...1)
            let descriptors = __rlimit_resource_t(UInt32(RLIMIT_NOFILE.rawValue))
            for _ in 0..<3 {
                limit(descriptors, to: 3)
                for _ in 0..<3 {
                    let error = await #expect(throws: SandboxError.self) { try await pool.withSandbox { _ in } }
                    #expect(error?.code == .systemCallFailed)
                    #expect(pool.statistics.sandboxes == 0 && pool.statistics.inUse == 0)
                }
                limit(descriptors, to: 1024)
                if pool.statistics.loans == 0 {
                    #expect(try await pool.withSandbox { try await $0.call("count") } == 1)
                    await waitUntil { pool.statistics.idle == 1 }
                    break
                }
            }
        }
    }
}

/// Sets the soft limit of a resource.
private func limit(_ resource: __rlimit_resource_t, to value: rlim_t) {
    var limit = rlimit()
    // The structure outlives the calls.
    unsafe getrlimit(resource, &limit)
    limit.rlim_cur = min(value, limit.rlim_max)
    unsafe setrlimit(resource, &limit)
}
