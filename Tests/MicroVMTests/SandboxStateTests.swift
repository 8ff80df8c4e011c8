import Glibc
import Testing

@testable import MicroVM

/// What a sandbox that is held still is in the middle of.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct SandboxStateTests {
    @Test func `the state of a running guest has its registers, and the guest goes on`() async throws {
        let guest = try await HoldingGuest()
        let function = try guest.sandbox.module.exportedFunction(named: "hold_registers")
        for _ in 0..<20 {
            let seen = guest.laps.value
            let state = try await guest.sandbox.pullFullState()
            #expect(HeldRegisters(state, isWide: try HoldingGuest.isWide) == guest.known)
            #expect(state.isInCall && state.hostFunction == nil && state.callDepth == 0)
            #expect(state.symbol?.name == "hold_registers" && state.instructionPointer == state.registers.rip)
            #expect(state.symbol.map { $0.offset < function.size } == true)
            #expect(state.extendedState.count >= 4096)
            #expect(state.statistics.duration > .zero && state.statistics.exits > 0)
            await waitUntil { guest.laps.value != seen }
        }
        #expect(try await guest.release() == guest.known)
        #expect(!guest.sandbox.interruptHandle.isStopped)
    }

    @Test func `the state of a stopped guest is pulled without starting it`() async throws {
        let guest = try await CountingGuest()
        try await onThread { Result { try guest.handle.beginExternalStop() } }.get()
        let laps = guest.laps.value
        let first = try await guest.sandbox.pullFullState()
        let second = try await guest.sandbox.pullFullState()
        #expect(first.registers == second.registers && first.extendedState == second.extendedState)
        #expect(first.symbol?.name == "count_until" && guest.laps.value == laps && guest.handle.isStopped)
        #expect(first.fsBase == second.fsBase && first.fsBase != 0)
        try guest.handle.endExternalStop()
        guest.release()
        #expect(try await guest.call.result >= laps)
    }

    @Test func `the state of a call in a call tells its depth`() async throws {
        let place = Shared<UInt64>(nil)
        let sandbox = try await Guest.interruption.sandbox(
            interruptionFunctions(
                // The innermost host call counts instead of going further down.
                HostFunction("host_nest_later") {
                    (context: HostCallContext, number: UInt64, depth: Int64) async throws -> Int64 in
                    try await Int64(clamping: context.call("count_until", place.value ?? 0, returning: UInt64.self))
                }
            )
        )
        let word = try await SharedWord(of: sandbox)
        let end = try await SharedWord(of: sandbox, at: word.address + 8)
        place.value = word.address
        // descend(2) → host_nest(1) → descend(1) → host_nest_later(0) → count_until
        let call = try sandbox.start("descend", UInt64(1), Int64(2), returning: Int64.self)
        await waitUntil { word.value > 0 }
        let state = try await sandbox.pullFullState()
        #expect(state.callDepth == 2 && state.symbol?.name == "count_until" && state.statistics.nestedCalls == 2)
        end.value = 1
        _ = try await call.result
    }

    @Test func `the state during an asynchronous host function names it`() async throws {
        let mayReturn = Flag()
        let sandbox = try await Guest.interruption.sandbox(
            interruptionFunctions(
                HostFunction("host_wait") { (number: UInt64) async throws -> Void in await waitUntil { mayReturn.isSet }
                }
            )
        )
        let call = try sandbox.start("wait", UInt64(3))
        await sandbox.interruptHandle.waitUntilWaiting()
        for _ in 0..<3 {
            let state = try await sandbox.pullFullState()
            #expect(state.isInCall && state.hostFunction == "host_wait" && state.callDepth == 0)
            // The place is the guest's own, not that of the thunk.
            #expect(state.symbol?.name == "wait" && state.statistics.hostCalls == 1)
        }
        mayReturn.set()
        try await call.result
    }

    @Test func `a synchronous host function is not waited for`() async throws {
        let entered = Flag()
        let mayReturn = Flag()
        let sandbox = try await Guest.interruption.sandbox(
            interruptionFunctions(
                HostFunction("host_note") { (_: UInt64) -> Int64 in
                    entered.set()
                    while !mayReturn.isSet { sched_yield() }
                    return 8
                }
            )
        )
        let call = try sandbox.start("note", UInt64(1), returning: Int.self)
        await waitUntil { entered.isSet }
        let state = try await sandbox.pullFullState()
        #expect(state.hostFunction == "host_note" && state.symbol?.name == "note" && state.statistics.hostCalls == 1)
        // A snapshot is, and then caught before the guest goes on.
        let snapshot = Task { try await sandbox.snapshot() }
        await waitUntil { sandbox.interruptHandle.isStopped }
        mayReturn.set()
        #expect(try await snapshot.value.isInCall)
        #expect(try await call.result == 8)
    }

    @Test func `the CPU time of a call in a synchronous host function is its thread's, whoever asks`() async throws {
        let entered = Flag()
        let mayReturn = Flag()
        let sandbox = try await Guest.interruption.sandbox(
            interruptionFunctions(
                HostFunction("host_note") { (_: UInt64) -> Int64 in
                    entered.set()
                    while !mayReturn.isSet { sched_yield() }
                    return 8
                }
            )
        )
        // So that the thread has used more CPU time before the call than the one that asks ever has.
        _ = try await sandbox.call("iterate", 20_000_000, returning: Int.self)
        let call = try sandbox.start("note", UInt64(1), returning: Int.self)
        await waitUntil { entered.isSet }
        let first = try await sandbox.pullFullState().statistics
        let cpuTime = try #require(first.cpuTime)
        #expect(cpuTime >= .zero && cpuTime <= first.duration + .milliseconds(1))
        mayReturn.set()
        _ = try await call.result
        #expect(try #require(await call.statistics?.cpuTime) >= cpuTime)
    }

    @Test func `what a guest writes is its sandbox's own memory until it is restored`() async throws {
        let sandbox = try await Guest.state.sandbox()
        let snapshot = try await sandbox.snapshot()
        let restored = try await Sandbox(from: snapshot)
        let before = try #require(try await restored.pullFullState().ownMemory)
        try await restored.call("write_pages", 0 as UInt64, 100 as UInt64, 1 as UInt64, 1 as UInt64)
        let after = try #require(try await restored.pullFullState().ownMemory)
        #expect(after >= before + 100 * 4096 && after < 16 << 20)
    }

    @Test func `an idle sandbox has the state its last call left`() async throws {
        let sandbox = try await Guest.interruption.sandbox(interruptionFunctions())
        #expect(try await sandbox.pullFullState().isInCall == false)
        #expect(try await sandbox.call("notes", UInt64(1), 5, returning: Int.self) == 0)
        let state = try await sandbox.pullFullState()
        #expect(!state.isInCall && state.hostFunction == nil && state.callDepth == 0)
        #expect(state.statistics.hostCalls == 5 && state.statistics.exits == 6)
        #expect(!sandbox.interruptHandle.isStopped)
        #expect(try await sandbox.call("answer") == 42)
    }

    @Test func `a killed call has the state it was killed in`() async throws {
        let guest = try await HoldingGuest()
        let error = Task { await #expect(throws: SandboxError.self) { try await guest.call.result } }
        #expect(await onThread { guest.sandbox.interruptHandle.kill() } == .signalled)
        #expect(await error.value?.code == .killed)
        let state = try await guest.sandbox.pullFullState()
        #expect(HeldRegisters(state, isWide: try HoldingGuest.isWide) == guest.known && !state.isInCall)
    }

    @Test func `a closed sandbox has no state`() async throws {
        let sandbox = try await Guest.interruption.sandbox(interruptionFunctions())
        await sandbox.close()
        let error = await #expect(throws: SandboxError.self) { try await sandbox.pullFullState() }
        #expect(error?.code == .closed)
    }

    @Test func `a host function does not wait for its own sandbox's state`() async throws {
        let sandboxes = Shared<Sandbox>(nil)
        let codes = Recorder<SandboxError.Code?>()
        let sandbox = try await Guest.interruption.sandbox(
            interruptionFunctions(
                HostFunction("host_wait") { (number: UInt64) async throws -> Void in
                    do { _ = try await sandboxes.value?.pullFullState() } catch {
                        codes.append((error as? SandboxError)?.code)
                    }
                }
            )
        )
        sandboxes.value = sandbox
        try await sandbox.call("wait", UInt64(1))
        #expect(codes.all == [.reentrantCall])
        sandboxes.value = nil
    }

    @Test func `a state that is asked for behind a nested call is told while the stop holds that call`() async throws {
        let entered = Flag()
        let mayCall = Flag()
        let mayLook = Flag()
        let sandbox = try await Guest.interruption.sandbox(
            interruptionFunctions(
                HostFunction("host_nest_later") {
                    (context: HostCallContext, number: UInt64, depth: Int64) async throws -> Int64 in
                    entered.set()
                    await waitUntil { mayCall.isSet }
                    return try await context.call("descend", number, depth)
                }
            )
        )
        let thread = try await sandbox.run { $0.reference.thread }
        let call = try sandbox.start("descend", UInt64(1), Int64(1), returning: Int64.self)
        await waitUntil { entered.isSet }
        // The thread is busy until both have come, the nested call first.
        thread.addInterlude(.observation) { while !mayLook.isSet { sched_yield() } }
        mayCall.set()
        try await Task.sleep(for: .milliseconds(50))
        async let state = sandbox.pullFullState()
        await waitUntil { sandbox.interruptHandle.isStopped }
        try await Task.sleep(for: .milliseconds(50))
        mayLook.set()
        #expect(try await state.isInCall)
        #expect(try await call.result == 1)
    }

    @Test func `states are pulled while calls come and go`() async throws {
        let sandbox = try await Guest.interruption.sandbox(interruptionFunctions())
        let isOver = Flag()
        // As fast as they can: they may slow the guest down, and not hold it up.
        let pulling = (0..<3).map { _ in Task { while !isOver.isSet { _ = try await sandbox.pullFullState() } } }
        for depth in 0..<Surroundings.scaled(60) {
            #expect(try await sandbox.call("descend", UInt64(1), Int64(depth % 6)) == depth % 6)
            #expect(try await sandbox.call("waits", UInt64(1), 3) == 3)
        }
        isOver.set()
        for task in pulling { try await task.value }
        #expect(!sandbox.interruptHandle.isStopped)
    }
}
