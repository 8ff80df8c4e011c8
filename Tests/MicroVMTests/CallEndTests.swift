import Glibc
import Testing

@testable import MicroVM

/// What ends a call, at each moment of it, with one outcome each.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct CallEndTests {
    struct Own: Error {}

    /// Who ends a call.
    enum Ender: CaseIterable {
        case kill, killSwitch, deadline, cancellation

        var code: SandboxError.Code {
            switch self {
            case .kill, .killSwitch: .killed
            case .deadline: .timeLimitExceeded
            case .cancellation: .taskCancelled
            }
        }
    }

    #if SYNCHRONIZATION_POINTS
    /// A moment of a call of `go_down(1)`, which makes one host call that makes one nested call, and what is found
    /// there.
    struct Moment: Sendable, CustomTestStringConvertible {
        var name: String
        var point: SynchronizationPoint
        var occurrence: Int
        var kill: LinuxInterruptHandle.KillOutcome
        var killSwitch: KillAnswer
        /// Whether the call ends half way; otherwise it returns.
        var ends = true
        var poisons = true
        /// Whether the host function is called.
        var callsHost = true
        /// How many guest functions are begun at least and at most, and how many times guest code goes on behind the
        /// host.
        var begun: ClosedRange<UInt64>
        var after: ClosedRange<UInt64> = 0...0
        var testDescription: String { name }
    }

    static let moments: [Moment] = [
        Moment(
            name: "call begun",
            point: .callBegun,
            occurrence: 1,
            kill: .pending,
            killSwitch: .success(.cancelled),
            poisons: false,
            callsHost: false,
            begun: 0...0
        ),
        Moment(
            name: "before the entry",
            point: .enteringGuest,
            occurrence: 1,
            kill: .pending,
            killSwitch: .success(.cancelled),
            poisons: false,
            callsHost: false,
            begun: 0...0
        ),
        Moment(
            name: "at the entry",
            point: .enteredGuest,
            occurrence: 1,
            kill: .signalled,
            killSwitch: .success(.signalled),
            callsHost: false,
            begun: 0...1
        ),
        Moment(
            name: "leaving for the host call",
            point: .leavingGuest,
            occurrence: 1,
            kill: .signalled,
            killSwitch: .success(.signalled),
            callsHost: false,
            begun: 1...1
        ),
        Moment(
            name: "between exit and host function",
            point: .leftGuest,
            occurrence: 1,
            kill: .pending,
            killSwitch: .success(.pending),
            begun: 1...1
        ),
        Moment(
            name: "before the host function",
            point: .enteringHostFunction,
            occurrence: 1,
            kill: .pending,
            killSwitch: .success(.pending),
            begun: 1...1
        ),
        Moment(
            name: "before the nested entry",
            point: .enteringGuest,
            occurrence: 2,
            kill: .pending,
            killSwitch: .success(.pending),
            begun: 1...1
        ),
        Moment(
            name: "at the nested entry",
            point: .enteredGuest,
            occurrence: 2,
            kill: .signalled,
            killSwitch: .success(.signalled),
            begun: 1...2
        ),
        Moment(
            name: "leaving the nested call",
            point: .leavingGuest,
            occurrence: 2,
            kill: .signalled,
            killSwitch: .success(.signalled),
            begun: 2...2
        ),
        Moment(
            name: "nested call left",
            point: .leftGuest,
            occurrence: 2,
            kill: .pending,
            killSwitch: .success(.pending),
            begun: 2...2
        ),
        Moment(
            name: "after the host function",
            point: .leftHostFunction,
            occurrence: 1,
            kill: .pending,
            killSwitch: .success(.pending),
            begun: 2...2
        ),
        Moment(
            name: "before the guest goes on",
            point: .enteringGuest,
            occurrence: 3,
            kill: .pending,
            killSwitch: .success(.pending),
            begun: 2...2
        ),
        Moment(
            name: "when the guest goes on",
            point: .enteredGuest,
            occurrence: 3,
            kill: .signalled,
            killSwitch: .success(.signalled),
            begun: 2...2,
            after: 0...1
        ),
        Moment(
            name: "leaving with the result",
            point: .leavingGuest,
            occurrence: 3,
            kill: .signalled,
            killSwitch: .success(.signalled),
            begun: 2...2,
            after: 1...1
        ),
        Moment(
            name: "settled",
            point: .decided,
            occurrence: 1,
            kill: .notRunning,
            killSwitch: .failure(.notTerminable),
            ends: false,
            poisons: false,
            begun: 2...2,
            after: 1...1
        ),
    ]

    /// Whether a host function is synchronous makes no difference but to who runs it.
    private static func enter(_ isAsynchronous: Bool, _ entered: Counter) -> HostFunction {
        if isAsynchronous {
            return HostFunction("host_enter") {
                (context: HostCallContext, level: Int, deed: Int, place: UInt64) async throws -> Int in
                entered.next()
                return try await context.call("go_down", level, deed, place)
            }
        }
        return HostFunction("host_enter") {
            (context: HostCallContext, level: Int, deed: Int, place: UInt64) throws -> Int in
            entered.next()
            return try context.call("go_down", level, deed, place)
        }
    }

    @Test(arguments: moments, Ender.allCases)
    func `each moment has one outcome for each that ends a call there`(_ moment: Moment, _ ender: Ender) async throws {
        // Its timer is not armed yet, and nobody can tell when the cancellation has been noticed.
        if moment.point == .callBegun, ender == .deadline || ender == .cancellation { return }
        for isAsynchronous in [false, true] {
            // On a busy machine a limit may pass before the call has got there: then again with a longer one.
            var limit = Duration.milliseconds(Surroundings.isEmulated ? 500 : 20)
            while try await !expectOutcome(moment, ender, isAsynchronous, limit) { limit *= 2 }
        }
    }

    /// Whether the moment has come at all.
    private func expectOutcome(
        _ moment: Moment,
        _ ender: Ender,
        _ isAsynchronous: Bool,
        _ limit: Duration
    ) async throws -> Bool {
        let entered = Counter()
        let functions = nestedFunctions(Self.enter(isAsynchronous, entered))
        let sandbox = try await Guest.nested.sandbox(functions)
        let traces = try await Traces(in: sandbox)
        let handle = sandbox.interruptHandle
        let started = Shared<KillSwitch>(nil)
        let awaiting = Shared<Task<CallEnd, Never>>(nil)
        let reached = Flag()
        let answered = Flag()
        let kill = Shared<LinuxInterruptHandle.KillOutcome>(nil)
        let answer = Shared<KillAnswer>(nil)
        handle.once(at: moment.point, occurrence: moment.occurrence) {
            // Too late, where the limit has passed on the way here.
            if handle.currentState.reason == nil { reached.set() }
            switch ender {
            case .kill: kill.value = handle.kill()
            case .killSwitch: answer.value = started.block().answer()
            case .cancellation: awaiting.block().cancel()
            case .deadline: if !moment.ends { usleep(UInt32(clamping: limit.nanosecondsClamped / 1000 + 1000)) }
            }
            // The task may only be about to await the call.
            while moment.ends, handle.currentState.reason == nil, ender == .deadline || ender == .cancellation {
                usleep(100)
            }
            answered.set()
        }
        let timeLimit = ender == .deadline ? limit : nil
        let call: GuestCall<Int> = try sandbox.start("go_down", 1, 0, traces.address, timeLimit: timeLimit)
        started.value = call.killSwitch
        let task = Task { await CallEnd(call) }
        awaiting.value = task
        let end = await task.value
        guard reached.isSet else {
            #expect(ender == .deadline && end.code == .timeLimitExceeded)
            return false
        }
        await onThread { answered.block() }
        handle.points.set(moment.point, nil)
        awaiting.value = nil
        #expect(end.hasReturned == !moment.ends)
        if moment.ends { #expect(end.code == ender.code) }
        if ender == .kill { #expect(kill.value == moment.kill) }
        if ender == .killSwitch { #expect(answer.value == moment.killSwitch) }
        #expect(entered.value == (moment.callsHost ? 1 : 0))
        #expect(moment.begun.contains(traces.before) && moment.after.contains(traces.after))
        #expect(await isPoisoned(sandbox) == moment.poisons)
        #expect(call.killSwitch.answer() == .failure(.invalid) && handle.kill() == .notRunning)
        return true
    }

    @Test func `a host function's error comes first or second, and what came first is the cause`() async throws {
        for (point, answer) in [
            (.enteringHostFunction, .success(.pending)), (.leftHostFunction, .success(.pending)),
            (.decided, .failure(.notTerminable)),
        ] as [(SynchronizationPoint, KillAnswer)] {
            for isAsynchronous in [false, true] {
                let tick =
                    isAsynchronous
                    ? HostFunction("host_tick") { () async throws -> Void in throw Own() }
                    : HostFunction("host_tick") { () throws -> Void in throw Own() }
                let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(tick))
                let killSwitch = Shared<KillSwitch>(nil)
                let found = Shared<KillAnswer>(nil)
                sandbox.interruptHandle.once(at: point) { found.value = killSwitch.block().answer() }
                let call = try sandbox.start("call_tick")
                killSwitch.value = call.killSwitch
                let end = await CallEnd(call)
                #expect(await onThread { found.block() } == answer)
                if case .success = answer {
                    #expect(end.code == .killed && end.sandboxError?.underlyingError is Own)
                } else {
                    #expect(end.error is Own)
                }
                #expect(await isPoisoned(sandbox, "call_tick"))
            }
        }
    }
    #endif

    // MARK: - Two at once

    @Test func `of two that would end one call the first one gives the reason`() async throws {
        enum First: CaseIterable { case kill, cancellation, deadline }
        for first in First.allCases {
            let killSwitch = Shared<KillSwitch>(nil)
            let awaiting = Shared<Task<CallEnd, Never>>(nil)
            let answers = Recorder<KillAnswer>()
            let tick = HostFunction("host_tick") { (context: HostCallContext) throws -> Void in
                switch first {
                case .kill: answers.append(killSwitch.block().answer())
                case .cancellation: awaiting.block().cancel()
                case .deadline: break
                }
                // The task may only be about to await the call.
                while !context.isCancelled { usleep(100) }
                // All the others come too late.
                answers.append(killSwitch.block().answer())
                #expect(killSwitch.block().interruptHandle.kill() == .pending)
                awaiting.block().cancel()
                throw Own()
            }
            let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(tick))
            let limit: Duration? = first == .deadline ? .milliseconds(Surroundings.isEmulated ? 1000 : 200) : nil
            let call = try sandbox.start("call_tick", timeLimit: limit)
            killSwitch.value = call.killSwitch
            let task = Task { await CallEnd(call) }
            awaiting.value = task
            let end = await task.value
            awaiting.value = nil
            let code: SandboxError.Code =
                switch first {
                case .kill: .killed
                case .cancellation: .taskCancelled
                case .deadline: .timeLimitExceeded
                }
            #expect(end.code == code)
            #expect(answers.all.last == .failure(.notTerminable))
            #expect(answers.count == (first == .kill ? 2 : 1))
            if first != .deadline { #expect(end.sandboxError?.underlyingError is Own) }
        }
    }

    @Test func `a CPU limit ends a guest and a host function that compute, and comes before what is thrown then`()
        async throws
    {
        let spinning = try await Guest.spin.sandbox()
        let end = await CallEnd { try await spinning.call("spin", cpuTimeLimit: .milliseconds(5)) }
        #expect(end.code == .cpuTimeLimitExceeded && end.sandboxError?.interruption?.symbol?.name == "spin")
        #expect(await isPoisoned(spinning))

        let tick = HostFunction("host_tick") { (context: HostCallContext) throws -> Void in
            while !context.isCancelled {}
            throw Own()
        }
        let computing = try await Guest.hostCalls.sandbox(hostFunctions(tick))
        let limit = Duration.milliseconds(Surroundings.isEmulated ? 2000 : 100)
        let second = await CallEnd { try await computing.call("call_tick", cpuTimeLimit: limit) }
        #expect(second.code == .cpuTimeLimitExceeded)
        #expect(await isPoisoned(computing, "call_tick"))
    }

    @Test func `a cancellation error of a host function's own is what its caller gets`() async throws {
        let tick = HostFunction("host_tick") { () throws -> Void in throw CancellationError() }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(tick))
        #expect(await CallEnd { try await sandbox.call("call_tick") }.error is CancellationError)
    }

    @Test func `what is wrong with a result is found after the end, and poisons nothing`() async throws {
        let sandbox = try await Guest.nested.sandbox(nestedFunctions())
        #expect(await CallEnd { let _: String = try await sandbox.call("no_text") }.code == .invalidResult)
        #expect(try await sandbox.call("answer") == 42)
    }

    #if SYNCHRONIZATION_POINTS
    @Test func `an initialiser is killed at each of its moments`() async throws {
        for (point, occurrence, outcome) in [
            (.callBegun, 1, .pending), (.enteringGuest, 1, .pending), (.enteredGuest, 1, .signalled),
            (.leavingGuest, 1, .signalled), (.leftGuest, 1, .pending), (.enteringGuest, 2, .pending),
            (.enteredGuest, 2, .signalled), (.leavingGuest, 2, .signalled), (.decided, 1, .notRunning),
        ] as [(SynchronizationPoint, Int, LinuxInterruptHandle.KillOutcome)] {
            let handles = Recorder<LinuxInterruptHandle>()
            let found = Shared<LinuxInterruptHandle.KillOutcome>(nil)
            let end = await CallEnd {
                let sandbox = try await Sandbox(Guest.initializers.module()) { sandbox in
                    let handle = sandbox.interruptHandle
                    handles.append(handle)
                    #expect(handle.kill() == .notRunning)
                    handle.once(at: point, occurrence: occurrence) { found.value = handle.kill() }
                }
                #expect(try await sandbox.call("initialization_order") == "abcd")
            }
            #expect(await onThread { found.block() } == outcome)
            #expect(end.hasReturned == (outcome == .notRunning))
            if outcome != .notRunning { #expect(end.code == .killed) }
            let handle = try #require(handles.all.first)
            await waitUntil { handle.isDropped }
            #expect(handle.kill() == .dropped)
            handle.points.set(point, nil)
        }
    }
    #endif
}
