import Dispatch
import Glibc
import Synchronization
import Testing

@testable import MicroVM

/// What a sandbox's handle does to its calls, from other threads and at any moment: each call ends as it must, and
/// everything adds up. Among them are the cases of Hyperlight's interrupt handle. What is a restore there is a new
/// sandbox of the same module here.
@Suite(.requiresKVM, .serialized, .timeLimit(.minutes(5))) struct InterruptHandleTests {
    private static func sandbox(_ replacements: HostFunction...) async throws -> Sandbox {
        try await Guest.interruption.sandbox(
            replacements + interruptionFunctions().filter { given in !replacements.contains { $0.name == given.name } }
        )
    }

    // MARK: - One kill

    @Test func `a kill finds a sleeping host function, which ends before the call does`() async throws {
        let entered = Flag()
        let ended = Flag()
        let sandbox = try await Self.sandbox(
            HostFunction("host_note") { (_: UInt64) -> Int64 in
                entered.set()
                usleep(300_000)
                ended.set()
                return 0
            }
        )
        let call = Task { await #expect(throws: SandboxError.self) { try await sandbox.call("note", UInt64(1)) } }
        await waitUntil { entered.isSet }
        #expect(await onThread { sandbox.interruptHandle.kill() } == .pending)
        let error = await call.value
        #expect(ended.isSet && error?.code == .killed && error?.interruption?.hostFunction == "host_note")
        await expectPoisoned(sandbox)
        #expect(!sandbox.interruptHandle.isDropped)
        #expect(try await Self.sandbox().call("answer") == 42)
    }

    @Test func `a kill ends the call under way, and whoever keeps the handle sees its sandbox go`() async throws {
        let handle: LinuxInterruptHandle
        do {
            let guest = try await CountingGuest()
            handle = guest.handle
            #expect(await onThread { guest.handle.kill() } == .signalled)
            #expect(await guest.error()?.code == .killed)
            await expectPoisoned(guest.sandbox)
            #expect(await onThread { !guest.handle.isDropped })
            #expect(try await Self.sandbox().call("answer") == 42)
        }
        await onThread { while !handle.isDropped { sched_yield() } }
        #expect(handle.kill() == .dropped && handle.killFromDebugger() == .dropped)
    }

    @Test func `a kill in advance of a call is a kill of nothing`() async throws {
        let handle: LinuxInterruptHandle
        do {
            let sandbox = try await Self.sandbox()
            handle = sandbox.interruptHandle
            #expect(await onThread { handle.kill() } == .notRunning)
            #expect(try await sandbox.call("answer") == 42)
            #expect(try await sandbox.call("answer") == 42)
        }
        await waitUntil { handle.isDropped }
    }

    @Test func `of two guests that spin, called from different threads, a kill ends the one it is for`() async throws {
        // A sandbox has a thread of its own, so it is the callers that move.
        let moved = try await Self.sandbox()
        let guest = try await Task.detached { try await CountingGuest(in: moved) }.value
        let second = try await CountingGuest()
        #expect(await onThread { guest.handle.kill() } == .signalled)
        #expect(await guest.error()?.code == .killed)
        await second.waitForLaps()
        #expect(await onThread { second.handle.kill() } == .signalled)
        #expect(await second.error()?.code == .killed)
    }

    @Test func `with the first real-time signal and a long delay, kill after kill finds its call`() async throws {
        for _ in 0..<3 {
            let guest = try await CountingGuest {
                $0.interruptSignalOffset = 0
                $0.interruptRetryDelay = .seconds(1)
            }
            // Killed some while after it has begun; nothing depends on how long.
            try await Task.sleep(for: .milliseconds(500))
            #expect(await onThread { guest.handle.kill() } == .signalled)
            #expect(await guest.error()?.code == .killed)
            #expect(try await Self.sandbox().call("answer") == 42)
        }
    }

    @Test func `a guest that makes host calls all the time is killed`() async throws {
        let count = Atomic<Int>(0)
        let sandbox = try await Self.sandbox(
            HostFunction("host_note") { (_: UInt64) -> Int64 in
                count.add(1, ordering: .relaxed)
                return 0
            }
        )
        let call = Task {
            await #expect(throws: SandboxError.self) { try await sandbox.call("note_for_ever", UInt64(1)) }
        }
        await waitUntil { count.load(ordering: .relaxed) >= 1000 }
        let outcome = await onThread { sandbox.interruptHandle.kill() }
        #expect(outcome.isEffective)
        let error = await call.value
        #expect(error?.code == .killed && error?.interruption?.symbol?.name == "note_for_ever")
        #expect(error?.statistics?.hostCalls ?? 0 >= 1000)
    }

    // MARK: - Several sandboxes

    private static let pacedKills = Surroundings.scaled(500)

    /// Three sandboxes whose calls one task makes in turn, while a thread kills those of the second one.
    private static func callsInTurn(
        _ handle: Shared<LinuxInterruptHandle>,
        _ rounds: Int,
        _ round: @Sendable (_ calls: () async throws -> Void) async throws -> Void
    ) async throws -> (completed: Int, killed: Int) {
        let first = try await sandbox()
        var second = try await sandbox()
        let third = try await sandbox()
        var account = (completed: 0, killed: 0)
        handle.value = second.interruptHandle
        for _ in 0..<rounds {
            try await round {
                #expect(try await first.call("iterate", 1000) == 1000)
                do {
                    #expect(try await second.call("iterate", 20_000) == 20_000)
                    account.completed += 1
                } catch let error as SandboxError {
                    #expect(error.code == .killed)
                    account.killed += 1
                    second = try await sandbox()
                    handle.value = second.interruptHandle
                }
                #expect(try await third.call("iterate", 1000) == 1000)
            }
        }
        #expect(first.interruptHandle.spuriousKicks == 0 && third.interruptHandle.spuriousKicks == 0)
        return account
    }

    @Test func `five hundred kills, one a round, hit one of three sandboxes that are called in turn`() async throws {
        let handle = Shared<LinuxInterruptHandle>(nil)
        let hits = Atomic<Int>(0)
        let account = try await Self.callsInTurn(handle, Self.pacedKills) { calls in
            let delay = UInt32.random(in: 0...300)
            async let kill = onThread {
                usleep(delay)
                return handle.value?.kill()
            }
            try await calls()
            let outcome = await kill
            if outcome?.isEffective == true { hits.add(1, ordering: .relaxed) }
        }
        #expect(account.completed + account.killed == Self.pacedKills)
        #expect(account.killed == hits.load(ordering: .relaxed))
    }

    @Test func `kills without pause hit one of three sandboxes that are called in turn`() async throws {
        let handle = Shared<LinuxInterruptHandle>(nil)
        let isOver = Flag()
        let killer = Task {
            await onThread {
                while !isOver.isSet { handle.value?.kill() }
            }
        }
        var (rounds, completed, killed) = (0, 0, 0)
        // The killer may not get to run for long; sooner or later it finds a call, or kills find none at all.
        repeat {
            let more = Surroundings.scaled(500)
            let account = try await Self.callsInTurn(handle, more) { calls in try await calls() }
            (rounds, completed, killed) = (rounds + more, completed + account.completed, killed + account.killed)
        } while killed == 0
        isOver.set()
        await killer.value
        #expect(completed + killed == rounds)
    }

    @Test func `many sandboxes spin and are killed at once`() async throws {
        try await withThrowingTaskGroup(of: SandboxError.Code?.self) { group in
            for _ in 0..<32 {
                group.addTask {
                    let guest = try await CountingGuest()
                    await onThread { _ = guest.handle.kill() }
                    return await guest.error()?.code
                }
            }
            for try await code in group { #expect(code == .killed) }
        }
    }

    // MARK: - Stress

    /// What became of one sandbox's calls.
    private struct Account {
        var completed = 0
        var killed = 0
        /// Kills that found a call under way.
        var effective = 0

        static func + (left: Account, right: Account) -> Account {
            Account(
                completed: left.completed + right.completed,
                killed: left.killed + right.killed,
                effective: left.effective + right.effective
            )
        }
    }

    /// A hundred sandboxes and 500 rounds, as in Hyperlight's case, whose 10 ms a round would take two processors four
    /// minutes: a guest spins for 200 µs instead, and is killed at up to 300 µs instead of 15 ms.
    private static let sandboxCount = Surroundings.isStress ? 100 : 10
    private static let rounds = Surroundings.scaled(500)

    @Test func `kills at random moments end the call they were meant for, or none`() async throws {
        var (calls, total) = (0, Account())
        // Until one has hit: whether kills that find a call end it is what is asked here.
        repeat {
            total = try await withThrowingTaskGroup(of: Account.self) { group in
                for _ in 0..<Self.sandboxCount { group.addTask { try await Self.callsWithRandomKills() } }
                return try await group.reduce(total, +)
            }
            calls += Self.sandboxCount * Self.rounds
        } while total.effective == 0
        #expect(total.completed + total.killed == calls)
        // The kill that was meant for a call ends it when it finds it, and no other does.
        #expect(total.killed == total.effective)
    }

    private static func callsWithRandomKills() async throws -> Account {
        var account = Account()
        var sandbox = try await Guest.spin.sandbox()
        for _ in 0..<rounds {
            let handle = sandbox.interruptHandle
            guard Bool.random() else {
                // In nobody's way, and so never killed.
                #expect(try await sandbox.call("spin_for", UInt64(200_000), returning: Int.self) > 0)
                account.completed += 1
                continue
            }
            let delay = UInt32.random(in: 0...300)
            async let kill = onThread {
                usleep(delay)
                return handle.kill()
            }
            do {
                #expect(try await sandbox.call("spin_for", UInt64(200_000), returning: Int.self) > 0)
                account.completed += 1
                #expect(await kill == .notRunning)
            } catch let error as SandboxError {
                #expect(error.code == .killed)
                account.killed += 1
                sandbox = try await Guest.spin.sandbox()
            }
            account.effective += await kill == .notRunning ? 0 : 1
        }
        return account
    }

    /// 50 threads, as in Hyperlight's case, and 10 rounds instead of 500: each takes a new sandbox.
    @Test func `a guest that spins as soon as the host call has returned is always killed`() async throws {
        let (threads, rounds) = (Surroundings.isStress ? 50 : 5, Surroundings.scaled(10))
        try await withThrowingTaskGroup(of: Void.self) { group in
            for _ in 0..<threads { group.addTask { try await Self.killAtBarrier(rounds: rounds) } }
            try await group.waitForAll()
        }
    }

    private static func killAtBarrier(rounds: Int) async throws {
        let begun = DispatchSemaphore(value: 0)
        let handle = Shared<LinuxInterruptHandle>(nil)
        // There before the first guest spins, and asleep until one does: fifty that spin leave two processors no time
        // to begin a thread.
        let ready = Flag()
        async let kills = onThread {
            ready.set()
            return (0..<rounds).map { _ in
                begun.wait()
                return handle.value?.kill()
            }
        }
        await waitUntil { ready.isSet }
        for _ in 0..<rounds {
            let sandbox = try await sandbox(
                HostFunction("host_note") { (_: UInt64) -> Int64 in
                    begun.signal()
                    return 0
                }
            )
            handle.value = sandbox.interruptHandle
            let error = await #expect(throws: SandboxError.self) {
                try await sandbox.call("note_then_spin", UInt64(1))
            }
            #expect(error?.code == .killed)
        }
        #expect(await kills.allSatisfy { $0?.isEffective == true })
    }

    /// 200 pairs, as in Hyperlight's case. There the two share a thread, or follow each other to another one, in eight
    /// ways; here every sandbox has its own, and what changes is who calls, when, and whether the bait's calls come
    /// before, after or beside the victim's. Eight pairs are there at a time, for two processors.
    @Test func `the bait beside an endless guest that is killed comes to no harm`() async throws {
        let pairs = Surroundings.scaled(200)
        try await withThrowingTaskGroup(of: Void.self) { group in
            for pair in 0..<pairs {
                if pair >= 8 { try await group.next() }
                group.addTask { try await Self.killBesideBait(placement: pair % 8) }
            }
            try await group.waitForAll()
        }
    }

    private static func killBesideBait(placement: Int) async throws {
        let begun = Flag()
        let semaphore = DispatchSemaphore(value: 0)
        let victim = try await sandbox(
            HostFunction("host_note") { (_: UInt64) -> Int64 in
                begun.set()
                semaphore.signal()
                return 0
            }
        )
        let bait = try await sandbox()
        let callsBefore = placement & 1 != 0
        let callsFromVictim = placement & 2 != 0
        let killsFromTask = placement & 4 != 0
        func callBait() async throws { for _ in 0..<5 { #expect(try await bait.call("iterate", 5000) == 5000) } }
        if callsBefore { try await callBait() }
        async let outcome: LinuxInterruptHandle.KillOutcome = {
            if killsFromTask {
                await waitUntil { begun.isSet }
                return victim.interruptHandle.kill()
            }
            return await onThread {
                semaphore.wait()
                return victim.interruptHandle.kill()
            }
        }()
        async let error = #expect(throws: SandboxError.self) {
            if callsFromVictim {
                try await victim.run { try await $0.call("note_then_spin", UInt64(1)) }
            } else {
                try await victim.call("note_then_spin", UInt64(1))
            }
        }
        try await callBait()
        #expect(await error?.code == .killed)
        #expect(await outcome.isEffective)
        try await callBait()
        #expect(bait.interruptHandle.spuriousKicks == 0)
    }

    // MARK: - Debuggers

    @Test func `a debugger interrupts a running guest, which goes on`() async throws {
        let guest = try await CountingGuest()
        for _ in 0..<10 {
            #expect(await onThread { guest.handle.killFromDebugger() } == .interrupted)
            await guest.waitForLaps()
        }
        guest.release()
        #expect(try await guest.call.result > 0)
        #expect(await guest.call.statistics?.debugInterrupts == 10)
        #expect(try await guest.sandbox.call("answer") == 42)
    }

    @Test func `a debugger that finds no guest running keeps the next entry once`() async throws {
        let sandbox = try await Self.sandbox()
        for _ in 0..<3 { #expect(sandbox.interruptHandle.killFromDebugger() == .prevented) }
        // Kept through the beginning of the call, and then had its turn.
        for interrupts in [1, 0] as [UInt64] {
            let call = try sandbox.start("answer", returning: Int.self)
            #expect(try await call.result == 42)
            #expect(await call.statistics?.debugInterrupts == interrupts)
        }
    }

    @Test func `a debugger that comes during a host call keeps the entry after it once`() async throws {
        let handle = Shared<LinuxInterruptHandle>(nil)
        let outcomes = Recorder<LinuxInterruptHandle.DebugInterruptOutcome>()
        let sandbox = try await Self.sandbox(
            HostFunction("host_note") { (number: UInt64) -> Int64 in
                for _ in 0..<number { if let handle = handle.value { outcomes.append(handle.killFromDebugger()) } }
                return 7
            }
        )
        handle.value = sandbox.interruptHandle
        let call = try sandbox.start("notes", UInt64(2), 5, returning: Int.self)
        #expect(try await call.result == 7)
        #expect(outcomes.all == Array(repeating: .prevented, count: 10))
        let statistics = await call.statistics
        #expect(statistics?.debugInterrupts == 5 && statistics?.exits == 6)
        handle.value = nil
    }

    @Test func `a kill comes before a debugger, and a debugger's interruption is no kill of a later call`() async throws
    {
        let sandbox = try await Self.sandbox()
        sandbox.interruptHandle.killFromDebugger()
        #expect(sandbox.interruptHandle.kill() == .notRunning)
        #expect(try await sandbox.call("answer") == 42)
        let guest = try await CountingGuest(in: sandbox)
        #expect(await onThread { guest.handle.killFromDebugger() } == .interrupted)
        // It has been heeded when the guest counts again; a kill that came before would be.
        await guest.waitForLaps()
        #expect(await onThread { guest.handle.kill() } != .notRunning)
        let error = await guest.error()
        #expect(error?.code == .killed && error?.statistics?.debugInterrupts == 1)
    }

    @Test func `nobody is there for a debugger after closing`() async throws {
        let sandbox = try await Self.sandbox()
        await sandbox.close()
        #expect(sandbox.interruptHandle.killFromDebugger() == .dropped)
    }

    // MARK: - Kicks that nobody wants

    @Test func `a signal that nobody asked for is counted, and nothing comes of it`() async throws {
        let sandbox = try await Self.sandbox()
        let thread = try await sandbox.run { _ in pthread_self() }
        let guest = try await CountingGuest(in: sandbox)
        for count in 1...20 as ClosedRange<UInt64> {
            #expect(pthread_kill(thread, __libc_current_sigrtmin()) == 0)
            await waitUntil { guest.handle.spuriousKicks == count }
            // In the guest again, where the next signal finds it.
            await guest.waitForLaps()
        }
        guest.release()
        #expect(try await guest.call.result > 0)
        let statistics = await guest.call.statistics
        #expect(statistics?.debugInterrupts == 0 && statistics?.exits == 21)
        // While nothing runs there is nothing to count.
        #expect(pthread_kill(thread, __libc_current_sigrtmin()) == 0)
        #expect(try await sandbox.call("answer") == 42)
        #expect(guest.handle.spuriousKicks == 20)
    }
}
