import CShims
import LinuxKVM
import SystemPackage

/// A call that a caller on another thread makes while the guest polls, as the virtual CPU's thread finds it when it has
/// been handed over.
///
/// Nothing in it has to be released: what can run when one of its values is replaced would have to be watched for.
struct PolledCall {
    enum Stage {
        /// There is none, or it was not handed over.
        case none
        /// The guest has left, or is about to, and does not know of the call.
        case undelivered
        /// The guest has the call, and its turn.
        case begun
        /// The host function that the guest waits for has returned, and the guest does not know of that.
        case answered
        /// The host function has thrown.
        case failed
    }

    var stage = Stage.none
    /// Whether the guest shall leave, though it may have no reason to.
    var isWanted = false
    /// Whether the caller has waited for as long as callers do.
    var wasTooLong = false
    /// What is left of when it is handed over.
    var timeLimit, cpuTimeLimit: UInt64?
}

/// A host function that callers run themselves. An object, because a function that is taken out of an array is counted
/// twice, which takes as long as many a function.
final class QuickFunction {
    let body: HostFunction.PlainBody

    init(body: @escaping HostFunction.PlainBody) { self.body = body }
}

/// Calls without an exit: what the virtual CPU's thread does while the guest polls (the article Polling has the
/// protocol, docs/models/mailbox.pml its model).
extension RunLoop {
    /// After how long at most a guest is looked after that polls, or pretends to.
    private static let watchNanoseconds: UInt64 = 10_000_000

    /// How long a caller whose host calls keep coming does not look at anything else.
    private static let lookNanoseconds: UInt64 = 1000

    /// Lets the guest poll for calls, as long as it pays. Whether it has, or has come to nothing because of work.
    func pollForCalls() -> Bool {
        guard poison == nil, suspendedCall == nil, debuggerSlot.withLock({ $0 == nil }), watch.isMade || makeWatch(),
            let budget = pollingPlan?.begin()
        else { return false }
        let callsBefore = polledCalls.hitCount
        let clock = PollingClock.shared
        callerTicks = clock.ticks(in: pollingPlan?.callerMaximum ?? 0)
        quickTicks = clock.ticks(in: pollingPlan?.quickNanoseconds ?? 0)
        lookTicks = clock.ticks(in: Self.lookNanoseconds)
        threadClock = CallMeter.ownCPUClock
        answersPolledHostCalls = !shim_thread_is_confined()
        polledCalls.areSimple =
            observer == nil && configuration.timeLimit == nil && configuration.cpuTimeLimit == nil
            && !configuration.measuresCPUTime
        machine.mailbox.setIdle(callPolls: clock.looks(in: budget), hostCallPolls: clock.looks(in: budget))
        guard interruptHandle.beginPolling() else {
            giveUpPolling()
            return false
        }
        guard thread.publishPolling(), thread.baton.offer() else {
            thread.endPolling()
            _ = interruptHandle.endPolling()
            giveUpPolling()
            return true
        }
        let began = MonotonicTime.now
        let exit = stayInGuest()
        _ = interruptHandle.endPolling()
        watch.disarm(interruptHandle)
        thread.baton.takeBack()
        thread.endPolling()
        if case .success(.ioOut) = exit { isExitPending = true } else { isExitPending = false }
        let calls = polledCalls.hitCount &- callsBefore
        polledCalls.countSession(
            nanoseconds: MonotonicTime.now.nanoseconds - began.nanoseconds,
            wasHit: calls > 0
        )
        // A call that goes on from here is like any other.
        pollingPlan?.end(calls: calls)
        polledExit = exit
        if isInCall { thread.runContinuation() } else { checkIdleGuest(exit) }
        return true
    }

    private func giveUpPolling() {
        machine.mailbox.endIdle()
        pollingPlan?.end(calls: 0)
    }

    /// Makes the timer that has the thread look after the guest. Whether it could be had.
    private func makeWatch() -> Bool {
        (try? watch.make(interruptHandle)) != nil
    }

    /// Has the guest run until it leaves, or is wanted out.
    private func stayInGuest() -> Result<Exit, Errno> {
        watch.repeat(interruptHandle, nanoseconds: Self.watchNanoseconds)
        var last = interruptHandle.currentState
        while true {
            let exit = Result { () throws(Errno) in try machine.virtualCPU.run() }
            guard case .success(.interrupted) = exit else { return exit }
            let now = interruptHandle.lookAround()
            // Somebody wants the thread; or nothing has happened for long enough for a guest that polls to have left.
            guard !now.has(CallState.requests), !thread.baton.isRecalled,
                now.has(CallState.inCall) || now.number != last.number
            else { return exit }
            last = now
        }
    }

    /// The guest has left, and there is no call: it has polled for long enough, or was interrupted at that.
    private func checkIdleGuest(_ exit: Result<Exit, Errno>) {
        machine.mailbox.endIdle()
        switch exit {
        case .success(.ioOut(UInt16(SHIM_PORT_RETURN), 1, 1, _)): return
        case .success(.interrupted):
            if (try? leavePollingLoop()) == true { return }
            lastFault = fault(Misbehaviour(.invalidHostCall, message: "The guest went on after its call had returned."))
        case .success(let exit): lastFault = fault(misbehaviour(exit))
        case .failure: isMachineBroken = true
        }
        poison = .call(.guestFault)
    }

    /// Has the guest begin anew with the next call, wherever it was in the code that polls. Whether it was there.
    private func leavePollingLoop() throws(Errno) -> Bool {
        var registers = try completedRegisters()
        // After a restore it may not have got to that yet.
        if registers.rip >= Trampoline.reset, registers.rip < Trampoline.end { return true }
        guard registers.rip >= Trampoline.entry, registers.rip < Trampoline.invoke else { return false }
        // Whatever it was about to do, to leave included, was not for that call.
        registers.rip = Trampoline.entry
        try machine.setRegisters(registers)
        return true
    }

    /// Goes on with a call that has been handed over, until it has returned.
    ///
    /// - Throws: as ``run(function:arguments:)``.
    func runPolledToEnd() throws {
        let reason: CallState.Reason?
        do {
            reason = try goOnWithPolledCall()
        } catch {
            throw cause(of: error, interruptHandle.decide())
        }
        if let reason { throw cause(of: nil, reason) }
    }

    private func goOnWithPolledCall() throws -> CallState.Reason? {
        let (stage, exit) = (polledCall.stage, polledExit)
        (polledCall.stage, polledExit) = (.none, nil)
        if let error = polledFailure {
            polledFailure = nil
            throw examined(error, isFinal: true) ?? error
        }
        if let reason = interruptHandle.pendingReason { return reason }
        // Nobody polls any more: what the guest does next ends in an exit, also where it has done it already.
        let mailbox = machine.mailbox
        var isGiven = true
        switch stage {
        case .undelivered: isGiven = false
        // The guest may have stopped waiting for the answer and be about to leave, which it then has to do first.
        case .answered: isGiven = mailbox.change(SHIM_OWNER_TAKEN, to: SHIM_OWNER_GUEST)
        default: break
        }
        if !mailbox.change(SHIM_OWNER_GUEST_POLLED, to: SHIM_OWNER_GUEST),
            !mailbox.change(SHIM_OWNER_HOST_CALL, to: SHIM_OWNER_LEAVE)
        {
            _ = mailbox.change(SHIM_OWNER_IDLE, to: SHIM_OWNER_LEAVE)
        }
        return try runToReturn(after: exit, isGiven: isGiven)
    }
}

/// Calls without an exit: what a caller does, who has the baton.
extension RunLoop {
    /// Begins a call. Whether it has begun: ``endPolledCall()`` or ``handPolledCallOver()`` must follow.
    func beginPolledCall(_ timeLimit: Duration?, _ cpuTimeLimit: Duration?) -> Bool {
        let timeLimit = timeLimit ?? configuration.timeLimit
        let cpuTimeLimit = cpuTimeLimit ?? configuration.cpuTimeLimit
        // Only the thread can make timers. And a limit that has passed already ends the call before it begins, whereas
        // a caller looks at the clock only after a while.
        guard timeLimit == nil || timer.isMade, cpuTimeLimit == nil || cpuTimer.isMade,
            timeLimit ?? .seconds(1) > .zero, cpuTimeLimit ?? .seconds(1) > .zero,
            let number = interruptHandle.beginPolledCall()
        else { return false }
        beginCall(number)
        polledCall.timeLimit = timeLimit?.nanosecondsClamped
        polledCall.cpuTimeLimit = cpuTimeLimit?.nanosecondsClamped
        let measuresCPUTime = configuration.measuresCPUTime || cpuTimeLimit != nil
        meter = CallMeter(polledWithCPUTime: measuresCPUTime ? threadClock : nil)
        return true
    }

    /// Puts down a call that was begun as one that is soon over.
    func putDownPolledCall() {
        beginCall(polledCalls.number)
        (polledCall.timeLimit, polledCall.cpuTimeLimit) = (nil, nil)
        meter = CallMeter(polledWithCPUTime: nil)
        polledCalls.didPutDown()
    }

    /// Goes on with a call that the guest has, if it was still there to take it. Whether the guest has returned: else
    /// the call is to be handed over.
    func goOnPolling(
        function: UInt64,
        arguments: borrowing GuestValueWriter,
        isGiven: Bool,
        expectsHostCalls: Bool
    ) -> Bool {
        if polledCalls.isUnderWay { putDownPolledCall() }
        calledFunction = function
        arenaPosition = arguments.arenaPosition
        observer?.callBegins(self)
        hasEnteredGuest = true
        polledCall.stage = isGiven ? .begun : .undelivered
        guard isGiven, pollToReturn(expectsHostCalls) else { return false }
        polledCall.stage = .none
        return true
    }

    private enum Progress {
        /// The guest has returned, and the call is over.
        case returned
        /// The guest has its answer, and goes on.
        case answered
        /// The call is to be handed over.
        case left
    }

    /// Waits for the guest to return, and answers its host calls. Whether it has, and the call is over.
    private func pollToReturn(_ expectsHostCalls: Bool) -> Bool {
        // For all of the call: a guest that is always answered must not keep the caller's thread either.
        let began = meter.beganTicks ?? shim_ticks()
        if expectsHostCalls {
            // Most that make host calls make one. The task gets to know whom its function keeps waiting, and to forget
            // it, while the guest is at work, and not while that waits for the answer.
            switch withinChain({ poll(since: began, untilAnswered: true) }) {
            case .returned: return true
            case .left: return false
            case .answered: break
            }
        }
        return poll(since: began) == .returned
    }

    private func poll(since began: UInt64, untilAnswered: Bool = false) -> Progress {
        let mailbox = machine.mailbox
        var looked = began
        while true {
            switch polledCalls.poll() {
            case SHIM_OWNER_IDLE: return interruptHandle.endPolledCall() ? .returned : .left
            case SHIM_OWNER_HOST_CALL:
                polledCalls.expectsHostCalls = true
                guard isChainBound else {
                    return withinChain { poll(since: began) }
                }
                let now = shim_ticks()
                polledCall.wasTooLong = now &- began >= callerTicks
                // Now and then, as at the call's beginning: nobody notices who waits for that.
                var isDisturbed = polledCall.wasTooLong
                if !isDisturbed, now &- looked >= lookTicks {
                    isDisturbed = isPolledCallDisturbed
                    looked = now
                }
                guard answerPolledHostCall(now, orLeave: isDisturbed) else { return .left }
                if untilAnswered { return .answered }
            case SHIM_OWNER_GUEST_POLLED:
                let isTooLong = shim_ticks() &- began >= callerTicks
                guard isTooLong || isPolledCallDisturbed else {
                    if callersYield { shim_thread_yield() }
                    continue
                }
                // From now on what the guest does ends in an exit. If it has done something just now, that counts.
                guard mailbox.change(SHIM_OWNER_GUEST_POLLED, to: SHIM_OWNER_GUEST) else { continue }
                polledCall.wasTooLong = isTooLong
                return .left
            // It is about to leave; or it has written something there, and will have to leave for the call to end.
            default: return .left
            }
        }
    }

    /// Whether anything but the guest's answer is to be seen to.
    private var isPolledCallDisturbed: Bool {
        if thread.baton.isRecalled || shim_is_task_cancelled() { return true }
        if let limit = polledCall.timeLimit, meter.nanoseconds >= limit { return true }
        guard let limit = polledCall.cpuTimeLimit else { return false }
        return meter.cpuNanoseconds ?? 0 >= limit
    }

    /// Answers a host call, where that is soon done. Whether the guest has the answer and goes on.
    ///
    /// - Parameters:
    ///   - now: when the host call was found.
    ///   - isDisturbed: whether the thread is to answer it in any case.
    private func answerPolledHostCall(_ now: UInt64, orLeave isDisturbed: Bool) -> Bool {
        let mailbox = machine.mailbox
        let index = mailbox.importIndex
        guard answersPolledHostCalls, !isDisturbed,
            unsafe index < UInt64(quickFunctions.count), unsafe quickFunctions[Int(index)] != nil
        else {
            // The thread answers.
            _ = mailbox.change(SHIM_OWNER_HOST_CALL, to: SHIM_OWNER_LEAVE)
            return false
        }
        // A kill from now on waits for the host function, and gets nobody out of the guest.
        guard interruptHandle.leaveForPolledHostCall() else { return false }
        // model: polled_take
        guard mailbox.change(SHIM_OWNER_HOST_CALL, to: SHIM_OWNER_TAKEN) else {
            // The guest has it again, to leave by an exit. Where a kill has come meanwhile, it is not waited for.
            polledCall.isWanted = !interruptHandle.enterAfterPolledHostCall()
            return false
        }
        polledCalls.mayBeInChain = true
        // When the guest has its answer.
        defer { if shim_ticks() &- now > quickTicks { unsafe quickFunctions[Int(index)] = nil } }
        do {
            try carryOutQuickFunction(at: Int(index))
        } catch {
            (polledCall.stage, polledFailure, polledCall.isWanted) = (.failed, error, true)
            return false
        }
        let mayGoOn = interruptHandle.enterAfterPolledHostCall()
        mailbox.setAnswer(polledCalls.resultPage)
        guard mayGoOn else {
            (polledCall.stage, polledCall.isWanted) = (.answered, true)
            return false
        }
        // model: polled_answer
        guard mailbox.change(SHIM_OWNER_TAKEN, to: SHIM_OWNER_GUEST_POLLED) else {
            polledCall.stage = .answered
            return false
        }
        currentImport = nil
        return true
    }

    /// A call is over that was made while the guest polls.
    func endPolledCall() {
        meter.end(at: meter.reading)
        polledCalls.end()
        isInCall = false
        currentImport = nil
        firstCause = nil
        reportEnd()
        thread.baton.giveBack()
    }

    /// What a call ends with whose arguments could not be passed; it is over.
    func refusePolledCall(of function: UInt64, for error: any Error) -> any Error {
        if polledCalls.isUnderWay { putDownPolledCall() }
        let cause = refusal(of: function, for: error)
        interruptHandle.abandonPolledCall()
        endPolledCall()
        return cause
    }

    /// The call is the thread's from now on: what is left of its limits is watched by timers.
    func handPolledCallOver() {
        let elapsed = meter.nanoseconds
        if let limit = polledCall.timeLimit {
            timer.arm(interruptHandle, nanoseconds: limit > elapsed ? limit - elapsed : 0)
        }
        if let limit = polledCall.cpuTimeLimit {
            let used = meter.cpuNanoseconds ?? 0
            cpuTimer.arm(interruptHandle, nanoseconds: limit > used ? limit - used : 0)
        }
        pollingPlan?.callIsHandedOver(wasTooLong: polledCall.wasTooLong)
        let isWanted = polledCall.isWanted
        (polledCall.isWanted, polledCall.wasTooLong) = (false, false)
        thread.handOver(isWanted: isWanted)
    }

    // MARK: Quick host functions

    /// Runs a host function on the thread, and finds out whether a caller who polls could do that as well.
    func measureQuickness(at index: Int, _ body: () throws -> Void) rethrows {
        guard let quick = pollingPlan?.quickNanoseconds, unsafe quickFunctions[index] == nil,
            case .hostFunction(let function) = imports[index], let plain = function.plainBody
        else { return try body() }
        let began = MonotonicTime.now.nanoseconds
        try body()
        if MonotonicTime.now.nanoseconds - began <= quick { unsafe quickFunctions[index] = QuickFunction(body: plain) }
    }
}
