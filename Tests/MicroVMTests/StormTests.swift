import Glibc
import Synchronization
import Testing

@testable import MicroVM

/// Everything at once: many threads end, stop and interrupt the calls of many sandboxes, and every call ends as it may,
/// every kill has one call, and nothing is left behind.
@Suite(.requiresKVM, .serialized, .timeLimit(.minutes(5))) struct StormTests {
    @Test func `a storm of kills, stops and interruptions adds up, and leaves nothing`() async {
        // In a process of its own, because what the process has is counted.
        await #expect(processExitsWith: .success) {
            // An emulated processor is one, and a kernel on it that does not get to run for long breaks down.
            let goal = Surroundings.isEmulated ? 1_000 : Surroundings.scaled(100_000)
            // What is made once in a process is there after the first one.
            let first = try await Storm(attempts: goal / 20).rage()
            let before = await Resources.settled { $0.sandboxThreads == 0 && $0.machineDescriptors == 0 }
            let second = try await Storm(attempts: goal).rage()
            // The concurrency pool opens a descriptor for each clock when it first needs that. Its threads come and go,
            // and the allocator keeps something for each, a sanitizer's more of it: less than a hundredth, or a good
            // part, of what so many sandboxes had.
            func isSettled(_ now: Resources) -> Bool {
                now.sandboxThreads == 0 && now.machineDescriptors == 0
                    && now.descriptors <= before.descriptors + 2 && now.threads <= before.threads + 4
                    && now.mappings <= before.mappings + (Surroundings.isSanitized ? 300 : 60)
                    && now.residentKibibytes <= before.residentKibibytes + 32 * 1024
            }
            let after = await Resources.settled(isSettled)
            for tally in [first, second] {
                #expect(tally.violations == [], "\(tally.violations)")
                #expect(tally.calls == tally.outcomes.values.reduce(0, +), "\(tally)")
            }
            #expect(second.pulls > 0 && second.stops > 0 && second.interruptions > 0, "\(second)")
            // A good part of the attempts has found somebody, at every stage of a call.
            #expect(second.attempts >= goal)
            #expect(second.hits >= second.attempts / 50, "\(second)")
            for stage in ["signalled", "pending", "cancelled"] {
                #expect(second.successes[stage] ?? 0 > 0, "\(second)")
            }
            let growth = "\(before) have become \(after): \(Resources.descriptorTargets.sorted())"
            #expect(before.sandboxThreads == 0 && before.machineDescriptors == 0, "\(growth)")
            #expect(isSettled(after), "\(growth)")
        }
    }
}

/// Ten sandboxes that are called, and everybody who disturbs them.
private final class Storm: Sendable {
    /// What came of it all.
    struct Tally: Sendable, CustomStringConvertible {
        var calls = 0
        var outcomes: [String: Int] = [:]
        /// Attempts to end a call, and those that did.
        var attempts = 0
        var successes: [String: Int] = [:]
        var sandboxes = 0
        var stops = 0
        var interruptions = 0
        var pulls = 0
        /// What must not happen, in words.
        var violations: [String] = []

        var hits: Int { successes.values.reduce(0, +) }
        var description: String {
            """
            \(calls) calls \(outcomes.sorted { $0.key < $1.key }), \(attempts) attempts \(successes), \
            \(sandboxes) sandboxes, \(stops) stops, \(interruptions) interruptions, \(pulls) pulls
            """
        }
    }

    private let lanes: [Lane]
    private let set = SandboxSet()
    private let tally = Locked(Tally())
    private let attemptCount = Atomic<Int>(0)
    private let attemptGoal: Int
    private let isOver = Flag()

    init(attempts: Int) {
        attemptGoal = attempts
        // In three lanes of five each call is ended by its name, and in the others kills are for whatever runs.
        lanes = (0..<(Surroundings.isEmulated ? 4 : 10)).map { Lane(killsByName: $0 % 5 < 3) }
    }

    func rage() async throws -> Tally {
        let killers = (0..<(Surroundings.isEmulated ? 2 : 8)).map { _ in Task { await onThread { self.kill() } } }
        let others = [Task { await onThread { self.stop() } }, Task { await onThread { self.stopSet() } }]
        let debugger = Task { await onThread { self.interrupt() } }
        let puller = Task { await self.pull() }
        try await withThrowingTaskGroup(of: Void.self) { group in
            for lane in lanes { group.addTask { try await self.run(lane) } }
            for killer in killers { await killer.value }
            isOver.set()
            try await group.waitForAll()
        }
        for other in others + [debugger, puller] { await other.value }
        return tally.withLock { tally in
            tally.attempts = attemptCount.load(ordering: .relaxed)
            return tally
        }
    }

    private func violation(_ text: String) {
        tally.withLock { if $0.violations.count < 20 { $0.violations.append(text) } }
    }

    // MARK: - Calls

    /// A place where one sandbox after the other makes one call after the other.
    final class Lane: Sendable {
        struct State {
            var sandbox: Sandbox?
            /// The call that is under way, and the one before.
            var call: Call?
            var previous: KillSwitch?
        }

        let killsByName: Bool
        let state = Locked(State())
        /// The number that host calls of the call under way must carry, 0 between calls.
        let number = Atomic<UInt64>(0)

        init(killsByName: Bool) { self.killsByName = killsByName }

        var handle: LinuxInterruptHandle? { state.withLock { $0.sandbox?.interruptHandle } }
    }

    /// A call that can be ended by its name.
    final class Call: Sendable {
        let killSwitch: KillSwitch
        /// Who may be about to end it, and who has.
        let attempting = Atomic<Int>(0)
        let successes = Atomic<Int>(0)

        init(_ killSwitch: KillSwitch) { self.killSwitch = killSwitch }
    }

    private enum Kind: CaseIterable {
        case answer, iterate, notes, waits, descend, spin, spinInNested, budget, cancelled, limited

        /// How the call may end when nobody kills it.
        var endings: Set<String> {
            switch self {
            case .answer, .iterate, .notes, .waits, .descend: ["returned"]
            // Only so that the storm goes on where no kill comes.
            case .spin, .spinInNested, .limited: ["timeLimitExceeded"]
            case .budget: ["cpuTimeLimitExceeded"]
            case .cancelled: ["taskCancelled", "timeLimitExceeded"]
            }
        }
    }

    private func hostFunctions(_ lane: Lane) -> [HostFunction] {
        /// The call is there when a host function begins, and still there when it ends.
        @Sendable func check(_ number: UInt64) {
            let current = lane.number.load(ordering: .acquiring)
            if current != number { violation("a host function of call \(number) runs during call \(current)") }
        }
        return interruptionFunctions(
            HostFunction("host_note") { (number: UInt64) -> Int64 in
                check(number)
                defer { check(number) }
                return Int64(number)
            },
            HostFunction("host_wait") { (number: UInt64) async throws -> Void in
                check(number)
                defer { check(number) }
                if Bool.random() { await Task.yield() } else { try await Task.sleep(for: .microseconds(200)) }
            },
            HostFunction("host_nest") { (context: HostCallContext, number: UInt64, depth: Int64) throws -> Int64 in
                check(number)
                defer { check(number) }
                if depth >= 1000 { try context.call("spin") }
                do { return try context.call("descend", number, depth) } catch {
                    // Whoever swallows the end of a nested call cannot undo it.
                    if Bool.random() { return 0 }
                    throw error
                }
            },
            HostFunction("host_nest_later") {
                (context: HostCallContext, number: UInt64, depth: Int64) async throws -> Int64 in
                check(number)
                defer { check(number) }
                return try await context.call("descend", number, depth)
            }
        )
    }

    private func makeSandbox(_ lane: Lane) async throws -> Sandbox {
        let sandbox = try await Guest.interruption.sandbox(hostFunctions(lane)) { $0.sandboxSet = self.set }
        lane.state.withLock { $0.sandbox = sandbox }
        tally.withLock { $0.sandboxes += 1 }
        return sandbox
    }

    private func run(_ lane: Lane) async throws {
        var sandbox = try await makeSandbox(lane)
        var number: UInt64 = 0
        while !isOver.isSet {
            number += 1
            let kind = Kind.allCases.randomElement() ?? .answer
            lane.number.store(number, ordering: .releasing)
            let outcome = await call(kind, number, sandbox, lane)
            lane.number.store(0, ordering: .releasing)
            tally.withLock {
                $0.calls += 1
                $0.outcomes[outcome, default: 0] += 1
            }
            if outcome != "killed", !kind.endings.contains(outcome) { violation("\(kind) ended as \(outcome)") }
            // Ended half way, or before it had begun to do anything: the next call tells.
            guard outcome != "returned" else { continue }
            var isOld = number % 2 == 0
            if !isOld { isOld = await isPoisoned(sandbox) }
            if isOld {
                lane.state.withLock { $0.sandbox = nil }
                if Bool.random() { await sandbox.close() }
                sandbox = try await makeSandbox(lane)
            }
        }
        lane.state.withLock { $0.sandbox = nil }
    }

    /// Kills of whatever runs find a call that is being ended already as well, for whichever reason; but none returns
    /// that was found, and none ends as killed that was not.
    private func mayEnd(as outcome: String, kills: Int) -> Bool {
        switch outcome {
        case "killed": kills > 0
        case "returned": kills == 0
        default: true
        }
    }

    private func isPoisoned(_ sandbox: Sandbox) async -> Bool {
        do {
            return try await sandbox.call("answer") != 42
        } catch {
            return true
        }
    }

    /// Makes one call, and tells how it ended.
    private func call(_ kind: Kind, _ number: UInt64, _ sandbox: Sandbox, _ lane: Lane) async -> String {
        let patience = Duration.microseconds(Surroundings.paced(20_000))
        do {
            let call: GuestCall<Int64> =
                switch kind {
                case .answer: try sandbox.start("answer")
                case .iterate: try sandbox.start("iterate", 50_000)
                case .notes: try sandbox.start("notes", number, 10)
                case .waits: try sandbox.start("waits", number, 3)
                case .descend: try sandbox.start("descend", number, Int64(number % 7))
                case .spin, .cancelled: try sandbox.start("iterate", Int.max, timeLimit: patience)
                case .spinInNested: try sandbox.start("descend", number, Int64(1002), timeLimit: patience)
                case .budget:
                    try sandbox.start("iterate", Int.max, cpuTimeLimit: .microseconds(Surroundings.paced(5000)))
                case .limited: try sandbox.start("iterate", Int.max, timeLimit: .microseconds(Surroundings.paced(300)))
                }
            let named = Call(call.killSwitch)
            lane.state.withLock { $0.call = named }
            let ended: Result<Int64, any Error>
            if kind == .cancelled {
                let waiting = Task { try await call.result }
                try? await Task.sleep(for: .microseconds(Surroundings.paced(.random(in: 0...500))))
                waiting.cancel()
                ended = await waiting.result
            } else {
                do { ended = .success(try await call.result) } catch { ended = .failure(error) }
            }
            lane.state.withLock { state in
                state.call = nil
                state.previous = call.killSwitch
            }
            // Nobody is about to end it any more, and whoever has ended it has said so.
            await waitUntil { named.attempting.load(ordering: .acquiring) == 0 }
            let outcome: String
            switch ended {
            case .success: outcome = "returned"
            case .failure(let error): outcome = (error as? SandboxError)?.code.description ?? "\(error)"
            }
            let successes = named.successes.load(ordering: .acquiring)
            if lane.killsByName ? successes != (outcome == "killed" ? 1 : 0) : !mayEnd(as: outcome, kills: successes) {
                violation("\(kind) ended as \(outcome), after \(successes) kills")
            }
            return outcome
        } catch {
            return "\(error)"
        }
    }

    // MARK: - Disturbers

    private func pause() { usleep(UInt32(Surroundings.paced(.random(in: 0...400)))) }

    private func kill() {
        while attemptCount.load(ordering: .relaxed) < attemptGoal {
            guard let lane = lanes.randomElement() else { return }
            for _ in 0..<Int.random(in: 1...6) {
                attemptCount.add(1, ordering: .relaxed)
                if lane.killsByName { killByName(lane) } else { killAny(lane) }
            }
            // As often as calls are made, or most attempts would find none.
            usleep(UInt32(Surroundings.paced(.random(in: 0...20_000))))
        }
    }

    private func killByName(_ lane: Lane) {
        let (call, previous) = lane.state.withLock { state in
            // Announced while it is there to be found.
            state.call?.attempting.add(1, ordering: .acquiringAndReleasing)
            return (state.call, state.previous)
        }
        if let call {
            do throws(KillError) {
                let success = try call.killSwitch.terminate()
                call.successes.add(1, ordering: .acquiringAndReleasing)
                count(success == .signalled ? "signalled" : success == .pending ? "pending" : "cancelled")
            } catch {}
            call.attempting.subtract(1, ordering: .acquiringAndReleasing)
        }
        if let previous {
            do throws(KillError) {
                violation("a call that is over was \(try previous.terminate())")
            } catch {
                if error != .invalid { violation("a call that is over is \(error)") }
            }
        }
    }

    private func killAny(_ lane: Lane) {
        // Until this is over the lane makes no other call, so it is this one or none that is found.
        let (call, handle) = lane.state.withLock { state in
            state.call?.attempting.add(1, ordering: .acquiringAndReleasing)
            return (state.call, state.sandbox?.interruptHandle)
        }
        guard let call, let handle else {
            call?.attempting.subtract(1, ordering: .acquiringAndReleasing)
            return
        }
        let outcome = handle.kill()
        if outcome == .signalled || outcome == .pending {
            call.successes.add(1, ordering: .acquiringAndReleasing)
            count(outcome == .signalled ? "signalled" : "pending")
        }
        call.attempting.subtract(1, ordering: .acquiringAndReleasing)
    }

    private func count(_ success: String) { tally.withLock { $0.successes[success, default: 0] += 1 } }

    private func stop() {
        var stops = 0
        while !isOver.isSet {
            if let handle = lanes.randomElement()?.handle, (try? handle.beginExternalStop()) != nil {
                stops += 1
                pause()
                do { try handle.endExternalStop() } catch { violation("a stop was lost: \(error)") }
            }
            pause()
        }
        tally.withLock { [stops] in $0.stops += stops }
    }

    private func stopSet() {
        var stops = 0
        while !isOver.isSet {
            do {
                try set.beginExternalStop()
                pause()
                try set.endExternalStop()
                stops += 1
            } catch {
                violation("a stop of the set was lost: \(error)")
            }
            usleep(UInt32(Surroundings.paced(2000)))
        }
        tally.withLock { [stops] in $0.stops += stops }
    }

    private func interrupt() {
        var interruptions = 0
        while !isOver.isSet {
            if lanes.randomElement()?.handle?.killFromDebugger() == .interrupted { interruptions += 1 }
            pause()
        }
        tally.withLock { [interruptions] in $0.interruptions += interruptions }
    }

    private func pull() async {
        var pulls = 0
        while !isOver.isSet {
            if let sandbox = lanes.randomElement()?.state.withLock({ $0.sandbox }),
                (try? await sandbox.pullFullState()) != nil
            {
                pulls += 1
            }
            try? await Task.sleep(for: .microseconds(Surroundings.paced(2000)))
        }
        tally.withLock { [pulls] in $0.pulls += pulls }
    }
}
