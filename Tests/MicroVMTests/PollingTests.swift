import CShims
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import MicroVM

/// Sandboxes whose guests poll whenever they can, so that most calls are polled ones.
enum Polling {
    /// Whether a caller and a guest can run at the same time: without that a guest polls only where it is made to.
    static var isPossible: Bool { shim_processor_count() >= 2 }

    /// So many repetitions, or fewer; a few on the one processor of an emulated machine, where caller and guest wait
    /// for the scheduler each time.
    static func rounds(_ count: Int) -> Int { Surroundings.isEmulated ? 4 : Surroundings.scaled(count) }

    static func sandbox(
        _ guest: Guest,
        _ hostFunctions: [HostFunction] = [],
        configure: (inout SandboxConfiguration) -> Void = { _ in }
    ) async throws -> Sandbox {
        try await guest.sandbox(hostFunctions) {
            $0.pollingTrial = .always
            configure(&$0)
        }
    }

    /// Has the guest called until a call has found it polling: as a rule the next one does as well.
    static func begin(_ sandbox: Sandbox, sourceLocation: SourceLocation = #_sourceLocation) async throws {
        let answer = try await hit(sandbox, sourceLocation: sourceLocation) {
            try await sandbox.call("answer", returning: Int64.self)
        }
        #expect(answer == 42, sourceLocation: sourceLocation)
    }

    /// Makes a call until it was one without an exit. What that one has returned.
    static func hit<Result>(
        _ sandbox: Sandbox,
        sourceLocation: SourceLocation = #_sourceLocation,
        _ call: () async throws -> Result
    ) async throws -> Result {
        var attempts = 0
        while true {
            let hits = sandbox.pollingStatistics.hits
            let result = try await call()
            if sandbox.pollingStatistics.hits > hits { return result }
            attempts += 1
            // Where the next call is always there before the thread has looked for it, there is no time to poll.
            usleep(UInt32(min(attempts, 200)))
            if attempts == 10_000 {
                Issue.record(
                    "No call has found the guest polling: \(sandbox.pollingStatistics).",
                    sourceLocation: sourceLocation
                )
                return result
            }
        }
    }

    /// What a call ends with, if it does not return.
    static func ending(_ call: () async throws -> Void) async -> SandboxError.Code? {
        do {
            try await call()
            return nil
        } catch {
            return (error as? SandboxError)?.code
        }
    }

    /// Waits until the guest polls, with no call under way.
    static func wait(_ sandbox: Sandbox) async throws {
        while true {
            try await begin(sandbox)
            let state = sandbox.interruptHandle.currentState
            if state.has(CallState.polling), !state.has(CallState.inCall) { return }
        }
    }
}

/// Calls that find the guest polling mean what all calls mean.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct PollingTests {
    private let interruption = Guest.interruption

    /// Host functions of the guest that can be interrupted at anything.
    private static func noted(_ note: @escaping @Sendable (UInt64) throws -> Int64 = { Int64($0) }) -> [HostFunction] {
        [
            HostFunction("host_note") { (number: UInt64) throws in try note(number) },
            HostFunction("host_wait") { (_: UInt64) async throws in try await Task.sleep(for: .milliseconds(1)) },
            HostFunction("host_nest") { (context: HostCallContext, number: UInt64, depth: Int64) in
                try context.call("descend", number, depth, returning: Int64.self)
            },
            HostFunction("host_nest_later") { (context: HostCallContext, number: UInt64, depth: Int64) async throws in
                try await context.call("descend", number, depth, returning: Int64.self)
            },
        ]
    }

    // MARK: - Values

    @Test func `what a tenant's polled calls have passed is not the next one's`() async throws {
        guard Polling.isPossible else { return }
        let sandbox = try await Polling.sandbox(.hideout)
        let snapshot = try await sandbox.snapshot()
        let (bits, number) = (UInt64(0x5ec7_e75e_c7e7_5ec7), Double(bitPattern: 0x5ec7_e75e_c7e7_5ec7))
        func pass() async throws {
            let count: UInt64 = try await Polling.hit(sandbox) {
                try await sandbox.call(
                    "count_secrets",
                    bits,
                    bits,
                    bits,
                    bits,
                    bits,
                    bits,
                    number,
                    number,
                    number,
                    number,
                    number,
                    number,
                    number,
                    number
                )
            }
            #expect(count == 14)
        }
        /// In the registers of a call that passes less than the one before.
        func secretsLeft() async throws -> UInt64 {
            try await Polling.hit(sandbox) { try await sandbox.call("count_secrets") }
        }
        try await pass()
        // Else there would be nothing to forget.
        #expect(try await secretsLeft() == 14)
        try await pass()
        try await sandbox.restore(to: snapshot)
        #expect(try await secretsLeft() == 0)
    }

    @Test func `every kind of value gets through`() async throws {
        let sandbox = try await Polling.sandbox(.arithmetic)
        for number in 0..<Int64(Polling.rounds(1000)) {
            let sum: Int64 = try await Polling.hit(sandbox) { try await sandbox.call("add", number, 3) }
            #expect(sum == number + 3)
        }
        let strings = try await Polling.sandbox(.echo)
        for length in [0, 1, 15, 16, 17, 4096, 100_000] {
            let bytes = (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 7) }
            let echo: [UInt8] = try await Polling.hit(strings) { try await strings.call("echo", bytes) }
            #expect(echo == bytes)
        }
    }

    @Test func `nothing polls where it is not wanted`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox {
            $0.pollingTrial = nil
            $0.polling = .never
        }
        for _ in 0..<200 { #expect(try await sandbox.call("add", 2, 3) == 5) }
        #expect(sandbox.pollingStatistics == PollingStatistics(hits: 0, misses: 0, timePolling: .zero))
    }

    @Test func `a guest that nobody calls leaves, and the next call gets through`() async throws {
        let sandbox = try await Polling.sandbox(interruption, Self.noted())
        for _ in 0..<20 {
            try await Polling.begin(sandbox)
            await waitUntil { !sandbox.interruptHandle.currentState.has(CallState.polling) }
            try await Task.sleep(for: .milliseconds(2))
            #expect(!sandbox.interruptHandle.currentState.has(CallState.polling))
            #expect(try await sandbox.call("answer") == 42)
        }
        #expect(sandbox.pollingStatistics.timePolling > .zero)
    }

    @Test func `many callers of one guest get each their own result`() async throws {
        let sandbox = try await Polling.sandbox(.arithmetic)
        let count = Polling.rounds(20_000)
        try await withThrowingTaskGroup(of: Void.self) { group in
            for caller in 0..<8 as Range<Int64> {
                group.addTask {
                    for number in 0..<Int64(count) {
                        let sum: Int64 = try await sandbox.call("add", caller << 32, number)
                        #expect(sum == caller << 32 + number)
                    }
                }
            }
            try await group.waitForAll()
        }
    }

    // MARK: - Host functions

    @Test func `a quick host function runs on the caller's thread, all others on the sandbox's`() async throws {
        let threads = Recorder<pthread_t>()
        let isSlow = Flag()
        let sandbox = try await Polling.sandbox(
            interruption,
            Self.noted { number in
                threads.append(pthread_self())
                if isSlow.isSet { usleep(50_000) }
                return Int64(number)
            }
        )
        let own = try await sandbox.run { _ in pthread_self() }
        let note: Int64 = try await Polling.hit(sandbox) { try await sandbox.call("note", 5 as UInt64) }
        #expect(note == 5)
        #expect(threads.all.last != own)
        isSlow.set()
        // Once it has been slow it is not waited for again.
        for _ in 0..<3 { #expect(try await sandbox.call("note", 6 as UInt64) == 6) }
        #expect(threads.all.last == own)
        // Those that need the thread are never run elsewhere; they work all the same.
        for _ in 0..<50 { #expect(try await sandbox.call("descend", 1 as UInt64, 6 as Int64) == 6) }
    }

    @Test func `a guest that is always answered does not keep its caller's thread`() async throws {
        let own = Shared<pthread_t>(nil)
        let (elsewhere, there) = (Counter(), Flag())
        let sandbox = try await Polling.sandbox(
            interruption,
            Self.noted { number in
                if pthread_self() != own.value { _ = elsewhere.next() } else if number == 9 { there.set() }
                return Int64(number)
            }
        )
        own.value = try await sandbox.run { _ in pthread_self() }
        _ = try await Polling.hit(sandbox) { try await sandbox.call("note", 5 as UInt64, returning: Int64.self) }
        let task = Task { await Polling.ending { try await sandbox.call("note_for_ever", 9 as UInt64) } }
        await waitUntil { there.isSet }
        while await onThread({ sandbox.interruptHandle.kill() }) == .notRunning {}
        #expect(await task.value == .killed && elsewhere.value > 0)
    }

    @Test func `what a host function throws ends the call`() async throws {
        let fails = Flag()
        let sandbox = try await Polling.sandbox(
            interruption,
            Self.noted { number in
                if fails.isSet { throw Errno.alreadyInProcess }
                return Int64(number)
            }
        )
        let snapshot = try await sandbox.snapshot()
        for _ in 0..<Polling.rounds(400) {
            _ = try await Polling.hit(sandbox) { try await sandbox.call("note", 5 as UInt64, returning: Int64.self) }
            fails.set()
            await #expect(throws: Errno.alreadyInProcess) { try await sandbox.call("note", 5 as UInt64) }
            fails.clear()
            await expectPoisoned(sandbox)
            try await sandbox.restore(to: snapshot)
        }
    }

    @Test func `a task that a host function starts cannot call back`() async throws {
        let codes = Recorder<SandboxError.Code?>()
        let box = Recorder<Sandbox>()
        let starts = Flag()
        let sandbox = try await Polling.sandbox(
            interruption,
            Self.noted { number in
                if starts.isSet, let sandbox = box.all.first {
                    Task {
                        let ending = await Polling.ending { try await sandbox.call("answer") }
                        codes.append(ending)
                    }
                }
                return Int64(number)
            }
        )
        box.append(sandbox)
        _ = try await Polling.hit(sandbox) { try await sandbox.call("note", 5 as UInt64, returning: Int64.self) }
        starts.set()
        for _ in 0..<20 { _ = try await sandbox.call("note", 5 as UInt64, returning: Int64.self) }
        await waitUntil { codes.count == 20 }
        #expect(codes.all.allSatisfy { $0 == .reentrantCall })
        await sandbox.close()
    }

    @Test(arguments: [false, true])
    func `a task that a host function has started is known for as long as it lives`(_ isNested: Bool) async throws {
        let codes = Recorder<SandboxError.Code?>()
        let own = Shared<Sandbox>(nil)
        let (starts, mayEnd, started) = (Flag(), Flag(), Counter())
        let sandbox = try await Polling.sandbox(
            interruption,
            Self.noted { number in
                guard starts.isSet, let sandbox = own.value else { return Int64(number) }
                started.next()
                Task {
                    while !mayEnd.isSet { try await Task.sleep(for: .milliseconds(1)) }
                    codes.append(await Polling.ending { try await sandbox.call("answer") })
                }
                return Int64(number)
            }
        )
        own.value = sandbox
        // The call may itself be made for a host function, of another sandbox.
        let outer = try await interruption.sandbox(
            [
                HostFunction("host_wait") { (count: UInt64) async throws in
                    _ = try await sandbox.call("notes", 5 as UInt64, Int64(count), returning: Int64.self)
                }
            ] + Self.noted().filter { $0.name != "host_wait" }
        )
        func note(times count: UInt64) async throws {
            if isNested { return try await outer.call("wait", count) }
            _ = try await sandbox.call("notes", 5 as UInt64, Int64(count), returning: Int64.self)
        }
        for count in [1, 2, 5] as [UInt64] {
            try await Polling.hit(sandbox) { try await note(times: count) }
            starts.set()
            try await Polling.hit(sandbox) { try await note(times: count) }
            starts.clear()
            // Others come and go meanwhile, from where nobody knows of it.
            for _ in 0..<20 { #expect(try await sandbox.call("note", 5 as UInt64, returning: Int64.self) == 5) }
        }
        #expect(sandbox.reference.polledCalls.mayBeInChain)
        mayEnd.set()
        await waitUntil { codes.count == started.value }
        #expect(codes.all.allSatisfy { $0 == .reentrantCall } && started.value >= 8)
        // When they are gone nobody is looked for any more.
        repeat {
            try await Polling.hit(sandbox) { try await sandbox.call("note", 5 as UInt64, returning: Int64.self) }
        } while sandbox.reference.polledCalls.mayBeInChain
        own.value = nil
    }

    // MARK: - Kills and limits

    @Test(arguments: [false, true])
    func `a call that found the guest polling is killed`(_ isCancelled: Bool) async throws {
        let sandbox = try await Polling.sandbox(interruption, Self.noted())
        let snapshot = try await sandbox.snapshot()
        for round in 0..<Polling.rounds(400) {
            try await Polling.begin(sandbox)
            let task = Task { await #expect(throws: SandboxError.self) { try await sandbox.call("spin") } }
            // At any moment of it: while the caller polls, while it hands the call over, and later.
            await onThread {
                for _ in 0..<round % 50 { sched_yield() }
                if isCancelled {
                    task.cancel()
                } else {
                    while sandbox.interruptHandle.kill() == .notRunning { sched_yield() }
                }
            }
            if isCancelled { task.cancel() }
            #expect(await task.value?.code == (isCancelled ? .taskCancelled : .killed))
            try await sandbox.restore(to: snapshot)
        }
    }

    @Test func `a kill during a host function that the caller runs ends the call behind it`() async throws {
        let outcomes = Recorder<LinuxInterruptHandle.KillOutcome>()
        let kills = Flag()
        let box = Recorder<Sandbox>()
        let sandbox = try await Polling.sandbox(
            interruption,
            Self.noted { number in
                if kills.isSet, let sandbox = box.all.first { outcomes.append(sandbox.interruptHandle.kill()) }
                return Int64(number)
            }
        )
        box.append(sandbox)
        let snapshot = try await sandbox.snapshot()
        for _ in 0..<Polling.rounds(1000) {
            _ = try await Polling.hit(sandbox) { try await sandbox.call("note", 5 as UInt64, returning: Int64.self) }
            kills.set()
            let ended = await Polling.ending { try await sandbox.call("note_then_spin", 5 as UInt64) }
            kills.clear()
            #expect(ended == .killed)
            try await sandbox.restore(to: snapshot)
        }
        #expect(outcomes.count > 0 && outcomes.all.allSatisfy { $0 == .pending })
    }

    @Test func `a kill while the guest polls hits nobody`() async throws {
        let sandbox = try await Polling.sandbox(interruption, Self.noted())
        for _ in 0..<Polling.rounds(2000) {
            try await Polling.wait(sandbox)
            #expect(await onThread { sandbox.interruptHandle.kill() } == .notRunning)
            #expect(try await sandbox.call("answer") == 42)
        }
    }

    @Test func `limits end calls that found the guest polling`() async throws {
        let sandbox = try await Polling.sandbox(interruption, Self.noted())
        let snapshot = try await sandbox.snapshot()
        for round in 0..<Polling.rounds(200) {
            // The first call with a limit makes its timer, on the thread.
            #expect(try await sandbox.call("answer", timeLimit: .seconds(60), cpuTimeLimit: .seconds(60)) == 42)
            try await Polling.begin(sandbox)
            let limit = Duration.microseconds(round * 10)
            #expect(await Polling.ending { try await sandbox.call("spin", timeLimit: limit) } == .timeLimitExceeded)
            try await sandbox.restore(to: snapshot)
            try await Polling.begin(sandbox)
            let ending = await Polling.ending { try await sandbox.call("spin", cpuTimeLimit: limit) }
            #expect(ending == .cpuTimeLimitExceeded)
            try await sandbox.restore(to: snapshot)
            try await Polling.begin(sandbox)
            // A guest that is always answered is looked at as well.
            #expect(
                await Polling.ending { try await sandbox.call("note_for_ever", 1 as UInt64, timeLimit: limit) }
                    == .timeLimitExceeded
            )
            try await sandbox.restore(to: snapshot)
            let answer: Int64 = try await Polling.hit(sandbox) {
                try await sandbox.call("answer", timeLimit: .seconds(60))
            }
            #expect(answer == 42)
        }
    }

    @Test(arguments: [Duration.zero, .nanoseconds(-1)])
    func `a limit that has passed already lets no guest code run that polls for it`(_ limit: Duration) async throws {
        let notes = Counter()
        let sandbox = try await Polling.sandbox(
            interruption,
            Self.noted { number in
                notes.next()
                return Int64(number)
            }
        )
        #expect(try await sandbox.call("answer", timeLimit: .seconds(60), cpuTimeLimit: .seconds(60)) == 42)
        for function in ["answer", "note"] {
            for _ in 0..<10 {
                _ = try await Polling.hit(sandbox) {
                    try await sandbox.call("note", 1 as UInt64, returning: Int64.self)
                }
                let before = notes.value
                let time = await Polling.ending { try await sandbox.call(function, 1 as UInt64, timeLimit: limit) }
                let cpuTime = await Polling.ending {
                    try await sandbox.call(function, 1 as UInt64, cpuTimeLimit: limit)
                }
                #expect(time == .timeLimitExceeded && cpuTime == .cpuTimeLimitExceeded && notes.value == before)
            }
        }
    }

    @Test func `a debugger's interruption comes before the next call`() async throws {
        let sandbox = try await Polling.sandbox(interruption, Self.noted())
        for _ in 0..<Polling.rounds(500) {
            try await Polling.wait(sandbox)
            let outcome = await onThread { sandbox.interruptHandle.killFromDebugger() }
            #expect(outcome == .prevented)
            #expect(!sandbox.interruptHandle.currentState.has(CallState.polling))
            #expect(try await sandbox.call("answer") == 42)
        }
    }

    // MARK: - Stops, and what the thread has to do

    @Test func `a stop takes a guest that polls out`() async throws {
        let sandbox = try await Polling.sandbox(interruption, Self.noted())
        for _ in 0..<Polling.rounds(500) {
            try await Polling.wait(sandbox)
            #expect(await onThread { (try? sandbox.interruptHandle.beginExternalStop()) != nil })
            #expect(!sandbox.interruptHandle.currentState.isInGuest)
            let task = Task { try await sandbox.call("answer", returning: Int64.self) }
            _ = try await sandbox.pullFullState()
            #expect(!sandbox.interruptHandle.currentState.isInGuest)
            try sandbox.interruptHandle.endExternalStop()
            #expect(try await task.value == 42)
        }
    }

    @Test func `a call that found the guest polling is held, looked at and goes on`() async throws {
        let sandbox = try await Polling.sandbox(interruption, Self.noted())
        let words = try await SharedWord(of: sandbox)
        for _ in 0..<Polling.rounds(200) {
            let end = try await SharedWord(of: sandbox, at: words.address + 8)
            (words.value, end.value) = (0, 0)
            try await Polling.begin(sandbox)
            let task = Task { try await sandbox.call("count_until", words.address, returning: UInt64.self) }
            await waitUntil { words.value > 0 }
            let state = try await sandbox.pullFullState()
            #expect(state.isInCall && state.symbol?.name == "count_until")
            end.value = 1
            #expect(try await task.value > 0)
        }
    }

    @Test func `a host function that the caller runs does not keep anybody from looking`() async throws {
        // The host function keeps its thread, which would be the pool's only one.
        guard Polling.isPossible else { return }
        let begun = Flag()
        let goesOn = Flag()
        let waits = Flag()
        let sandbox = try await Polling.sandbox(
            interruption,
            Self.noted { number in
                if waits.isSet {
                    begun.set()
                    while !goesOn.isSet { usleep(100) }
                }
                return Int64(number)
            }
        )
        for _ in 0..<Polling.rounds(400) {
            begun.clear()
            goesOn.clear()
            waits.clear()
            for _ in 0..<5 { _ = try await sandbox.call("note", 1 as UInt64, returning: Int64.self) }
            try await Polling.begin(sandbox)
            waits.set()
            let task = Task { try await sandbox.call("note", 7 as UInt64, returning: Int64.self) }
            await waitUntil { begun.isSet }
            let state = try await sandbox.pullFullState()
            #expect(state.hostFunction == "host_note" && state.isInCall)
            goesOn.set()
            #expect(try await task.value == 7)
        }
    }

    @Test func `whatever the thread has to do is done while the guest polls`() async throws {
        let sandbox = try await Polling.sandbox(interruption, Self.noted())
        let snapshot = try await sandbox.snapshot()
        for round in 0..<Polling.rounds(2000) {
            try await Polling.begin(sandbox)
            switch round % 4 {
            case 0: #expect(try await sandbox.run { _ in 7 } == 7)
            case 1: try await sandbox.restore(to: snapshot)
            case 2: _ = try await sandbox.snapshot()
            default: #expect(try await sandbox.run { try await $0.call("answer", returning: Int64.self) } == 42)
            }
        }
    }

    @Test func `a sandbox closes, or goes, while its guest polls`() async throws {
        for round in 0..<Polling.rounds(200) {
            let sandbox = try await Polling.sandbox(interruption, Self.noted())
            try await Polling.begin(sandbox)
            if round % 2 == 0 {
                await sandbox.close()
                #expect(await Polling.ending { _ = try await sandbox.call("answer", returning: Int64.self) } == .closed)
            }
        }
    }

    @Test func `callers, jobs, kills and stops come together, and everybody is answered`() async throws {
        let sandbox = try await Polling.sandbox(interruption, Self.noted())
        let snapshot = try await sandbox.snapshot()
        let end = Flag()
        let endings = Recorder<SandboxError.Code?>()
        let killers = (0..<2).map { index in
            Task {
                await onThread {
                    while !end.isSet {
                        if index == 0 {
                            sandbox.interruptHandle.kill()
                            usleep(300)
                        } else if (try? sandbox.interruptHandle.beginExternalStop()) != nil {
                            sched_yield()
                            try? sandbox.interruptHandle.endExternalStop()
                            usleep(200)
                        }
                    }
                }
            }
        }
        let count = Polling.rounds(4000)
        await withTaskGroup(of: Void.self) { group in
            for caller in 0..<4 {
                group.addTask {
                    for number in 0..<count {
                        do {
                            if number % 50 == 0 { _ = try? await sandbox.restore(to: snapshot) }
                            let result: Int64 = try await sandbox.call("notes", UInt64(caller), 3 as Int64)
                            #expect(result == Int64(caller))
                            endings.append(nil)
                        } catch let error as SandboxError {
                            #expect([.killed, .poisoned].contains(error.code))
                            endings.append(error.code)
                            if error.code == .killed { _ = try? await sandbox.restore(to: snapshot) }
                        } catch {
                            Issue.record(error)
                        }
                    }
                }
            }
        }
        end.set()
        for killer in killers { await killer.value }
        #expect(endings.count == 4 * count)
        try await sandbox.restore(to: snapshot)
        #expect(try await sandbox.call("answer") == 42)
    }
}

/// The word that says whose turn it is lies in the guest's memory, where it can say anything.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct LyingPollingTests {
    private static let hostFunctions = [
        HostFunction("host_take") {
            (
                first: Int64,
                _: Int64,
                _: Int64,
                _: Int64,
                _: Int64,
                _: Int64,
                _: Int64,
                _: Double
            ) in first
        },
        HostFunction("host_text") { (text: String) in text },
        HostFunction("host_take_doubles") {
            (
                _: Double,
                _: Double,
                _: Double,
                _: Double,
                _: Double,
                _: Double,
                _: Double,
                _: Double,
                _: Double,
                _: Double,
                _: Int64,
                _: Float
            ) in 0.0
        },
    ]

    private static func sandbox() async throws -> Sandbox { try await Polling.sandbox(.lies, hostFunctions) }

    @Test(arguments: [0, 1, 2, 3, 4, 5, 6, 7, .max] as [UInt32])
    func `whatever the word says, the call ends and the next one works`(_ turn: UInt32) async throws {
        let sandbox = try await Self.sandbox()
        let snapshot = try await sandbox.snapshot()
        for function in ["say_turn_and_return", "say_turn_and_call", "say_turn_and_spin"] {
            for _ in 0..<Polling.rounds(100) {
                // With the limit's timer, so that calls with it are polled.
                let answer: Int64 = try await Polling.hit(sandbox) {
                    try await sandbox.call("answer", timeLimit: .seconds(60))
                }
                #expect(answer == 42)
                let ending = await Polling.ending {
                    _ = try await sandbox.call(function, turn, timeLimit: .milliseconds(20), returning: Int64.self)
                }
                #expect([nil, .guestFault, .timeLimitExceeded].contains(ending))
                try await sandbox.restore(to: snapshot)
                #expect(try await sandbox.call("answer") == 42)
            }
        }
    }

    @Test func `a word that changes all the time keeps nobody waiting`() async throws {
        let sandbox = try await Self.sandbox()
        let snapshot = try await sandbox.snapshot()
        for seed in 0..<UInt64(Polling.rounds(400)) {
            try await Polling.begin(sandbox)
            let ended = Flag()
            let task = Task {
                defer { ended.set() }
                return await Polling.ending { try await sandbox.call("say_turns", seed) }
            }
            await onThread {
                for _ in 0..<seed % 40 { sched_yield() }
                while !ended.isSet {
                    sandbox.interruptHandle.kill()
                    usleep(50)
                }
            }
            // As far as anybody can tell it may have returned, and what it does since is no call.
            let ending = await task.value
            #expect([nil, .killed, .guestFault].contains(ending))
            try await sandbox.restore(to: snapshot)
            #expect(try await sandbox.call("answer") == 42)
        }
    }

    @Test func `a guest that only pretends to return is found out when nobody calls it`() async throws {
        let sandbox = try await Self.sandbox()
        let snapshot = try await sandbox.snapshot()
        for _ in 0..<5 {
            _ = try await Polling.hit(sandbox) {
                try await sandbox.call("answer", timeLimit: .seconds(60), returning: Int64.self)
            }
            // It answers, and goes on where nobody has called it; or, where it was not polled for, for ever.
            try? await sandbox.call("pretend_to_return", timeLimit: .milliseconds(200))
            for _ in 0..<10 {
                let limit = Duration.milliseconds(200)
                guard let answer: Int64 = try? await sandbox.call("answer", timeLimit: limit) else { break }
                #expect(answer == 7)
            }
            await waitUntil { !sandbox.interruptHandle.currentState.isInGuest }
            await expectPoisoned(sandbox)
            try await sandbox.restore(to: snapshot)
            #expect(try await sandbox.call("answer") == 42)
        }
    }

    @Test(arguments: [0, 2, 3, 6, 0x0303_0303_0303_0303, .max] as [UInt64])
    func `a mailbox full of anything is a result or a fault`(_ value: UInt64) async throws {
        let sandbox = try await Self.sandbox()
        let snapshot = try await sandbox.snapshot()
        for function in ["scribble", "scribble_and_call"] {
            for _ in 0..<Polling.rounds(100) {
                try await Polling.begin(sandbox)
                // It may have told itself to look for an answer for ever.
                let ending = await Polling.ending {
                    _ = try await sandbox.call(function, value, timeLimit: .milliseconds(200), returning: Int64.self)
                }
                #expect([nil, .guestFault, .timeLimitExceeded].contains(ending))
                try await sandbox.restore(to: snapshot)
            }
        }
    }
}

/// When a guest polls at all.
@Suite struct PollingPlanTests {
    @Test func `it polls once calls have followed each other closely, and not before`() {
        var plan = PollingPlan(.adaptive, nil)!
        // Nobody has called.
        #expect(plan.begin() == nil)
        plan.callBegins(.now)
        // How long it takes to the next call is not known.
        #expect(plan.begin() == nil)
        var budget: UInt64?
        // Guests of earlier tests may be polling for a moment.
        for _ in 0..<100 where budget == nil {
            plan.callBegins(.now)
            budget = plan.begin()
            if budget == nil { usleep(1000) }
        }
        #expect(budget == (Polling.isPossible ? 100_000 : nil))
        if budget != nil { plan.end(calls: 5) }
        // No call since.
        #expect(plan.begin() == nil)
    }

    @Test func `it gives up for longer and longer where nobody comes`() {
        guard Polling.isPossible else { return }
        var plan = PollingPlan(.adaptive, nil)!
        var polls = 0
        for _ in 0..<2000 {
            plan.callBegins(.now)
            if plan.begin() != nil {
                polls += 1
                plan.end(calls: 0)
            }
        }
        #expect(polls >= 2 && polls <= 12)
    }

    @Test func `a caller that was suspended is no reason to poll on`() {
        guard Polling.isPossible else { return }
        var plan = PollingPlan(.adaptive, nil)!
        var polls = 0
        for _ in 0..<500 {
            plan.callBegins(.now)
            if plan.begin() != nil {
                polls += 1
                plan.callIsHandedOver(wasTooLong: true)
                plan.end(calls: 1)
            }
        }
        #expect(polls <= 12)
    }

    @Test func `policies are what they say`() {
        #expect(PollingPlan(.never, nil) == nil)
        #expect(PollingPlan(.upTo(.zero), nil) == nil)
        #expect(PollingPlan(.upTo(.microseconds(7)), nil)?.maximum == 7000)
        #expect(PollingPlan(.adaptive, nil)?.maximum == 100_000)
        for duration in [Duration.seconds(2), .nanoseconds(-1)] {
            var configuration = SandboxConfiguration()
            configuration.polling = .upTo(duration)
            let error = #expect(throws: SandboxError.self) { try configuration.validated() }
            #expect(error?.code == .invalidConfiguration)
        }
    }
}
