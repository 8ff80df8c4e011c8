import Glibc
import Testing

@testable import MicroVM

/// Stops hold a sandbox still, are counted, and give way to whoever ends its call: gVisor's rules for stopping tasks.
@Suite(.requiresKVM, .serialized, .timeLimit(.minutes(5))) struct StopTests {
    private static func sandbox(
        _ replacements: HostFunction...,
        configure: (inout SandboxConfiguration) -> Void = { _ in }
    ) async throws -> Sandbox {
        try await Guest.interruption.sandbox(
            replacements + interruptionFunctions().filter { given in !replacements.contains { $0.name == given.name } },
            configure: configure
        )
    }

    /// Expects a guest that is held not to have moved, also some while later.
    private func expectHeld(_ guest: CountingGuest, sourceLocation: SourceLocation = #_sourceLocation) async throws {
        let seen = guest.laps.value
        try await Task.sleep(for: .milliseconds(5))
        #expect(guest.laps.value == seen, sourceLocation: sourceLocation)
    }

    // MARK: - External stops

    @Test func `a running guest is out when the stop has begun, and goes on after its end`() async throws {
        let guest = try await CountingGuest()
        for _ in 0..<20 {
            try await onThread { Result { try guest.handle.beginExternalStop() } }.get()
            #expect(guest.handle.isStopped && !guest.handle.currentState.has(CallState.running))
            try await expectHeld(guest)
            try guest.handle.endExternalStop()
            await guest.waitForLaps()
        }
        guest.release()
        #expect(try await guest.call.result > 0)
        #expect(try #require(await guest.call.statistics).stoppedDuration > .zero)
    }

    @Test func `the guest goes on when the last of several stops has ended`() async throws {
        let guest = try await CountingGuest()
        for _ in 0..<3 { try guest.handle.beginExternalStop() }
        for _ in 0..<2 {
            try guest.handle.endExternalStop()
            #expect(guest.handle.isStopped)
            try await expectHeld(guest)
        }
        try guest.handle.endExternalStop()
        #expect(!guest.handle.isStopped)
        await guest.waitForLaps()
        guest.release()
        #expect(try await guest.call.result > 0)
    }

    @Test func `while any of several threads holds a stop the guest does not move`() async throws {
        let guest = try await CountingGuest()
        let moved = try await withThrowingTaskGroup(of: Int.self) { group in
            for _ in 0..<4 {
                group.addTask {
                    try await onThread {
                        Result {
                            var moved = 0
                            for _ in 0..<Surroundings.scaled(100) {
                                try guest.handle.beginExternalStop()
                                let seen = guest.laps.value
                                usleep(UInt32.random(in: 0...100))
                                if guest.laps.value != seen { moved += 1 }
                                try guest.handle.endExternalStop()
                                usleep(UInt32.random(in: 0...100))
                            }
                            return moved
                        }
                    }.get()
                }
            }
            return try await group.reduce(0, +)
        }
        #expect(moved == 0 && !guest.handle.isStopped)
        await guest.waitForLaps()
        guest.release()
        #expect(try await guest.call.result > 0)
    }

    #if SYNCHRONIZATION_POINTS
    @Test func `whoever stops second waits for the guest to leave as well`() async throws {
        let guest = try await CountingGuest()
        let mayLeave = Flag()
        guest.handle.points.set(.leavingGuest) { while !mayLeave.isSet { sched_yield() } }
        let returned = Recorder<Int>()
        async let first: Void = onThread {
            try? guest.handle.beginExternalStop()
            returned.append(1)
        }
        await waitUntil { guest.handle.isStopped }
        async let second: Void = onThread {
            try? guest.handle.beginExternalStop()
            returned.append(2)
        }
        await waitUntil { guest.handle.stops.withLock { $0.external } == 2 }
        // The thread is not out yet, so neither is back, and the second one has had the time.
        try await Task.sleep(for: .milliseconds(50))
        #expect(returned.all == [])
        mayLeave.set()
        _ = await (first, second)
        #expect(returned.count == 2)
        guest.handle.points.set(.leavingGuest, nil)
        for _ in 0..<2 { try guest.handle.endExternalStop() }
        guest.release()
        #expect(try await guest.call.result > 0)
    }

    @Test func `whoever stops a set second waits for its guests to leave as well`() async throws {
        let set = SandboxSet()
        let guest = try await CountingGuest { $0.sandboxSet = set }
        let mayLeave = Flag()
        guest.handle.points.set(.leavingGuest) { while !mayLeave.isSet { sched_yield() } }
        let returned = Recorder<Int>()
        async let first: Void = onThread {
            try? set.beginExternalStop()
            returned.append(1)
        }
        await waitUntil { guest.handle.isStopped }
        async let second: Void = onThread {
            try? set.beginExternalStop()
            returned.append(2)
        }
        try await Task.sleep(for: .milliseconds(50))
        #expect(returned.all == [])
        mayLeave.set()
        _ = await (first, second)
        guest.handle.points.set(.leavingGuest, nil)
        for _ in 0..<2 { try set.endExternalStop() }
        guest.release()
        #expect(try await guest.call.result > 0)
    }
    #endif

    @Test func `ending a stop that nobody has begun is an error, and so is one too many`() async throws {
        let sandbox = try await Self.sandbox()
        let handle = sandbox.interruptHandle
        #expect(throws: StopError.underflow) { try handle.endExternalStop() }
        #expect(throws: StopError.internalStop) { try handle.endInternalStop() }
        for _ in 0..<65_535 { try handle.beginExternalStop() }
        for _ in 0..<3 { #expect(throws: StopError.overflow) { try handle.beginExternalStop() } }
        #expect(handle.isStopped)
        for _ in 0..<65_535 { try handle.endExternalStop() }
        #expect(!handle.isStopped)
        #expect(throws: StopError.underflow) { try handle.endExternalStop() }
        #expect(try await sandbox.call("answer") == 42)
    }

    @Test func `a sandbox that is stopped during a host call is held before its next entry`() async throws {
        let entered = Recorder<UInt64>()
        let mayReturn = Flag()
        let sandbox = try await Self.sandbox(
            HostFunction("host_note") { (number: UInt64) -> Int64 in
                entered.append(number)
                while !mayReturn.isSet { sched_yield() }
                return 5
            }
        )
        let call = try sandbox.start("notes", UInt64(1), 3, returning: Int.self)
        await waitUntil { entered.count == 1 }
        // The host function is left alone, and nobody waits for it.
        try sandbox.interruptHandle.beginExternalStop()
        mayReturn.set()
        await sandbox.interruptHandle.waitUntilWaiting()
        try await Task.sleep(for: .milliseconds(5))
        #expect(entered.count == 1)
        try sandbox.interruptHandle.endExternalStop()
        #expect(try await call.result == 5)
        #expect(entered.count == 3)
    }

    @Test func `a stop of an idle sandbox holds its next call before it has entered the guest`() async throws {
        let sandbox = try await Self.sandbox()
        let handle = sandbox.interruptHandle
        try handle.beginExternalStop()
        let guest = try await CountingGuest(in: sandbox)
        await handle.waitUntilWaiting()
        #expect(guest.laps.value == 0 && !handle.currentState.has(CallState.entered))
        try handle.endExternalStop()
        await guest.waitForLaps()
        guest.release()
        #expect(try await guest.call.result > 0)
        #expect(await guest.call.statistics?.exits == 1)
    }

    @Test func `nested calls that a host function makes at once wait for the end of the stop one by one`() async throws
    {
        let entered = Flag()
        let mayCall = Flag()
        let sandbox = try await Self.sandbox(
            HostFunction("host_nest_later") {
                (context: HostCallContext, number: UInt64, depth: Int64) async throws -> Int64 in
                entered.set()
                await waitUntil { mayCall.isSet }
                async let first: Int64 = context.call("iterate", Int64(5))
                // The thread is held on its way into that one when the others come.
                try await Task.sleep(for: .milliseconds(30))
                async let second: Int64 = context.call("iterate", Int64(7))
                async let third: Int64 = context.call("notes", UInt64(1), Int64(3))
                return try await 100 * first + second + third
            }
        )
        let call = try sandbox.start("descend", UInt64(1), Int64(1), returning: Int64.self)
        await waitUntil { entered.isSet }
        try sandbox.interruptHandle.beginExternalStop()
        mayCall.set()
        try await Task.sleep(for: .milliseconds(100))
        try sandbox.interruptHandle.endExternalStop()
        #expect(try await call.result == 508)
        #expect(await call.statistics?.nestedCalls == 3)
    }

    @Test func `a closed sandbox can be stopped no more`() async throws {
        let sandbox = try await Self.sandbox()
        try sandbox.interruptHandle.beginExternalStop()
        await sandbox.close()
        #expect(throws: StopError.dropped) { try sandbox.interruptHandle.beginExternalStop() }
        // Whoever has begun one may end it.
        try sandbox.interruptHandle.endExternalStop()
        #expect(throws: StopError.underflow) { try sandbox.interruptHandle.endExternalStop() }
    }

    // MARK: - What overrides a stop

    enum End: CaseIterable { case kill, killSwitch, cancellation, timeLimit }

    @Test(arguments: End.allCases)
    func `a guest that is held ends at once when its call is ended, and the stop stays`(_ end: End) async throws {
        let sandbox = try await Self.sandbox { $0.countsStoppedTime = true }
        let guest = try await CountingGuest(in: sandbox, timeLimit: end == .timeLimit ? .milliseconds(100) : nil)
        let error = Task { await guest.error() }
        try await onThread { Result { try guest.handle.beginExternalStop() } }.get()
        switch end {
        case .kill: #expect(guest.handle.kill() == .pending)
        case .killSwitch: #expect(try guest.killSwitch.terminate() == .pending)
        case .cancellation: error.cancel()
        case .timeLimit: break
        }
        let code = await error.value?.code
        #expect(code == (end == .timeLimit ? .timeLimitExceeded : end == .cancellation ? .taskCancelled : .killed))
        #expect(guest.handle.isStopped)
        await expectPoisoned(sandbox)
        try guest.handle.endExternalStop()
    }

    @Test(arguments: [End.kill, .killSwitch, .cancellation])
    func `a call that is held before its first entry leaves nothing behind when it is ended`(_ end: End) async throws {
        let sandbox = try await Self.sandbox()
        let handle = sandbox.interruptHandle
        try handle.beginExternalStop()
        let call = try sandbox.start("answer", returning: Int.self)
        let error = Task { await #expect(throws: SandboxError.self) { try await call.result } }
        await handle.waitUntilWaiting()
        switch end {
        case .kill: #expect(handle.kill() == .pending)
        case .killSwitch: #expect(try call.killSwitch.terminate() == .cancelled)
        default: error.cancel()
        }
        #expect(await error.value?.code == (end == .cancellation ? .taskCancelled : .killed))
        try handle.endExternalStop()
        #expect(try await sandbox.call("answer") == 42)
    }

    @Test func `threads stop, start and kill guests at random, and none of them hangs`() async throws {
        for _ in 0..<Surroundings.scaled(60) {
            let guest = try await CountingGuest()
            let error = Task { await guest.error()?.code }
            await withTaskGroup { group in
                for _ in 0..<2 {
                    group.addTask {
                        await onThread {
                            for _ in 0..<5 {
                                // The sandbox may be closed by none: the test holds it.
                                try! guest.handle.beginExternalStop()
                                usleep(UInt32.random(in: 0...30))
                                try! guest.handle.endExternalStop()
                            }
                        }
                    }
                }
                group.addTask {
                    await onThread {
                        usleep(UInt32.random(in: 0...300))
                        guest.handle.kill()
                    }
                }
            }
            #expect(await error.value == .killed)
            #expect(!guest.handle.isStopped)
        }
    }

    // MARK: - Internal stops

    @Test func `a host call begins an internal stop, and somebody else ends it`() async throws {
        let sandbox = try await Self.sandbox(
            HostFunction("host_note") { (context: HostCallContext, number: UInt64) -> Int64 in
                if number == 1 { try context.beginInternalStop(TaskStop("waiting for a child")) }
                return 3
            }
        )
        let handle = sandbox.interruptHandle
        let call = try sandbox.start("note", UInt64(1), returning: Int.self)
        await handle.waitUntilWaiting()
        #expect(handle.isStopped)
        #expect(handle.stops.withLock { $0.internal } == TaskStop("waiting for a child", killable: true))
        // Counted apart from those from outside.
        #expect(throws: StopError.underflow) { try handle.endExternalStop() }
        try handle.beginExternalStop()
        try handle.endInternalStop()
        #expect(throws: StopError.internalStop) { try handle.endInternalStop() }
        #expect(handle.isStopped)
        try handle.endExternalStop()
        #expect(try await call.result == 3)
        #expect(try await sandbox.call("note", UInt64(2), returning: Int.self) == 3)
    }

    @Test func `an internal stop inside of another one is an error`() async throws {
        let errors = Recorder<StopError>()
        let sandbox = try await Self.sandbox(
            HostFunction("host_note") { (context: HostCallContext, _: UInt64) throws -> Int64 in
                try context.beginInternalStop(TaskStop("one"))
                do throws(StopError) { try context.beginInternalStop(TaskStop("two")) } catch { errors.append(error) }
                return 4
            }
        )
        let call = try sandbox.start("note", UInt64(1), returning: Int.self)
        await sandbox.interruptHandle.waitUntilWaiting()
        #expect(errors.all == [.internalStop])
        try sandbox.interruptHandle.endInternalStop()
        #expect(try await call.result == 4)
    }

    @Test func `an internal stop that has ended before the host call has, holds nothing`() async throws {
        let handle = Shared<LinuxInterruptHandle>(nil)
        let sandbox = try await Self.sandbox(
            HostFunction("host_note") { (context: HostCallContext, number: UInt64) throws -> Int64 in
                try context.beginInternalStop(TaskStop("short"))
                try handle.value?.endInternalStop()
                return Int64(number)
            }
        )
        handle.value = sandbox.interruptHandle
        #expect(try await sandbox.call("notes", UInt64(6), 10, returning: Int.self) == 6)
    }

    @Test(arguments: [End.kill, .killSwitch])
    func `a kill ends a killable internal stop`(_ end: End) async throws {
        let sandbox = try await Self.sandbox(
            HostFunction("host_note") { (context: HostCallContext, _: UInt64) -> Int64 in
                try context.beginInternalStop(TaskStop("killable"))
                return 0
            }
        )
        let call = try sandbox.start("note", UInt64(1), returning: Int.self)
        await sandbox.interruptHandle.waitUntilWaiting()
        if end == .kill {
            #expect(sandbox.interruptHandle.kill() == .pending)
        } else {
            #expect(try call.killSwitch.terminate() == .pending)
        }
        let error = await #expect(throws: SandboxError.self) { try await call.result }
        #expect(error?.code == .killed)
    }

    @Test(arguments: [End.kill, .killSwitch])
    func `a kill waits for an internal stop that is not killable`(_ end: End) async throws {
        let sandbox = try await Self.sandbox(
            HostFunction("host_note") { (context: HostCallContext, _: UInt64) -> Int64 in
                try context.beginInternalStop(TaskStop("writing to disk", killable: false))
                return 0
            }
        )
        let handle = sandbox.interruptHandle
        let call = try sandbox.start("note", UInt64(1), returning: Int.self)
        let ended = Flag()
        let error = Task {
            defer { ended.set() }
            return await #expect(throws: SandboxError.self) { try await call.result }
        }
        await handle.waitUntilWaiting()
        if end == .kill {
            #expect(handle.kill() == .pending)
            #expect(handle.kill() == .pending)
        } else {
            #expect(try call.killSwitch.terminate() == .pending)
            #expect(throws: KillError.notTerminable) { try call.killSwitch.terminate() }
        }
        // External stops come and go meanwhile.
        try handle.beginExternalStop()
        try handle.endExternalStop()
        try await Task.sleep(for: .milliseconds(20))
        #expect(!ended.isSet && handle.isStopped)
        try handle.endInternalStop()
        #expect(await error.value?.code == .killed)
        await expectPoisoned(sandbox)
    }

    @Test func `the context of a host call that is over stops nothing`() async throws {
        let kept = Shared<HostCallContext>(nil)
        let sandbox = try await Self.sandbox(
            HostFunction("host_note") { (context: HostCallContext, _: UInt64) -> Int64 in
                kept.value = context
                return 1
            }
        )
        #expect(try await sandbox.call("note", UInt64(1)) == 1)
        #expect(throws: StopError.dropped) { try kept.value?.beginInternalStop(TaskStop("too late")) }
        #expect(!sandbox.interruptHandle.isStopped)
        #expect(try await sandbox.call("answer") == 42)
        #expect(throws: StopError.dropped) { try kept.value?.beginInternalStop(TaskStop("later still")) }
        kept.value = nil
    }

    // MARK: - Time

    @Test func `the time for which a call is held counts towards no limit`() async throws {
        let sandbox = try await Self.sandbox()
        let handle = sandbox.interruptHandle
        try handle.beginExternalStop()
        let guest = try await CountingGuest(in: sandbox, timeLimit: .seconds(2), cpuTimeLimit: .seconds(2))
        // Held longer than the limit, in two pieces, of which the second begins in the guest.
        try await Task.sleep(for: .milliseconds(1300))
        try handle.endExternalStop()
        await guest.waitForLaps()
        try await onThread { Result { try handle.beginExternalStop() } }.get()
        try await Task.sleep(for: .milliseconds(1300))
        try handle.endExternalStop()
        guest.release()
        #expect(try await guest.call.result > 0)
        let statistics = try #require(await guest.call.statistics)
        #expect(statistics.stoppedDuration >= .milliseconds(2500))
        #expect(statistics.duration > statistics.stoppedDuration)
    }

    @Test func `a limit goes on where the stop has held it`() async throws {
        let guest = try await CountingGuest(in: Self.sandbox(), timeLimit: .milliseconds(300))
        for _ in 0..<3 {
            try await onThread { Result { try guest.handle.beginExternalStop() } }.get()
            try guest.handle.endExternalStop()
        }
        #expect(await guest.error()?.code == .timeLimitExceeded)
    }

    @Test func `where stopped time counts, a limit ends a call that is held`() async throws {
        let sandbox = try await Self.sandbox { $0.countsStoppedTime = true }
        try sandbox.interruptHandle.beginExternalStop()
        let error = await #expect(throws: SandboxError.self) {
            try await sandbox.call("answer", timeLimit: .milliseconds(50), returning: Int.self)
        }
        #expect(error?.code == .timeLimitExceeded)
        #expect(try #require(error?.statistics).stoppedDuration > .zero)
        try sandbox.interruptHandle.endExternalStop()
        // No guest code had run.
        #expect(try await sandbox.call("answer") == 42)
    }
}
