import Testing

@testable import MicroVM

/// Snapshots, restores and forks: what a guest did is there or gone, and nothing in between.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct SnapshotTests {
    private static func state(_ value: UInt64) -> UInt64 {
        (0..<5).reduce(0) { sum, _ in sum * 1000 + value }
    }

    @Test func `a restore puts every kind of memory back`() async throws {
        let sandbox = try await Guest.state.sandbox()
        try await sandbox.call("set_state", 3 as UInt64)
        let snapshot = try await sandbox.snapshot()
        #expect(!snapshot.isInCall && snapshot.module === sandbox.module && snapshot.pageCount > 4)
        for value in 100..<120 as Range<UInt64> {
            try await sandbox.call("set_state", value)
            #expect(try await sandbox.call("get_state") == Self.state(value))
            let statistics = try await sandbox.restore(to: snapshot)
            #expect((3...16).contains(statistics.pagesCopied) && statistics.pagesDropped == 0)
            #expect(try await sandbox.call("get_state") == Self.state(3))
        }
    }

    @Test func `what a debugger has written where no guest can is put back too`() async throws {
        let sandbox = try await Guest.state.sandbox()
        let code = try await sandbox.run {
            try $0.memory.addressSpace.imageBase + $0.module.exportedFunction(named: "get_state").address
        }
        // Exception stubs, trampoline, thunks, and the module's code.
        let places: [UInt64] = [0x10000, 0x20000, 0x22000, code]
        let before = try await sandbox.run { sandbox in
            try places.map { try sandbox.memory.inspect(at: $0, count: 16) }
        }
        let snapshot = try await sandbox.snapshot()
        let patched = try await sandbox.run { sandbox in
            let memory = try sandbox.memory
            for place in places { #expect(memory.patch(Array(repeating: 0xcc, count: 16), at: place)) }
            return try await sandbox.snapshot()
        }
        for snapshot in [snapshot, patched, snapshot] {
            try await sandbox.restore(to: snapshot)
            let after = try await sandbox.run { sandbox in
                try places.map { try sandbox.memory.inspect(at: $0, count: 16) }
            }
            let isPatched = snapshot === patched
            #expect(isPatched ? after.joined().allSatisfy { $0 == 0xcc } : after == before)
            // And once more, with something else there.
            try await sandbox.run { sandbox in
                let memory = try sandbox.memory
                for place in places { #expect(memory.patch([0x90, 0x90], at: place)) }
            }
            try await sandbox.restore(to: snapshot)
            let again = try await sandbox.run { sandbox in
                try places.map { try sandbox.memory.inspect(at: $0, count: 16) }
            }
            #expect(again == after)
        }
        try await sandbox.call("set_state", 3 as UInt64)
        #expect(try await sandbox.call("get_state") == Self.state(3))
    }

    @Test func `what an asynchronous host function has written on its own thread is put back`() async throws {
        let place = Locked<UInt64>(0)
        let tick = HostFunction("host_tick") { (context: HostCallContext) async throws -> Void in
            let buffer = GuestBuffer(address: place.withLock { $0 }, count: 8)
            try context.memory.store(Array(repeating: 7, count: 8), to: buffer)
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(tick))
        let heap = try await sandbox.run { try $0.memory.addressSpace.heap.lowerBound }
        let snapshot = try await sandbox.snapshot()
        for round in 0..<20 as Range<UInt64> {
            // A page that nobody has touched.
            let pointer = GuestPointer<UInt64>(address: heap + (100 + 3 * round) * 4096)
            place.withLock { $0 = pointer.address }
            // So often that the thread's page faults are all that counts, where they can be relied on.
            for _ in 0..<3 { try await sandbox.restore(to: snapshot) }
            let counts = try await sandbox.run { try $0.memory.knowsWritten }
            #expect(counts == (WrittenPages.bestMethod == .scan))
            try await sandbox.call("call_tick")
            #expect(try await sandbox.run { try $0.memory.load(pointer) } == 0x0707_0707_0707_0707)
            try await sandbox.restore(to: snapshot)
            #expect(try await sandbox.run { try $0.memory.load(pointer) } == 0)
        }
    }

    @Test func `pages that were written for the first time are put back, whoever has written them`() async throws {
        let sandbox = try await Guest.state.sandbox { $0.initialMemorySize = 16 << 20 }
        let heap = try await sandbox.run { try $0.memory.addressSpace.heap.lowerBound }
        let snapshot = try await sandbox.snapshot()
        for round in 0..<40 as Range<UInt64> {
            let page = 200 + 5 * round
            // The guest, by a fault that KVM has; host code on the sandbox's thread; nobody.
            switch round % 4 {
            case 0: try await sandbox.call("write_pages", page, 3 as UInt64, 1 as UInt64, 9 as UInt64)
            case 1:
                try await sandbox.run { sandbox in
                    try sandbox.memory.store([9, 9], to: GuestBuffer(address: heap + page * 4096, count: 2))
                }
            case 2: try await sandbox.growHeap(by: 4096)
            default: break
            }
            try await sandbox.restore(to: snapshot)
            let sum: UInt64 = try await sandbox.call("read_pages", 0 as UInt64, 1000 as UInt64, 1 as UInt64)
            #expect(sum == 0)
        }
    }

    @Test func `a restore heals poison`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let snapshot = try await sandbox.snapshot()
        for _ in 0..<(Surroundings.isEmulated ? 3 : 20) {
            let guest = try await SpinningGuest(in: sandbox)
            #expect(await onThread { guest.handle.kill() } == .signalled)
            #expect(await guest.call.value?.code == .killed)
            await expectPoisoned(sandbox)
            let error = await #expect(throws: SandboxError.self) { try await sandbox.snapshot() }
            #expect(error?.code == .poisoned)
            try await sandbox.restore(to: snapshot)
            #expect(try await sandbox.call("answer") == 42)
        }
    }

    @Test func `forks are the same and go their own ways`() async throws {
        let sandbox = try await Guest.state.sandbox()
        try await sandbox.call("set_state", 5 as UInt64)
        let snapshot = try await sandbox.snapshot()
        try await sandbox.call("set_state", 6 as UInt64)
        var forks: [Sandbox] = []
        for index in 0..<10 as Range<UInt64> {
            let fork = try await Sandbox(from: snapshot)
            #expect(try await fork.call("get_state") == Self.state(5))
            try await fork.call("set_state", 10 + index)
            forks.append(fork)
        }
        for (index, fork) in forks.enumerated() {
            #expect(try await fork.call("get_state") == Self.state(10 + UInt64(index)))
            try await fork.restore(to: snapshot)
            #expect(try await fork.call("get_state") == Self.state(5))
        }
        #expect(try await sandbox.call("get_state") == Self.state(6))
    }

    @Test func `snapshots of snapshots can each be gone back to, in any order, by any sandbox`() async throws {
        let sandbox = try await Guest.state.sandbox()
        var snapshots: [Snapshot] = []
        for value in 0..<8 as Range<UInt64> {
            try await sandbox.call("set_state", value)
            try await sandbox.call("write_pages", value * 10, 20 as UInt64, 3 as UInt64, value * 1000)
            snapshots.append(try await sandbox.snapshot())
        }
        var expected: [UInt64] = []
        for snapshot in snapshots {
            let fork = try await Sandbox(from: snapshot)
            expected.append(try await fork.call("read_pages", 0 as UInt64, 200 as UInt64, 1 as UInt64))
        }
        #expect(Set(expected).count == 8)
        let other = try await Sandbox(from: snapshots[4])
        for index in [0, 7, 3, 3, 5, 1, 6, 0, 2, 7, 4] {
            for sandbox in [sandbox, other] {
                try await sandbox.restore(to: snapshots[index])
                #expect(try await sandbox.call("get_state") == Self.state(UInt64(index)))
                let sum: UInt64 = try await sandbox.call("read_pages", 0 as UInt64, 200 as UInt64, 1 as UInt64)
                #expect(sum == expected[index])
            }
        }
    }

    @Test func `a snapshot shares what was not written with the one before it`() async throws {
        let sandbox = try await Guest.state.sandbox()
        try await sandbox.call("write_pages", 0 as UInt64, 1000 as UInt64, 1 as UInt64, 1 as UInt64)
        let first = try await sandbox.snapshot()
        try await sandbox.call("write_pages", 500 as UInt64, 10 as UInt64, 1 as UInt64, 7777 as UInt64)
        let second = try await sandbox.snapshot()
        var differences = 0
        try second.memory.pages.forEachDifference(from: first.memory.pages) { _ in differences += 1 }
        #expect((10...20).contains(differences))
        #expect(second.pageCount - first.pageCount < 10)
        // Nothing at all was written: it is the same.
        let third = try await sandbox.snapshot()
        #expect(third.memory === second.memory)
    }

    @Test func `a call can be caught in its middle, and goes on in as many copies as wanted`() async throws {
        let sandbox = try await Guest.state.sandbox()
        let word = try await SharedWord(of: sandbox)
        let call = try sandbox.start("hold_and_sum", word.address, 1000 as UInt64, returning: UInt64.self)
        await waitUntil { word.value == 1 }
        let snapshot = try await sandbox.snapshot()
        #expect(snapshot.isInCall)
        word.value = 2
        #expect(try await call.result == 17_500)
        for _ in 0..<3 {
            let fork = try await Sandbox(from: snapshot)
            let busy = await #expect(throws: SandboxError.self) { try await fork.call("answer") }
            #expect(busy?.code == .busy)
            let copy = try await SharedWord(of: fork)
            #expect(copy.value == 1)
            copy.value = 2
            #expect(try await fork.resume(returning: UInt64.self) == 17_500)
            #expect(try await fork.call("answer") == 42)
            let none = await #expect(throws: SandboxError.self) { try await fork.resume() }
            #expect(none?.code == .invalidArgument)
        }
        // The sandbox itself can go back into the call, and out of it again.
        try await sandbox.restore(to: snapshot)
        let back = try await SharedWord(of: sandbox)
        back.value = 2
        #expect(try await sandbox.resume(returning: UInt64.self) == 17_500)
    }

    @Test func `a resumed call that is started has a switch of its own`() async throws {
        let sandbox = try await Guest.state.sandbox()
        let word = try await SharedWord(of: sandbox)
        let call = try sandbox.start("hold_and_sum", word.address, 1000 as UInt64, returning: UInt64.self)
        await waitUntil { word.value == 1 }
        let snapshot = try await sandbox.snapshot()
        word.value = 2
        #expect(try await call.result == 17_500)

        let goingOn = try await Sandbox(from: snapshot)
        let copy = try await SharedWord(of: goingOn)
        let resumed: GuestCall<UInt64> = goingOn.startResuming()
        copy.value = 2
        #expect(try await resumed.result == 17_500)
        #expect(await resumed.statistics?.exits ?? 0 > 0)
        #expect(throws: KillError.invalid) { try resumed.killSwitch.terminate() }

        let held = try await Sandbox(from: snapshot)
        let killed = held.startResuming()
        _ = try? killed.killSwitch.terminate()
        #expect(await CallEnd(killed).code == .killed)
        let none: GuestCall<Void> = held.startResuming()
        #expect(await CallEnd(none).code != nil)
    }

    @Test func `a resumed call can be killed`() async throws {
        let sandbox = try await Guest.state.sandbox()
        let word = try await SharedWord(of: sandbox)
        let call = try sandbox.start("spin_for_ever", word.address)
        await waitUntil { word.value == 1 }
        let snapshot = try await sandbox.snapshot()
        try call.killSwitch.terminate()
        await #expect(throws: SandboxError.self) { try await call.result }
        for _ in 0..<5 {
            try await sandbox.restore(to: snapshot)
            let error = await #expect(throws: SandboxError.self) {
                try await sandbox.resume(timeLimit: .milliseconds(1))
            }
            #expect(error?.code == .timeLimitExceeded)
        }
    }

    @Test func `what has grown is gone after a restore`() async throws {
        let sandbox = try await Guest.state.sandbox { $0.initialMemorySize = 8 << 20 }
        let size: UInt64 = try await sandbox.call("heap_size")
        let snapshot = try await sandbox.snapshot()
        for _ in 0..<3 {
            let end: UInt64 = try await sandbox.call("grow_heap", 100_000 as UInt64)
            #expect(end != 0)
            #expect(try await sandbox.call("heap_size") == size + 102_400)
            #expect(try await sandbox.growHeap(by: 4096) == size + 106_496)
            try await sandbox.call("poke", end + 102_400, 77 as UInt64)
            #expect(try await sandbox.call("peek", end + 102_400) as UInt64 == 77)
            let grown = try await sandbox.snapshot()
            try await sandbox.restore(to: snapshot)
            #expect(try await sandbox.call("heap_size") == size)
            try await sandbox.restore(to: grown)
            #expect(try await sandbox.call("heap_size") == size + 106_496)
            #expect(try await sandbox.call("peek", end + 102_400) as UInt64 == 77)
            try await sandbox.restore(to: snapshot)
            #expect(try await sandbox.call("grow_heap", 1 << 40 as UInt64) as UInt64 == 0)
            let error = await #expect(throws: SandboxError.self) { try await sandbox.growHeap(by: 1 << 40) }
            #expect(error?.code == .outOfMemory)
            #expect(try await sandbox.call("grow_heap", 8192 as UInt64) == end)
            #expect(try await sandbox.call("peek", end) as UInt64 == 0)
            try await sandbox.restore(to: snapshot)
        }
    }

    @Test(arguments: [WrittenPages.bestMethod, .none])
    func `a fork whose heap was cut off gets back what it was made with`(_ method: WrittenPages.Method) async throws {
        let sandbox = try await Guest.state.sandbox { $0.initialMemorySize = 8 << 20 }
        let small = try await sandbox.snapshot()
        let pages = try await sandbox.call("heap_size", returning: UInt64.self) / 4096
        try await sandbox.growHeap(by: 100 * 4096)
        try await sandbox.call("write_pages", pages - 20, 100 as UInt64, 1 as UInt64, 5 as UInt64)
        let large = try await sandbox.snapshot()
        let sum: UInt64 = try await sandbox.call("read_pages", pages - 20, 100 as UInt64, 1 as UInt64)
        let fork = try await Sandbox(from: large)
        for _ in 0..<3 {
            try await fork.restore(to: small)
            try await fork.restore(to: large)
            #expect(try await fork.call("read_pages", pages - 20, 100 as UInt64, 1 as UInt64) == sum)
            try await fork.call("write_pages", pages - 20, 100 as UInt64, 1 as UInt64, 7 as UInt64)
            // Nothing may stay, so that everything has to come from behind, or be copied where there is nothing.
            try await fork.run { fork in
                _ = try fork.memory.restore(to: large.memory, keeping: 0, by: method)
            }
            #expect(try await fork.call("read_pages", pages - 20, 100 as UInt64, 1 as UInt64) == sum)
        }
    }

    @Test func `pages that nobody writes any more do not stay for ever`() async throws {
        let sandbox = try await Guest.state.sandbox()
        let snapshot = try await sandbox.snapshot()
        try await sandbox.call("write_pages", 0 as UInt64, 500 as UInt64, 1 as UInt64, 3 as UInt64)
        #expect(try await sandbox.restore(to: snapshot).pagesCopied >= 500)
        var dropped = 0
        for _ in 0..<20 {
            try await sandbox.call("write_pages", 0 as UInt64, 5 as UInt64, 1 as UInt64, 3 as UInt64)
            let statistics = try await sandbox.restore(to: snapshot)
            #expect(statistics.pagesCopied < 30)
            dropped += statistics.pagesDropped
        }
        #expect((480...520).contains(dropped))
        #expect(try await sandbox.call("read_pages", 0 as UInt64, 600 as UInt64, 1 as UInt64) as UInt64 == 0)
    }

    @Test(arguments: WrittenPages.Method.allCases)
    func `pages are put back however they are found`(_ method: WrittenPages.Method) async throws {
        // The ioctl needs Linux 6.7.
        guard method != .scan || WrittenPages.bestMethod == .scan else { return }
        let sandbox = try await Guest.state.sandbox()
        try await sandbox.call("write_pages", 0 as UInt64, 300 as UInt64, 2 as UInt64, 1 as UInt64)
        let snapshot = try await sandbox.snapshot()
        let sum: UInt64 = try await sandbox.call("read_pages", 0 as UInt64, 1000 as UInt64, 1 as UInt64)
        let fork = try await Sandbox(from: snapshot)
        for sandbox in [sandbox, fork] {
            for round in 1..<(Surroundings.isEmulated ? 5 : 12) as Range<UInt64> {
                try await sandbox.call("write_pages", round, 400 as UInt64, round, round * 99)
                try await sandbox.run { sandbox in
                    let memory = try sandbox.memory
                    _ = try memory.restore(to: snapshot.memory, keeping: round * 200 << 10, by: method)
                }
                let after: UInt64 = try await sandbox.call("read_pages", 0 as UInt64, 1000 as UInt64, 1 as UInt64)
                #expect(after == sum)
                let far: UInt64 = try await sandbox.call("read_pages", 1000 as UInt64, 4000 as UInt64, 1 as UInt64)
                #expect(far == 0)
            }
        }
    }

    @Test func `a snapshot of something else is refused, and changes nothing`() async throws {
        let snapshot = try await Guest.spin.sandbox().snapshot()
        let other = try await Guest.state.sandbox()
        let larger = try await Guest.spin.sandbox { $0.memoryLimit = 128 << 20 }
        for sandbox in [other, larger] {
            let error = await #expect(throws: SandboxError.self) { try await sandbox.restore(to: snapshot) }
            #expect(error?.code == .incompatibleSnapshot)
            #expect(try await sandbox.call("answer") == 42)
        }
        var configuration = SandboxConfiguration()
        configuration.stackSize = 2 << 20
        let error = await #expect(throws: SandboxError.self) {
            try await Sandbox(from: snapshot, configuration: configuration)
        }
        #expect(error?.code == .incompatibleSnapshot)
        // The same bytes, parsed once more, are the same module.
        let again = try GuestModule(contentsOf: Guest.spin.path)
        let twin = try await Sandbox(again)
        try await twin.restore(to: snapshot)
        #expect(try await twin.call("answer") == 42)
    }
}
