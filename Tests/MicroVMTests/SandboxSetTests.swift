import Glibc
import Testing

@testable import MicroVM

/// Sandboxes that are stopped together, future ones included.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct SandboxSetTests {
    private static func sandbox(in set: SandboxSet? = nil) async throws -> Sandbox {
        try await Guest.interruption.sandbox(interruptionFunctions()) { $0.sandboxSet = set }
    }

    @Test func `a set stops the guests that run in it, and those of members to come`() async throws {
        let set = SandboxSet()
        let guests = [
            try await CountingGuest(in: Self.sandbox(in: set)), try await CountingGuest(in: Self.sandbox(in: set)),
        ]
        let outsider = try await CountingGuest(in: Self.sandbox())
        try await onThread { Result { try set.beginExternalStop() } }.get()
        let seen = guests.map(\.laps.value)
        await outsider.waitForLaps()
        #expect(guests.map(\.laps.value) == seen && guests.allSatisfy { $0.handle.isStopped })
        // One that joins is stopped as well, whether it runs or not.
        let late = try await Self.sandbox(in: set)
        #expect(late.interruptHandle.isStopped)
        await onThread { set.insert(outsider.sandbox) }
        #expect(outsider.handle.isStopped && !outsider.handle.currentState.has(CallState.running))
        // Counted.
        try set.beginExternalStop()
        try set.endExternalStop()
        #expect(late.interruptHandle.isStopped && guests.map(\.laps.value) == seen)
        try set.endExternalStop()
        for guest in guests + [outsider] {
            await guest.waitForLaps()
            guest.release()
            #expect(try await guest.call.result > 0)
        }
        #expect(try await late.call("answer") == 42)
        #expect(throws: StopError.underflow) { try set.endExternalStop() }
    }

    @Test func `the initialisers of a sandbox that joins a stopped set wait`() async throws {
        let set = SandboxSet()
        try set.beginExternalStop()
        let lines = Recorder<String>()
        let handles = Recorder<LinuxInterruptHandle>()
        let making = Task {
            var configuration = SandboxConfiguration()
            configuration.sandboxSet = set
            configuration.output = .handler { _, bytes in lines.append(String(decoding: bytes, as: UTF8.self)) }
            return try await Sandbox(
                Guest.initializers.module(),
                configuration: configuration,
                beforeInitializers: { handles.append($0.interruptHandle) }
            )
        }
        await waitUntil { handles.count == 1 }
        let handle = try #require(handles.all.first)
        await handle.waitUntilWaiting()
        #expect(lines.count == 0 && !handle.currentState.has(CallState.entered))
        try set.endExternalStop()
        let sandbox = try await making.value
        #expect(lines.all.joined() == "initialized at abc\n")
        #expect(try await sandbox.call("initialization_order") == "abcd")
    }

    @Test func `initialisers that wait for a stopped set can be killed`() async throws {
        let set = SandboxSet()
        try set.beginExternalStop()
        let handles = Recorder<LinuxInterruptHandle>()
        let making = Task {
            var configuration = SandboxConfiguration()
            configuration.sandboxSet = set
            return try await Sandbox(
                Guest.initializers.module(),
                configuration: configuration,
                beforeInitializers: { handles.append($0.interruptHandle) }
            )
        }
        await waitUntil { handles.count == 1 }
        let handle = try #require(handles.all.first)
        await handle.waitUntilWaiting()
        #expect(handle.kill() == .pending)
        let error = await #expect(throws: SandboxError.self) { try await making.value }
        #expect(error?.code == .killed)
        await waitUntil { handle.isDropped }
        #expect(set.sandboxes.isEmpty)
        try set.endExternalStop()
    }

    @Test func `stops of a set add to those of its members`() async throws {
        let set = SandboxSet()
        let guest = try await CountingGuest(in: Self.sandbox(in: set))
        try await onThread { Result { try guest.handle.beginExternalStop() } }.get()
        try set.beginExternalStop()
        try guest.handle.endExternalStop()
        #expect(guest.handle.isStopped)
        try guest.handle.beginExternalStop()
        try set.endExternalStop()
        #expect(guest.handle.isStopped)
        try guest.handle.endExternalStop()
        await guest.waitForLaps()
        guest.release()
        #expect(try await guest.call.result > 0)
    }

    @Test func `a set is stopped 65535 times at most, which stops each member once`() async throws {
        let set = SandboxSet()
        let sandbox = try await Self.sandbox(in: set)
        for _ in 0..<65_535 { try set.beginExternalStop() }
        #expect(throws: StopError.overflow) { try set.beginExternalStop() }
        #expect(sandbox.interruptHandle.stops.withLock { $0.external } == 1)
        for _ in 0..<65_535 { try set.endExternalStop() }
        #expect(throws: StopError.underflow) { try set.endExternalStop() }
        #expect(try await sandbox.call("answer") == 42)
    }

    @Test func `the end of a set's stop ends no stop of somebody else's`() async throws {
        let set = SandboxSet()
        let full = try await Self.sandbox(in: set)
        for _ in 0..<65_535 { try full.interruptHandle.beginExternalStop() }
        let closed = try await Self.sandbox(in: set)
        try closed.interruptHandle.beginExternalStop()
        await closed.close()
        // Neither can be stopped once more, so there is nothing to end for them either.
        try set.beginExternalStop()
        try set.endExternalStop()
        for _ in 0..<65_535 { try full.interruptHandle.endExternalStop() }
        try closed.interruptHandle.endExternalStop()
        #expect(try await full.call("answer") == 42)
    }

    @Test func `who leaves a stopped set goes on`() async throws {
        let set = SandboxSet()
        let sandbox = try await Self.sandbox(in: set)
        set.insert(sandbox)
        #expect(set.sandboxes.count == 1)
        try set.beginExternalStop()
        set.insert(sandbox)
        set.remove(sandbox)
        #expect(set.sandboxes.isEmpty && !sandbox.interruptHandle.isStopped)
        set.remove(sandbox)
        #expect(try await sandbox.call("answer") == 42)
        // The end of a stop is for those that are in the set then.
        try sandbox.interruptHandle.beginExternalStop()
        try set.endExternalStop()
        #expect(sandbox.interruptHandle.isStopped)
        try sandbox.interruptHandle.endExternalStop()
    }

    @Test func `a set forgets sandboxes that are closed or gone, and holds none of them`() async throws {
        let set = SandboxSet()
        let closed = try await Self.sandbox(in: set)
        let kept = try await Self.sandbox(in: set)
        let handle: LinuxInterruptHandle
        do {
            let gone = try await Self.sandbox(in: set)
            handle = gone.interruptHandle
            #expect(set.sandboxes.count == 3)
        }
        await waitUntil { handle.isDropped }
        await closed.close()
        #expect(set.sandboxes.map(ObjectIdentifier.init) == [ObjectIdentifier(kept)])
        // Also while it is stopped.
        try set.beginExternalStop()
        #expect(kept.interruptHandle.isStopped)
        do {
            let late = try await Self.sandbox(in: set)
            await late.close()
        }
        try set.endExternalStop()
        #expect(!kept.interruptHandle.isStopped && set.sandboxes.count == 1)
        // Members come and go by the hundred.
        for _ in 0..<Surroundings.scaled(200) { _ = try await Self.sandbox(in: set) }
        await waitUntil { set.sandboxes.count == 1 }
        #expect(try await kept.call("answer") == 42)
    }

    @Test func `the state of all members is pulled together`() async throws {
        let set = SandboxSet()
        let guests = [
            try await CountingGuest(in: Self.sandbox(in: set)), try await CountingGuest(in: Self.sandbox(in: set)),
        ]
        let idle = try await Self.sandbox(in: set)
        let closed = try await Self.sandbox(in: set)
        await closed.close()
        for isStopped in [false, true] {
            if isStopped { try await onThread { Result { try set.beginExternalStop() } }.get() }
            let states = await set.pullFullState()
            #expect(states.count == 3)
            for (sandbox, state) in states {
                #expect(state.isInCall == (sandbox !== idle))
                if state.isInCall { #expect(state.symbol?.name == "count_until") }
            }
            #expect(idle.interruptHandle.isStopped == isStopped)
            if isStopped { try set.endExternalStop() }
        }
        for guest in guests {
            await guest.waitForLaps()
            guest.release()
            #expect(try await guest.call.result > 0)
        }
    }

    @Test func `members come while threads stop and start the set, and all of them go on in the end`() async throws {
        let set = SandboxSet()
        let isOver = Flag()
        let stoppers = (0..<2).map { _ in
            Task {
                await onThread {
                    while !isOver.isSet {
                        // One that has begun can be ended, and 65,535 are not.
                        try! set.beginExternalStop()
                        try! set.endExternalStop()
                        usleep(UInt32.random(in: 0...500))
                    }
                }
            }
        }
        try await withThrowingTaskGroup(of: Void.self) { group in
            for _ in 0..<4 {
                group.addTask {
                    for _ in 0..<Surroundings.scaled(40) {
                        let sandbox = try await Self.sandbox(in: set)
                        for _ in 0..<5 { #expect(try await sandbox.call("iterate", 1000) == 1000) }
                        if Bool.random() { set.remove(sandbox) }
                        if Bool.random() { await sandbox.close() }
                    }
                }
            }
            try await group.waitForAll()
        }
        isOver.set()
        for stopper in stoppers { await stopper.value }
        let sandbox = try await Self.sandbox(in: set)
        #expect(!sandbox.interruptHandle.isStopped)
    }
}
