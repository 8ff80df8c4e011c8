import Glibc
import Testing

@testable import MicroVM

#if SYNCHRONIZATION_POINTS
/// A switch ends its own call at every moment of it, and says what it found. The cases are those of Lucet's kill
/// switch; where that resets an instance, a new sandbox of the same module takes over.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct KillSwitchTests {
    /// What came of a call whose switch was used at a named moment.
    private struct Ending {
        var answer: KillAnswer
        var end: CallEnd
        var sandbox: Sandbox
        var killSwitch: KillSwitch
        var statistics: CallStatistics?
    }

    /// Calls a function of a new sandbox, and terminates the call where its thread gets to a point.
    private func terminate(
        at point: SynchronizationPoint,
        _ occurrence: Int = 1,
        of function: String = "answer",
        in guest: Guest = .spin,
        _ hostFunctions: [HostFunction] = []
    ) async throws -> Ending {
        let sandbox = try await guest.sandbox(hostFunctions)
        let killSwitch = Shared<KillSwitch>(nil)
        let answer = Shared<KillAnswer>(nil)
        sandbox.interruptHandle.once(at: point, occurrence: occurrence) { answer.value = killSwitch.block().answer() }
        let call = try sandbox.start(function)
        killSwitch.value = call.killSwitch
        let end = await CallEnd(call)
        sandbox.interruptHandle.points.set(point, nil)
        return Ending(
            answer: await onThread { answer.block() },
            end: end,
            sandbox: sandbox,
            killSwitch: call.killSwitch,
            statistics: await call.statistics
        )
    }

    private func expectNewSandboxWorks(_ guest: Guest = .spin) async throws {
        let functions = guest == .hostCalls ? hostFunctions() : []
        let sandbox = try await guest.sandbox(functions)
        if guest == .hostCalls {
            #expect(try await sandbox.call("call_add", 40, 2) == 42)
        } else {
            #expect(try await sandbox.call("answer") == 42)
        }
    }

    /// A call that spins, by name.
    private func spinning(in sandbox: Sandbox) async throws -> GuestCall<Void> {
        let word = try await SharedWord(of: sandbox)
        word.value = 0
        let call: GuestCall<Void> = try sandbox.start("spin_and_say_so", word.address)
        await waitUntil { word.value == 1 }
        return call
    }

    // MARK: - In the guest

    @Test func `a call in the guest is signalled, its switch is invalid afterwards, and a new call's switch is not`()
        async throws
    {
        let sandbox = try await Guest.spin.sandbox()
        let call = try await spinning(in: sandbox)
        let other = call.killSwitch
        #expect(await onThread { call.killSwitch.answer() } == .success(.signalled))
        let end = await CallEnd(call)
        #expect(end.code == .killed && end.sandboxError?.interruption?.symbol?.name == "spin_and_say_so")
        #expect(other.answer() == .failure(.invalid) && call.killSwitch.answer() == .failure(.invalid))
        #expect(await isPoisoned(sandbox))

        let next = try await Guest.spin.sandbox()
        let fresh = try await next.run { next in
            let fresh: GuestCall<Int> = try next.start("answer")
            #expect(fresh.killSwitch.answer() == .success(.cancelled))
            return fresh
        }
        #expect(await CallEnd(fresh).code == .killed)
        #expect(try await next.call("answer") == 42)
    }

    @Test func `a kill before the entry keeps guest code from running, and the sandbox stays good`() async throws {
        for point in [SynchronizationPoint.callBegun, .enteringGuest] {
            let ending = try await terminate(at: point)
            #expect(ending.answer == .success(.cancelled) && ending.end.code == .killed)
            #expect(ending.statistics?.exits == 0)
            #expect(try await ending.sandbox.call("answer") == 42)
        }
    }

    @Test func `a kill behind the point of no return kicks the guest out`() async throws {
        for function in ["spin", "answer"] {
            let ending = try await terminate(at: .enteredGuest, of: function)
            #expect(ending.answer == .success(.signalled) && ending.end.code == .killed)
            #expect(await isPoisoned(ending.sandbox))
        }
    }

    @Test func `a kill while the guest is left ends the call, though its function has returned`() async throws {
        let ending = try await terminate(at: .leavingGuest)
        #expect(ending.answer == .success(.signalled) && ending.end.code == .killed)
        #expect(ending.killSwitch.answer() == .failure(.invalid))
        #expect(await isPoisoned(ending.sandbox))
        try await expectNewSandboxWorks()
    }

    @Test func `a kill after the guest was left for good is too late`() async throws {
        let ending = try await terminate(at: .decided)
        #expect(ending.answer == .failure(.notTerminable) && ending.end.hasReturned)
        #expect(ending.killSwitch.answer() == .failure(.invalid))
        #expect(try await ending.sandbox.call("answer") == 42)
    }

    @Test func `a guest that returns between request and kick ends as killed, and its killer hits nobody else`()
        async throws
    {
        let sandbox = try await Guest.spin.sandbox()
        let word = try await SharedWord(of: sandbox)
        let requested = Flag()
        let isOver = Flag()
        sandbox.interruptHandle.points.set(.requested) {
            requested.set()
            isOver.block()
        }
        let call: GuestCall<Void> = try sandbox.start("spin_until", word.address)
        await waitUntil { word.value == 1 }
        async let answer = onThread { call.killSwitch.answer() }
        await waitUntil { requested.isSet }
        word.value = 2
        #expect(await CallEnd(call).code == .killed)
        isOver.set()
        #expect(await answer == .success(.signalled))
        #expect(await isPoisoned(sandbox))
        #expect(sandbox.interruptHandle.spuriousKicks == 0)
    }

    // MARK: - Faults

    @Test func `a fault that came before the kick is what the call ends with`() async throws {
        let ending = try await terminate(at: .leavingGuest, of: "write_null", in: .faults)
        #expect(ending.answer == .success(.signalled))
        #expect(ending.end.sandboxError?.fault?.kind == .memoryAccess)
        #expect(ending.statistics?.exits == 1)
        try await expectNewSandboxWorks(.faults)
    }

    @Test func `a call whose fault is settled cannot be terminated`() async throws {
        let ending = try await terminate(at: .decided, of: "write_null", in: .faults)
        #expect(ending.answer == .failure(.notTerminable))
        #expect(ending.end.sandboxError?.fault?.kind == .memoryAccess)
        try await expectNewSandboxWorks(.faults)
    }

    @Test func `after a fault the switch is invalid`() async throws {
        let sandbox = try await Guest.faults.sandbox()
        let call = try sandbox.start("write_null")
        #expect(await CallEnd(call).code == .guestFault)
        #expect(call.killSwitch.answer() == .failure(.invalid))
        try await expectNewSandboxWorks(.faults)
    }

    // MARK: - Host calls

    @Test func `a kill in a host function waits for it, and the call ends then`() async throws {
        let entered = Flag()
        let killed = Flag()
        let ended = Flag()
        let tick = HostFunction("host_tick") { () in
            entered.set()
            killed.block()
            ended.set()
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(tick))
        let call = try sandbox.start("tick_in_a_loop", 10)
        await waitUntil { entered.isSet }
        #expect(call.killSwitch.answer() == .success(.pending))
        #expect(call.killSwitch.answer() == .failure(.notTerminable))
        #expect(!ended.isSet)
        killed.set()
        let end = await CallEnd(call)
        #expect(ended.isSet && end.code == .killed)
        #expect(end.sandboxError?.interruption?.hostFunction == "host_tick")
        #expect(await call.statistics?.hostCalls == 1)
        #expect(await isPoisoned(sandbox, "call_tick"))
        try await expectNewSandboxWorks(.hostCalls)
    }

    @Test func `a kill on the way to a host function ends the call before it or after it`() async throws {
        for (point, answer, calls) in [
            (.leavingGuest, .signalled, 0), (.leftGuest, .pending, 1), (.enteringHostFunction, .pending, 1),
        ] as [(SynchronizationPoint, KillSuccess, Int)] {
            let ticks = Recorder<Bool>()
            let tick = HostFunction("host_tick") { (context: HostCallContext) in ticks.append(context.isCancelled) }
            let ending = try await terminate(at: point, of: "call_tick", in: .hostCalls, hostFunctions(tick))
            #expect(ending.answer == .success(answer) && ending.end.code == .killed)
            // One that is called all the same knows that it need not do much.
            #expect(ticks.all == Array(repeating: true, count: calls))
            #expect(await isPoisoned(ending.sandbox, "call_tick"))
        }
    }

    @Test func `a kill on the way back from a host function ends the call before the guest goes on`() async throws {
        for (point, occurrence, answer) in [
            (.leftHostFunction, 1, .pending), (.enteringGuest, 2, .pending), (.enteredGuest, 2, .signalled),
        ] as [(SynchronizationPoint, Int, KillSuccess)] {
            let ticks = Counter()
            let tick = HostFunction("host_tick") { () in _ = ticks.next() }
            let sandboxFunctions = hostFunctions(tick)
            let ending = try await terminate(at: point, occurrence, of: "call_tick", in: .hostCalls, sandboxFunctions)
            #expect(ending.answer == .success(answer) && ending.end.code == .killed)
            #expect(ticks.value == 1)
            #expect(await isPoisoned(ending.sandbox, "call_tick"))
        }
    }

    @Test func `a host function terminates its own call, once`() async throws {
        let killSwitch = Shared<KillSwitch>(nil)
        let answers = Recorder<KillAnswer>()
        let add = HostFunction("host_add") { (left: Int, right: Int) -> Int in
            if right == 5 { for _ in 0..<3 { answers.append(killSwitch.block().answer()) } }
            return left + right
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(add))
        let call: GuestCall<Int> = try sandbox.start("add_in_a_loop", 1000)
        killSwitch.value = call.killSwitch
        #expect(await CallEnd(call).code == .killed)
        #expect(answers.all == [.success(.pending), .failure(.notTerminable), .failure(.notTerminable)])
        #expect(await call.statistics?.hostCalls == 6)
    }

    // MARK: - Held

    @Test func `a call that is held by a stop is pending, and ends without waiting for the stop`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let call = try await spinning(in: sandbox)
        try await onThread { Result { () throws(StopError) in try sandbox.interruptHandle.beginExternalStop() } }.get()
        #expect(call.killSwitch.answer() == .success(.pending))
        #expect(await CallEnd(call).code == .killed)
        #expect(sandbox.interruptHandle.isStopped)
        try sandbox.interruptHandle.endExternalStop()
        #expect(await isPoisoned(sandbox))
    }

    @Test func `a call that waits in a host function is pending, then not terminable, and ends when that has`()
        async throws
    {
        let waits = Flag()
        let goesOn = Flag()
        let tick = HostFunction("host_tick") { () async in
            waits.set()
            // In spite of the cancellation, and without a thread of the pool.
            await onThread { goesOn.block() }
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(tick))
        let call = try sandbox.start("call_tick")
        await waitUntil { waits.isSet }
        #expect(call.killSwitch.answer() == .success(.pending))
        #expect(call.killSwitch.answer() == .failure(.notTerminable))
        goesOn.set()
        #expect(await CallEnd(call).code == .killed)
        #expect(call.killSwitch.answer() == .failure(.invalid))
        try await expectNewSandboxWorks(.hostCalls)
    }

    @Test func `a stop that no kill ends is waited for`() async throws {
        let ticked = Flag()
        let tick = HostFunction("host_tick") { (context: HostCallContext) throws in
            try context.beginInternalStop(TaskStop("held", killable: false))
            ticked.set()
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(tick))
        let call = try sandbox.start("call_tick")
        await waitUntil { ticked.isSet }
        #expect(call.killSwitch.answer() == .success(.pending))
        #expect(call.killSwitch.answer() == .failure(.notTerminable))
        #expect(sandbox.interruptHandle.isStopped)
        try sandbox.interruptHandle.endInternalStop()
        #expect(await CallEnd(call).code == .killed)
    }

    // MARK: - Over, and not begun

    @Test func `a switch outlives its sandbox`() async throws {
        let killSwitch: KillSwitch
        do {
            let sandbox = try await Guest.spin.sandbox()
            let call: GuestCall<Int> = try sandbox.start("answer")
            killSwitch = call.killSwitch
            #expect(try await call.result == 42)
        }
        await waitUntil { killSwitch.interruptHandle.isDropped }
        #expect(killSwitch.answer() == .failure(.invalid))
    }

    @Test func `a switch of a call that returned is invalid, and the sandbox runs on`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        var switches: [KillSwitch] = []
        for _ in 0..<20 {
            let call: GuestCall<Int> = try sandbox.start("answer")
            #expect(try await call.result == 42)
            switches.append(call.killSwitch)
            for killSwitch in switches { #expect(killSwitch.answer() == .failure(.invalid)) }
        }
    }

    @Test func `a second termination after the end is invalid, and a new sandbox's call can be cancelled`() async throws
    {
        let sandbox = try await Guest.spin.sandbox()
        let call = try await spinning(in: sandbox)
        #expect(await onThread { call.killSwitch.answer() } == .success(.signalled))
        #expect(await CallEnd(call).code == .killed)
        #expect(call.killSwitch.answer() == .failure(.invalid))
        let ending = try await terminate(at: .enteringGuest)
        #expect(ending.answer == .success(.cancelled) && ending.end.code == .killed)
    }

    @Test func `a call that waits for its turn is cancelled once, runs no guest code, and poisons nothing`()
        async throws
    {
        let sandbox = try await Guest.spin.sandbox()
        let word = try await SharedWord(of: sandbox)
        let other = try await SharedWord(of: sandbox, index: 1)
        let occupant: GuestCall<Void> = try sandbox.start("spin_until", word.address)
        await waitUntil { word.value == 1 }
        let call = try sandbox.start("spin_and_say_so", other.address)
        #expect(call.killSwitch.answer() == .success(.cancelled))
        #expect(call.killSwitch.answer() == .failure(.notTerminable))
        // The one whose turn it is knows nothing of it.
        #expect(sandbox.interruptHandle.currentState.reason == nil)
        word.value = 2
        try await occupant.result
        let end = await CallEnd(call)
        #expect(end.code == .killed && other.value == 0)
        #expect(end.sandboxError?.interruption?.symbol?.name == "spin_and_say_so")
        #expect(await call.statistics?.exits == 0)
        #expect(call.killSwitch.answer() == .failure(.invalid))
        #expect(try await sandbox.call("answer") == 42)
    }

    @Test func `a switch from before means nothing to the sandbox that takes over`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let call = try await spinning(in: sandbox)
        #expect(await onThread { call.killSwitch.answer() } == .success(.signalled))
        #expect(await CallEnd(call).code == .killed)
        let next = try await Guest.spin.sandbox()
        let spinning = try await spinning(in: next)
        #expect(call.killSwitch.answer() == .failure(.invalid))
        #expect(next.interruptHandle.currentState.reason == nil)
        #expect(await onThread { spinning.killSwitch.answer() } == .success(.signalled))
        #expect(await CallEnd(spinning).code == .killed)
    }
}
#endif
