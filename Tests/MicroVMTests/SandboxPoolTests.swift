import Testing

@testable import MicroVM

/// What is lent is always the same sandbox, whatever was done to it before.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct SandboxPoolTests {
    private struct OwnError: Error {}

    @Test func `every loan finds all kinds of memory as the preparation left them`() async throws {
        let preparations = Counter()
        let pool = try await SandboxPool(Guest.state.module(), size: 1...1) { sandbox in
            preparations.next()
            try await sandbox.call("set_state", 3 as UInt64)
        }
        for value in 10..<40 as Range<UInt64> {
            try await pool.withSandbox { sandbox in
                #expect(try await sandbox.call("get_state") == 3_003_003_003_003 as UInt64)
                #expect(try await sandbox.call("read_pages", 1 as UInt64, 100 as UInt64, 1 as UInt64) == 0 as UInt64)
                try await expectCount(1, sandbox)
                try await sandbox.call("set_state", value)
                try await sandbox.call("write_pages", 0 as UInt64, value, 2 as UInt64, value)
            }
        }
        #expect(preparations.value == 1)
        let statistics = await pool.settled()
        #expect(statistics.loans == 30 && statistics.restores == 30 && statistics.sandboxes == 1)
        #expect(statistics.pagesCopied > 30 * 10 && statistics.poisonedReturns == 0 && statistics.killedReturns == 0)
    }

    @Test func `what a tenant has grown is not the next one's`() async throws {
        var configuration = SandboxConfiguration()
        configuration.initialMemorySize = 8 << 20
        let pool = try await SandboxPool(Guest.state.module(), configuration: configuration, size: 1...1)
        var size: UInt64?
        for _ in 0..<5 {
            try await pool.withSandbox { sandbox in
                let before: UInt64 = try await sandbox.call("heap_size")
                #expect(before == size ?? before)
                size = before
                let end: UInt64 = try await sandbox.call("grow_heap", 1 << 20 as UInt64)
                #expect(end != 0)
                #expect(try await sandbox.call("peek", end) as UInt64 == 0)
                #expect(try await sandbox.call("peek", end + 0xf_fff8) as UInt64 == 0)
                try await sandbox.call("poke", end, 77 as UInt64)
                try await sandbox.call("poke", end + 0xf_fff8, 77 as UInt64)
            }
        }
    }

    @Test(arguments: [1, 3])
    func `no byte of a tenant is ever in the next one's memory`(_ count: Int) async throws {
        var configuration = SandboxConfiguration()
        configuration.memoryLimit = 6 << 20
        configuration.initialMemorySize = 4 << 20
        configuration.stackSize = 64 << 10
        configuration.argumentArenaSize = 64 << 10
        configuration.residentMemoryAfterRestore = 256 << 10
        let pool = try await SandboxPool(Guest.tenant.module(), configuration: configuration, size: count...count)
        let patterns = Shared<[[UInt8]]>([])
        var generator = SystemRandomNumberGenerator()
        for round in 0..<Surroundings.scaled(200) {
            let pattern = (0..<8).map { _ in UInt8.random(in: 1...255, using: &generator) }
            let end = UInt64(round % 4)
            let places = UInt64([1, 40, 300][round % 3])
            try await pool.withSandbox { sandbox in
                let known = patterns.value ?? []
                let found = try await sandbox.run { sandbox in
                    let memory = try sandbox.memory
                    return known.count { memory.contains($0) }
                }
                #expect(found == 0)
                let call = try sandbox.start(
                    "hide",
                    pattern,
                    UInt64.random(in: 0...(.max)),
                    places,
                    end,
                    timeLimit: end == 3 ? .milliseconds(2) : nil,
                    returning: UInt64.self
                )
                let code = await CallEnd(call).code
                #expect(code == [nil, .guestFault, .guestFault, .timeLimitExceeded][Int(end)])
                let isHidden = try await sandbox.run { sandbox in try sandbox.memory.contains(pattern) }
                #expect(isHidden || end == 3)
            }
            patterns.value = Array(((patterns.value ?? []) + [pattern]).suffix(2 * count + 2))
        }
        let statistics = await pool.settled()
        #expect(statistics.pagesCopied > 0 && statistics.failedRestores == 0)
    }

    @Test func `a poisoned sandbox comes back healed`() async throws {
        let pool = try await SandboxPool(Guest.spin.module(), size: 1...1)
        for _ in 0..<10 {
            try await pool.withSandbox { sandbox in
                let guest = try await SpinningGuest(in: sandbox)
                #expect(await onThread { guest.handle.kill() } == .signalled)
                #expect(await guest.call.value?.code == .killed)
                await expectPoisoned(sandbox)
            }
            try await pool.withSandbox { sandbox in
                let error = await #expect(throws: SandboxError.self) {
                    try await sandbox.call("spin", timeLimit: .milliseconds(1))
                }
                #expect(error?.code == .timeLimitExceeded)
            }
            #expect(try await pool.withSandbox { try await $0.call("answer") } == 42)
        }
        let statistics = await pool.settled()
        #expect(statistics.loans == 30 && statistics.restores == 30 && statistics.poisonedReturns == 20)
        #expect(statistics.killedReturns == 0 && statistics.sandboxes == 1)
    }

    @Test func `a closure that throws gives its sandbox back`() async throws {
        let pool = try await SandboxPool(Guest.tenant.module(), size: 0...1)
        for _ in 0..<5 {
            await #expect(throws: OwnError.self) {
                try await pool.withSandbox { sandbox in
                    try await expectCount(1, sandbox)
                    throw OwnError()
                }
            }
        }
        #expect(await pool.settled().restores == 5)
    }

    @Test func `the cancellation of a borrower ends its call and heals its sandbox`() async throws {
        let pool = try await SandboxPool(Guest.spin.module(), size: 1...1)
        for _ in 0..<10 {
            let words = Shared<SharedWord>(nil)
            let borrower = Task {
                try await pool.withSandbox { sandbox in
                    let word = try await SharedWord(of: sandbox)
                    words.value = word
                    try await sandbox.call("spin_and_say_so", word.address)
                }
            }
            await waitUntil { words.value?.value == 1 }
            borrower.cancel()
            let error = await #expect(throws: SandboxError.self) { try await borrower.value }
            #expect(error?.code == .taskCancelled)
        }
        #expect(try await pool.withSandbox { try await $0.call("answer") } == 42)
        #expect(await pool.settled().poisonedReturns == 10)
    }

    // MARK: - What outlives a loan

    @Test func `a call that is left under way is killed`() async throws {
        let pool = try await SandboxPool(Guest.spin.module(), size: 1...1)
        for _ in 0..<10 {
            let call = try await pool.withSandbox { sandbox in
                let word = try await SharedWord(of: sandbox)
                let call = try sandbox.start("spin_and_say_so", word.address)
                await waitUntil { word.value == 1 }
                return call
            }
            #expect(await CallEnd(call).code == .killed)
            #expect(try await pool.withSandbox { try await $0.call("answer") } == 42)
            #expect(call.killSwitch.answer() == .failure(.invalid))
        }
        let statistics = await pool.settled()
        #expect(statistics.killedReturns == 10 && statistics.poisonedReturns == 10 && statistics.restores == 20)
    }

    @Test func `calls that have not begun never reach the next borrower`() async throws {
        let pool = try await SandboxPool(Guest.tenant.module(), size: 1...1)
        for _ in 0..<Surroundings.scaled(100) {
            let calls = try await pool.withSandbox { sandbox in
                try (0..<8).map { _ in try sandbox.start("count", returning: Int.self) }
            }
            for _ in 0..<3 {
                try await pool.withSandbox { sandbox in
                    try await expectCount(1, sandbox)
                    try await expectCount(2, sandbox)
                }
            }
            for call in calls {
                let end = await CallEnd(call)
                #expect(end.hasReturned || [.closed, .killed, .poisoned].contains(end.code), "\(end)")
            }
        }
        #expect(await pool.settled().failedRestores == 0)
    }

    @Test func `a sandbox that was kept is closed to whoever kept it`() async throws {
        let pool = try await SandboxPool(Guest.state.module(), size: 1...1)
        let (kept, count) = try await pool.withSandbox { sandbox in
            (sandbox, try sandbox.function("count", as: (() -> Int).self))
        }
        try await pool.withSandbox { sandbox in
            try await expectCount(1, sandbox)
            #expect(await CallEnd { let _: Int = try await kept.call("count") }.code == .closed)
            #expect(await CallEnd { _ = try await count() }.code == .closed)
            #expect(await CallEnd { _ = try await kept.snapshot() }.code == .closed)
            #expect(await CallEnd { _ = try await kept.pullFullState() }.code == .closed)
            #expect(await CallEnd { try await kept.restore(to: pool.snapshot) }.code == .closed)
            #expect(await CallEnd { try await kept.growHeap(by: 4096) }.code == .closed)
            #expect(await CallEnd { try await kept.run { _ = try $0.memory } }.code == .closed)
            await kept.close()
            try await expectCount(2, sandbox)
        }
    }

    @Test func `closing a lent sandbox ends the loan, not the sandbox`() async throws {
        let pool = try await SandboxPool(Guest.state.module(), size: 1...1)
        for _ in 0..<5 {
            try await pool.withSandbox { sandbox in
                try await expectCount(1, sandbox)
                await sandbox.close()
                #expect(await CallEnd { let _: Int = try await sandbox.call("count") }.code == .closed)
            }
        }
        let statistics = await pool.settled()
        #expect(statistics.restores == 5 && statistics.failedRestores == 0 && statistics.sandboxes == 1)
    }

    // MARK: - Snapshots

    @Test func `a borrower can have another snapshot`() async throws {
        let sandbox = try await Guest.state.sandbox()
        let plain = try await sandbox.snapshot()
        try await sandbox.call("set_state", 5 as UInt64)
        let five = try await sandbox.snapshot()
        let pool = try await SandboxPool(from: plain, size: 1...2)
        for _ in 0..<5 {
            let state: UInt64 = try await pool.withSandbox(restoredTo: five) { try await $0.call("get_state") }
            #expect(state == 5_005_005_005_005)
            #expect(try await pool.withSandbox { try await $0.call("get_state") } == 7_000_000_011_000 as UInt64)
        }
        let other = try await Guest.spin.sandbox().snapshot()
        let error = await #expect(throws: SandboxError.self) {
            try await pool.withSandbox(restoredTo: other) { _ in Issue.record("lent all the same") }
        }
        #expect(error?.code == .incompatibleSnapshot)
        #expect(try await pool.withSandbox { try await $0.call("count") } == 1)
        #expect(await pool.settled().failedRestores == 0)
    }

    @Test func `a pool of sandboxes in the middle of a call`() async throws {
        let sandbox = try await Guest.state.sandbox()
        let word = try await SharedWord(of: sandbox)
        let call = try sandbox.start("hold_and_sum", word.address, 1000 as UInt64, returning: UInt64.self)
        await waitUntil { word.value == 1 }
        let pool = try await SandboxPool(from: sandbox.snapshot(), size: 1...2)
        try call.killSwitch.terminate()
        for _ in 0..<5 {
            let sum = try await pool.withSandbox { sandbox in
                try await SharedWord(of: sandbox).value = 2
                return try await sandbox.resume(returning: UInt64.self)
            }
            #expect(sum == 17_500)
        }
    }

    // MARK: - Making

    @Test func `a pool that cannot be made says why`() async throws {
        let module = try Guest.state.module()
        for size in [0...0, -1...3] {
            let error = await #expect(throws: SandboxError.self) { try await SandboxPool(module, size: size) }
            #expect(error?.code == .invalidConfiguration)
        }
        var error = await #expect(throws: SandboxError.self) {
            try await SandboxPool(module, size: 0...1, maximumWaiters: -1)
        }
        #expect(error?.code == .invalidConfiguration)
        var configuration = SandboxConfiguration()
        configuration.memoryLimit = 8192
        error = await #expect(throws: SandboxError.self) {
            try await SandboxPool(module, configuration: configuration, size: 0...1)
        }
        #expect(error?.code == .invalidConfiguration)
        error = await #expect(throws: SandboxError.self) {
            try await SandboxPool(Guest.faultInInitializer.module(), size: 0...1)
        }
        #expect(error?.code == .guestFault)
        await #expect(throws: OwnError.self) {
            try await SandboxPool(module, size: 0...1) { _ in throw OwnError() }
        }
        // Memory for so many is not to be had.
        configuration.memoryLimit = 64 << 30
        error = await #expect(throws: SandboxError.self) {
            try await SandboxPool(module, configuration: configuration, size: 0...10_000)
        }
        #expect(error?.code == .systemCallFailed)
        #expect(try await SandboxPool(module, size: 1...1).withSandbox { try await $0.call("count") } == 1)
    }

    @Test func `sandboxes are made when they are needed, and no more than allowed`() async throws {
        let pool = try await SandboxPool(Guest.state.module(), size: 1...3)
        #expect(pool.statistics.sandboxes == 1 && pool.statistics.idle == 1)
        try await pool.withSandbox { first in
            try await pool.withSandbox { second in
                #expect(pool.statistics.sandboxes == 2 && pool.statistics.inUse == 2)
                try await pool.withSandbox { third in
                    #expect(pool.statistics.sandboxes == 3 && pool.statistics.inUse == 3)
                    #expect(Set([first, second, third].map { ObjectIdentifier($0.interruptHandle) }).count == 3)
                    let fourth = Task { try await pool.withSandbox { try await $0.call("count") as Int } }
                    await waitUntil { pool.statistics.waiting == 1 }
                    #expect(pool.statistics.sandboxes == 3)
                    fourth.cancel()
                    _ = await fourth.result
                }
            }
        }
        let statistics = await pool.settled()
        #expect(statistics.sandboxes == 3 && statistics.idle == 3 && statistics.loans == 3)
    }

    @Test func `memories lie in one reservation with guards between them`() async throws {
        let pool = try await SandboxPool(Guest.state.module(), size: 2...2)
        func place(_ sandbox: Sandbox) async throws -> Range<UInt> {
            try await sandbox.run { sandbox in
                let memory = try sandbox.memory
                let base = unsafe UInt(bitPattern: memory.base)
                return base..<base + UInt(memory.count)
            }
        }
        try await pool.withSandbox { first in
            try await pool.withSandbox { second in
                let places = [try await place(first), try await place(second)].sorted { $0.lowerBound < $1.lowerBound }
                let gap = places[1].lowerBound - places[0].upperBound
                #expect(gap >= UInt(MemoryReservation.guardSize) && gap < 4 << 20)
                let mappings = MemoryMapping.all
                for end in places.map(\.upperBound) + [places[0].lowerBound - UInt(MemoryReservation.guardSize)] {
                    let guards = mappings.filter { $0.range.overlaps(end..<end + UInt(MemoryReservation.guardSize)) }
                    #expect(!guards.isEmpty && guards.allSatisfy { $0.access == "---p" })
                }
            }
        }
    }
}
