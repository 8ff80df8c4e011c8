import Glibc
import Testing

@testable import MicroVM

/// Calls with a name of their own: awaited by whom one likes, and ended one by one.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct GuestCallTests {
    private static let rounds = Surroundings.isEmulated ? 5 : 40

    /// A call that spins.
    private func spinning(in sandbox: Sandbox) async throws -> GuestCall<Void> {
        let word = try await SharedWord(of: sandbox)
        word.value = 0
        let call: GuestCall<Void> = try sandbox.start("spin_and_say_so", word.address)
        await waitUntil { word.value == 1 }
        return call
    }

    // MARK: - Switches of other calls

    @Test func `switches of calls that are over do nothing to one that spins`() async throws {
        // Work that comes while the guest polls gets it out, and may be a moment too late for that.
        let sandbox = try await Guest.spin.sandbox { $0.polling = .never }
        var old: [KillSwitch] = []
        for _ in 0..<8 {
            let call: GuestCall<Int> = try sandbox.start("answer")
            #expect(try await call.result == 42)
            old.append(call.killSwitch)
        }
        let call = try await spinning(in: sandbox)
        let switches = old
        let answers = await withTaskGroup(of: [KillAnswer].self) { group in
            for _ in 0..<4 {
                group.addTask { await onThread { (0..<250).flatMap { _ in switches.map { $0.answer() } } } }
            }
            return await group.reduce(into: []) { $0 += $1 }
        }
        #expect(answers.count == 8000 && answers.allSatisfy { $0 == .failure(.invalid) })
        #expect(sandbox.interruptHandle.currentState.reason == nil && sandbox.interruptHandle.spuriousKicks == 0)
        #expect(await onThread { call.killSwitch.answer() } == .success(.signalled))
        #expect(await CallEnd(call).code == .killed)
    }

    @Test func `switches of calls that are over do nothing to those that come and go`() async throws {
        // Work that comes while the guest polls gets it out, and may be a moment too late for that.
        let sandbox = try await Guest.spin.sandbox { $0.polling = .never }
        let first: GuestCall<Int> = try sandbox.start("answer")
        #expect(try await first.result == 42)
        let last = Shared(first.killSwitch)
        let stop = Flag()
        let killers = (0..<3).map { _ in
            Task.detached {
                await onThread {
                    var wrong = 0
                    while !stop.isSet { if last.block().answer() != .failure(.invalid) { wrong += 1 } }
                    return wrong
                }
            }
        }
        for round in 0..<(Surroundings.isEmulated ? 50 : 1000) {
            let call: GuestCall<Int> = try sandbox.start("iterate", round)
            #expect(try await call.result == round)
            last.value = call.killSwitch
        }
        stop.set()
        for killer in killers { #expect(await killer.value == 0) }
        #expect(sandbox.interruptHandle.spuriousKicks == 0)
    }

    @Test func `of the calls that wait for their turns exactly the one that is meant ends`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let word = try await SharedWord(of: sandbox)
        let occupant: GuestCall<Void> = try sandbox.start("spin_until", word.address)
        await waitUntil { word.value == 1 }
        let calls: [GuestCall<Int>] = try (0..<10).map { try sandbox.start("iterate", $0) }
        for index in [3, 7] { #expect(calls[index].killSwitch.answer() == .success(.cancelled)) }
        word.value = 2
        try await occupant.result
        for (index, call) in calls.enumerated() {
            let end = await CallEnd(call)
            #expect([3, 7].contains(index) ? end.code == .killed : end.hasReturned)
        }
    }

    @Test func `a call that was cancelled ends as killed, also when its turn never comes`() async throws {
        for isClosed in [false, true] {
            let sandbox = try await Guest.spin.sandbox()
            let occupant = try await spinning(in: sandbox)
            let call: GuestCall<Int> = try sandbox.start("answer")
            #expect(call.killSwitch.answer() == .success(.cancelled))
            async let closing: Void = isClosed ? sandbox.close() : ()
            #expect(await onThread { occupant.killSwitch.answer() } == .success(.signalled))
            await closing
            let end = await CallEnd(call)
            #expect(end.code == .killed && end.sandboxError?.message.contains("killed before it had begun") == true)
            let cause = (end.sandboxError?.underlyingError as? SandboxError)?.code
            #expect(cause == .poisoned || isClosed && cause == .closed)
            #expect(call.killSwitch.answer() == .failure(.invalid))
        }
        let sandbox = try await Guest.echo.sandbox { $0.argumentArenaSize = 4096 }
        let tooLong = try await sandbox.run { sandbox in
            let call: GuestCall<String> = try sandbox.start("echo", String(repeating: "x", count: 5000))
            #expect(call.killSwitch.answer() == .success(.cancelled))
            return call
        }
        #expect(await CallEnd(tooLong).code == .killed)
    }

    // MARK: - Races

    @Test func `of many who terminate one call exactly one does`() async throws {
        for round in 0..<Self.rounds {
            let sandbox = try await Guest.spin.sandbox()
            // Sometimes it spins already, sometimes it is only beginning.
            let call = round % 2 == 0 ? try await spinning(in: sandbox) : try sandbox.start("spin")
            let answers = await withTaskGroup(of: KillAnswer.self) { group in
                for _ in 0..<5 { group.addTask { await onThread { call.killSwitch.answer() } } }
                return await group.reduce(into: []) { $0.append($1) }
            }
            let successes = answers.compactMap { try? $0.get() }
            #expect(successes.count == 1)
            if round % 2 == 0 { #expect(successes == [.signalled]) }
            #expect(await CallEnd(call).code == .killed)
        }
    }

    @Test func `who gets a success has ended the call, who gets none has not`() async throws {
        var sandbox = try await Guest.spin.sandbox()
        for round in 0..<Self.rounds * 4 {
            let call: GuestCall<Int> = try sandbox.start("iterate", 20_000)
            async let first = onThread {
                usleep(UInt32(round % 50))
                return call.killSwitch.answer()
            }
            async let second = onThread {
                usleep(UInt32(round % 50))
                return call.killSwitch.answer()
            }
            let successes = await [first, second].compactMap { try? $0.get() }
            let end = await CallEnd(call)
            #expect(successes.count <= 1)
            #expect(successes.isEmpty == end.hasReturned)
            if let code = end.code { #expect(code == .killed) }
            if successes.first == .cancelled { #expect(try await sandbox.call("answer") == 42) }
            if end.hasReturned { continue }
            if successes.first != .cancelled { sandbox = try await Guest.spin.sandbox() }
        }
    }

    @Test func `switch, handle, limit and cancellation end a call once, for one of the reasons`() async throws {
        for _ in 0..<Self.rounds {
            let sandbox = try await Guest.spin.sandbox()
            // The limit may pass at any moment, before the guest has come to spin as well.
            let call = try sandbox.start("spin", timeLimit: .milliseconds(Surroundings.isEmulated ? 100 : 1))
            let awaiting = Task { await CallEnd(call) }
            async let killed = onThread { sandbox.interruptHandle.kill() }
            async let answer = onThread { call.killSwitch.answer() }
            awaiting.cancel()
            let end = await awaiting.value
            let isTerminated = (try? await answer.get()) != nil
            _ = await killed
            let code = try #require(end.code)
            #expect([.killed, .taskCancelled, .timeLimitExceeded].contains(code))
            if isTerminated { #expect(code == .killed) }
        }
    }

    // MARK: - Results

    @Test func `several tasks await one result`() async throws {
        let calls = Counter()
        let add = HostFunction("host_add") { (left: Int, right: Int) -> Int in
            calls.next()
            return left + right
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(add))
        let call: GuestCall<Int> = try sandbox.start("call_add", 40, 2)
        let results = try await withThrowingTaskGroup(of: Int.self) { group in
            for _ in 0..<10 { group.addTask { try await call.result } }
            return try await group.reduce(into: []) { $0.append($1) }
        }
        #expect(results == Array(repeating: 42, count: 10) && calls.value == 1)
        #expect(try await call.result == 42)
    }

    @Test func `several tasks await one error`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let call = try await spinning(in: sandbox)
        let tasks = (0..<5).map { _ in Task { await CallEnd(call) } }
        #expect(await onThread { call.killSwitch.answer() } == .success(.signalled))
        for task in tasks { #expect(await task.value.code == .killed) }
        #expect(await CallEnd(call).code == .killed)
    }

    @Test func `the cancellation of one awaiting task ends the call for all of them`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let call = try await spinning(in: sandbox)
        let tasks = (0..<3).map { _ in Task { await CallEnd(call) } }
        tasks[1].cancel()
        for task in tasks { #expect(await task.value.code == .taskCancelled) }
        #expect(call.killSwitch.answer() == .failure(.invalid))
    }

    @Test func `the cancellation of an awaiting task ends its own call and no other`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let word = try await SharedWord(of: sandbox)
        let occupant: GuestCall<Void> = try sandbox.start("spin_until", word.address)
        await waitUntil { word.value == 1 }
        let waiting: GuestCall<Int> = try sandbox.start("answer")
        let next: GuestCall<Int> = try sandbox.start("answer")
        let awaiting = Task { await CallEnd(waiting) }
        awaiting.cancel()
        #expect(sandbox.interruptHandle.currentState.reason == nil)
        word.value = 2
        try await occupant.result
        #expect(try await next.result == 42)
        // It may have come after the end of the call.
        let end = await awaiting.value
        #expect(end.hasReturned || end.code == .taskCancelled)
    }

    @Test func `a task that is cancelled before it awaits ends the call too`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let call = try await spinning(in: sandbox)
        let awaiting = Task {
            await waitUntil { Task.isCancelled }
            return await CallEnd(call)
        }
        awaiting.cancel()
        #expect(await awaiting.value.code == .taskCancelled)
    }

    @Test func `the cancellation of the task that started a call leaves it alone`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let starting = Task { () throws -> GuestCall<Int> in
            await waitUntil { Task.isCancelled }
            return try sandbox.start("answer")
        }
        starting.cancel()
        #expect(try await starting.value.result == 42)
    }

    @Test func `cancellation after the end changes no result`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let call: GuestCall<Int> = try sandbox.start("answer")
        #expect(try await call.result == 42)
        let awaiting = Task {
            await waitUntil { Task.isCancelled }
            return try await call.result
        }
        awaiting.cancel()
        #expect(try await awaiting.value == 42)
        #expect(try await sandbox.call("answer") == 42)
    }

    @Test func `a call that nobody awaits runs all the same`() async throws {
        let sandbox = try await Guest.echo.sandbox()
        let before: Int = try await sandbox.call("get_static")
        _ = try sandbox.start("add_to_static", 5, returning: Int.self)
        await waitUntil { sandbox.interruptHandle.currentState.number >= 2 }
        #expect(try await sandbox.call("get_static") == before + 5)
    }

    @Test func `a call holds its sandbox until it is over`() async throws {
        let ticked = Flag()
        let goesOn = Flag()
        let tick = HostFunction("host_tick") { () in
            ticked.set()
            goesOn.block()
        }
        let handle: LinuxInterruptHandle
        let call: GuestCall<Void>
        do {
            let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(tick))
            handle = sandbox.interruptHandle
            call = try sandbox.start("call_tick")
        }
        await waitUntil { ticked.isSet }
        #expect(!handle.isDropped)
        goesOn.set()
        try await call.result
        await waitUntil { handle.isDropped }
    }

    @Test func `a call of something that there is not is refused at once`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let error = #expect(throws: SandboxError.self) { try sandbox.start("no such function") }
        #expect(error?.code == .unknownExport)
    }

    @Test func `calls with arguments of run-time types and of looked-up functions have names too`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        let dynamic: GuestCall<Int> = try sandbox.start("add", arguments: [40, 2])
        #expect(try await dynamic.result == 42)
        let add = try sandbox.function("add", as: ((Int, Int) -> Int).self)
        let call = add.start(20, 22)
        #expect(try await call.result == 42)
        #expect(call.killSwitch.answer() == .failure(.invalid))
    }

    // MARK: - Statistics

    @Test func `the costs of a call that returned`() async throws {
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions())
        let call: GuestCall<Int> = try sandbox.start("add_in_a_loop", 10)
        #expect(try await call.result == 45)
        let statistics = try #require(await call.statistics)
        #expect(statistics.hostCalls == 10 && statistics.exits >= 11 && statistics.nestedCalls == 0)
        #expect(statistics.duration > .zero && statistics.stoppedDuration == .zero)
        #expect(try #require(statistics.cpuTime) > .zero)
        // The next one's are its own.
        let next: GuestCall<Int> = try sandbox.start("add_in_a_loop", 3)
        _ = try await next.result
        #expect(await next.statistics?.hostCalls == 3)
        #expect(await call.statistics == statistics)
    }

    @Test func `the costs of a call that was killed, or that faulted`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let killed = try await spinning(in: sandbox)
        #expect(await onThread { killed.killSwitch.answer() } == .success(.signalled))
        let end = await CallEnd(killed)
        let statistics = try #require(await killed.statistics)
        #expect(statistics.exits >= 1 && statistics.hostCalls == 0)
        #expect(end.sandboxError?.statistics?.exits == statistics.exits)
        #expect(try #require(end.sandboxError?.statistics).duration <= statistics.duration)

        let faulting = try await Guest.faults.sandbox().start("write_null")
        let fault = await CallEnd(faulting)
        #expect(fault.code == .guestFault && fault.sandboxError?.statistics?.exits == 1)
        #expect(await faulting.statistics?.exits == 1)
    }

    @Test func `a call that never began has cost nothing`() async throws {
        let closed = try await Guest.spin.sandbox()
        await closed.close()
        let refused: GuestCall<Int> = try closed.start("answer")
        #expect(await CallEnd(refused).code == .closed)
        #expect(await refused.statistics == nil)
        #expect(refused.killSwitch.answer() == .failure(.invalid))

        let poisoned = try await Guest.faults.sandbox()
        #expect(await CallEnd(try poisoned.start("write_null")).code == .guestFault)
        let late: GuestCall<Int> = try poisoned.start("answer")
        #expect(await CallEnd(late).code == .poisoned)
        #expect(await late.statistics == nil)
        #expect(late.killSwitch.answer() == .failure(.invalid))
    }

    @Test func `who asks for the costs waits for the end, and ends nothing by being cancelled`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let word = try await SharedWord(of: sandbox)
        let call: GuestCall<Void> = try sandbox.start("spin_until", word.address)
        await waitUntil { word.value == 1 }
        let asking = Task { await call.statistics }
        asking.cancel()
        #expect(sandbox.interruptHandle.currentState.reason == nil)
        word.value = 2
        try await call.result
        #expect(await asking.value != nil)
    }
}
