import Glibc
import Synchronization
import Testing

@testable import MicroVM

/// A call can be ended from any thread, and the one after it is never hit.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct KillTests {
    @Test func `a spinning guest is killed, and the error says where it was`() async throws {
        let guest = try await SpinningGuest()
        #expect(await onThread { guest.handle.kill() } == .signalled)
        let error = try #require(await guest.call.value)
        #expect(error.code == .killed && error.fault == nil && error.message.contains("spin_and_say_so"))
        let interruption = try #require(error.interruption)
        #expect(interruption.symbol?.name == "spin_and_say_so" && interruption.hostFunction == nil)
        #expect(interruption.duration > .zero && interruption.registers.rip == interruption.instructionPointer)
        let layout = try await guest.sandbox.run { try $0.memory.addressSpace }
        #expect(layout.stack.contains(interruption.registers.rsp))
        #expect(interruption.registers.rdi == layout.heap.lowerBound)
        await expectPoisoned(guest.sandbox)
        await expectPoisoned(guest.sandbox)
    }

    @Test(arguments: ["spin_and_count", "spin_with_host_calls", "spin_with_output"])
    func `whatever a guest does for ever can be killed`(_ function: String) async throws {
        let sandbox = try await Guest.spin.sandbox()
        let call = Task { await #expect(throws: SandboxError.self) { try await sandbox.call(function) } }
        await onThread { while sandbox.interruptHandle.kill() == .notRunning { sched_yield() } }
        let error = await call.value
        #expect(error?.code == .killed)
        // Its place is the guest's own also when the library's code was at work for it.
        if let interruption = error?.interruption { #expect(interruption.symbol?.name == function) }
    }

    @Test func `a kill of nothing does nothing, now or later`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        for _ in 0..<100 {
            for _ in 0..<3 { #expect(sandbox.interruptHandle.kill() == .notRunning) }
            #expect(try await sandbox.call("answer") == 42)
        }
        #expect(!sandbox.interruptHandle.isDropped)
    }

    @Test func `a second kill finds nothing left to do`() async throws {
        let guest = try await SpinningGuest()
        #expect(await onThread { guest.handle.kill() } == .signalled)
        #expect(await guest.call.value?.code == .killed)
        #expect(guest.handle.kill() == .notRunning)
        await expectPoisoned(guest.sandbox)
        #expect(guest.handle.kill() == .notRunning)
    }

    @Test func `eight threads kill one call together`() async throws {
        for _ in 0..<(Surroundings.isEmulated ? 5 : 20) {
            let guest = try await SpinningGuest()
            let outcomes = await withTaskGroup(of: LinuxInterruptHandle.KillOutcome.self) { group in
                for _ in 0..<8 { group.addTask { await onThread { guest.handle.kill() } } }
                return await group.reduce(into: []) { $0.append($1) }
            }
            #expect(await guest.call.value?.code == .killed)
            #expect(outcomes.contains(.signalled) && !outcomes.contains(.dropped))
            await guest.sandbox.close()
        }
    }

    #if SYNCHRONIZATION_POINTS
    // With a sanitizer nobody sleeps for longer than a few milliseconds, and killers kick as often.
    @Test(.enabled(if: !Surroundings.isSanitized))
    func `however long eight threads wait for a guest to leave, they send it few signals`() async throws {
        let sandbox = try await Guest.spin.sandbox { $0.interruptRetryDelay = .nanoseconds(1) }
        let handle = sandbox.interruptHandle
        let (entered, mayGoOn) = (Flag(), Flag())
        let requests = Atomic<Int>(0)
        let signals = Atomic<Int>(0)
        handle.points.set(.requested) { requests.add(1, ordering: .relaxed) }
        handle.points.set(.enteredGuest) {
            // RUNNING is set, and signals are kept back, as where the thread does not get on: then they are counted.
            // What they would have done to the thread has been done by the killers.
            var signal = sigset_t()
            unsafe sigemptyset(&signal)
            unsafe sigaddset(&signal, __libc_current_sigrtmin())
            unsafe pthread_sigmask(SIG_BLOCK, &signal, nil)
            entered.set()
            while !mayGoOn.isSet { usleep(100) }
            var noTime = timespec()
            while unsafe sigtimedwait(&signal, nil, &noTime) > 0 { signals.add(1, ordering: .relaxed) }
            unsafe pthread_sigmask(SIG_UNBLOCK, &signal, nil)
        }
        let call = Task { await #expect(throws: SandboxError.self) { try await sandbox.call("spin") } }
        await waitUntil { entered.isSet }
        async let outcomes = withTaskGroup(of: LinuxInterruptHandle.KillOutcome.self) { group in
            for _ in 0..<8 { group.addTask { await onThread { handle.kill() } } }
            return await group.reduce(into: []) { $0.append($1) }
        }
        await waitUntil { requests.load(ordering: .relaxed) == 8 }
        try await Task.sleep(for: .milliseconds(300))
        mayGoOn.set()
        #expect(await outcomes == Array(repeating: .signalled, count: 8))
        #expect(await call.value?.code == .killed)
        handle.points.set(.enteredGuest, nil)
        // After 28 each has waited for a quarter of a second, and sends four a second from then on.
        #expect(signals.load(ordering: .relaxed) <= 8 * 40)
    }
    #endif

    // MARK: - Host calls

    @Test func `a kill during a host call takes effect when the host function has ended`() async throws {
        let entered = Flag()
        let killed = Flag()
        let ended = Flag()
        let sandbox = try await Guest.hostCalls.sandbox(
            hostFunctions(
                HostFunction("host_tick") { () in
                    entered.set()
                    while !killed.isSet { sched_yield() }
                    ended.set()
                }
            )
        )
        let call = Task { await #expect(throws: SandboxError.self) { try await sandbox.call("tick_in_a_loop", 10) } }
        await waitUntil { entered.isSet }
        #expect(sandbox.interruptHandle.kill() == .pending)
        #expect(sandbox.interruptHandle.kill() == .pending)
        #expect(!ended.isSet)
        killed.set()
        let error = await call.value
        #expect(ended.isSet && error?.code == .killed)
        #expect(error?.interruption?.hostFunction == "host_tick")
        #expect(error?.interruption?.symbol?.name == "tick_in_a_loop")
        await expectPoisoned(sandbox, "call_tick")
    }

    @Test func `a host function kills its own call`() async throws {
        let handle = Shared<LinuxInterruptHandle>(nil)
        let outcomes = Recorder<LinuxInterruptHandle.KillOutcome>()
        let sandbox = try await Guest.hostCalls.sandbox(
            hostFunctions(
                HostFunction("host_add") { (left: Int64, right: Int64) -> Int64 in
                    if right == 5, let outcome = handle.value?.kill() { outcomes.append(outcome) }
                    return left + right
                }
            )
        )
        handle.value = sandbox.interruptHandle
        let error = await #expect(throws: SandboxError.self) { try await sandbox.call("add_in_a_loop", 1_000) }
        #expect(error?.code == .killed && error?.interruption?.hostFunction == "host_add")
        #expect(outcomes.all == [.pending])
        handle.value = nil
    }

    @Test func `a kill comes before the error that the host function throws after it`() async throws {
        struct Own: Error {}
        let handle = Shared<LinuxInterruptHandle>(nil)
        let sandbox = try await Guest.hostCalls.sandbox(
            hostFunctions(
                HostFunction("host_tick") { () in
                    handle.value?.kill()
                    throw Own()
                }
            )
        )
        handle.value = sandbox.interruptHandle
        let error = await #expect(throws: SandboxError.self) { try await sandbox.call("call_tick") }
        #expect(error?.code == .killed && error?.underlyingError is Own)
        await expectPoisoned(sandbox, "call_tick")
        handle.value = nil
    }

    // MARK: - The end of a sandbox

    @Test func `nothing is left to kill after closing`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let handle = sandbox.interruptHandle
        #expect(!handle.isDropped)
        await sandbox.close()
        #expect(handle.isDropped && handle.kill() == .dropped)
    }

    @Test func `nothing is left to kill when the sandbox is gone`() async throws {
        let handle: LinuxInterruptHandle
        do {
            let sandbox = try await Guest.spin.sandbox()
            handle = sandbox.interruptHandle
            #expect(try await sandbox.call("answer") == 42)
        }
        await waitUntil { handle.isDropped }
        #expect(handle.kill() == .dropped)
    }

    @Test func `kills race with the end of sandboxes`() async throws {
        for _ in 0..<50 {
            let sandbox = try await Guest.spin.sandbox()
            let handle = sandbox.interruptHandle
            async let kills: Void = withTaskGroup { group in
                for _ in 0..<4 {
                    group.addTask { await onThread { while handle.kill() != .dropped {} } }
                }
            }
            _ = try? await sandbox.call("iterate", 1000, returning: Int.self)
            await sandbox.close()
            await kills
        }
    }

    @Test func `a kill ends its own sandbox's call and no other`() async throws {
        let bystanders = [try await SpinningGuest(), try await SpinningGuest()]
        for _ in 0..<(Surroundings.isEmulated ? 3 : 10) {
            let victim = try await SpinningGuest()
            #expect(await onThread { victim.handle.kill() } == .signalled)
            #expect(await victim.call.value?.code == .killed)
        }
        for guest in bystanders {
            #expect(guest.handle.spuriousKicks == 0)
            #expect(await onThread { guest.handle.kill() } == .signalled)
            #expect(await guest.call.value?.code == .killed)
        }
    }

    @Test(arguments: [Duration.nanoseconds(1), .seconds(600)])
    func `the delay between kicks decides nothing`(_ delay: Duration) async throws {
        for _ in 0..<(Surroundings.isEmulated ? 2 : 10) {
            let guest = try await SpinningGuest { $0.interruptRetryDelay = delay }
            #expect(await onThread { guest.handle.kill() } == .signalled)
            #expect(await guest.call.value?.code == .killed)
        }
    }
}
