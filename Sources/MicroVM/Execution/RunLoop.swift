import CShims
import Glibc
import LinuxKVM
import SystemPackage

/// Carries guest calls out: enters the guest, answers its exits, and ends the call one way or the other.
///
/// Used on the virtual CPU's thread only, once it has been made. A call is: ``beginCall(_:in:)``, arguments through
/// ``argumentWriter()``, ``run(function:arguments:)``, the result through ``resultReader()``, ``endCall()``.
@safe final class RunLoop {
    /// How a call ended half way. In words only when somebody asks.
    enum Poison {
        case call(SandboxError.Code)
        case hostError
        case restore

        var ending: String {
            switch self {
            case .call(let code): code.ending ?? "ended"
            case .hostError: "ended in an error of the host"
            case .restore: "failed half way"
            }
        }
    }

    let machine: GuestMachine
    let module: GuestModule
    /// The module's image that the memory was made from, or that of the snapshot.
    let image: GuestImage
    let imports: [Import]
    let configuration: SandboxConfiguration
    let interruptHandle: LinuxInterruptHandle
    let thread: VirtualCPUThread
    /// Where a debugger is found.
    let debuggerSlot: Locked<Debugger?>
    /// What host functions are given to get back here. It is what holds this.
    unowned(unsafe) let reference: RunLoopReference
    /// Whom all that happens is told, if anybody watches.
    let observer: SandboxObserver?

    /// Why the memory may be inconsistent, once a call has ended half way.
    var poison: Poison?
    var isInCall = false
    /// Whether the call is over when the function that is running returns.
    var isLastFunction = true
    private(set) var callNumber: UInt64 = 0
    private var pendingCall: PendingCall?
    var meter = CallMeter()
    let timer = LimitTimer(.timeLimit)
    let cpuTimer = LimitTimer(.cpuTimeLimit)
    /// Whether guest code has run in this call: if not, ending it leaves nothing half done.
    var hasEnteredGuest = false
    /// Why guest code of this call was left for good, half way: what the call ends with, whatever else comes.
    var firstCause: (any Error)?
    /// Whether the last exit was one that KVM completes at the next entry, so that registers must not be read before.
    var isExitPending = false
    var calledFunction: UInt64 = 0
    var arenaPosition: UInt64
    /// The call that a snapshot was taken in the middle of, and that nobody has gone on with yet.
    private(set) var suspendedCall: SuspendedCall?
    /// Whether the call is being held before its next entry.
    var isParked = false
    /// Whether the call is one of the module's initialisers.
    var isInitializing = false
    /// Whether the virtual CPU may not be as an ordinary exit leaves it.
    var isMachineBroken = false
    /// What the guest did that ended the last call, for those who look at what is left.
    var lastFault: GuestFault? {
        didSet { hasFault = lastFault != nil }
    }
    private var hasFault = false
    /// The import whose host function is at work.
    var currentImport: Int?
    /// The host calls that are under way, the innermost last: the numbers that their contexts carry.
    /// Only this thread uses them, one step at a time: that need not be checked at each host call.
    @exclusivity(unchecked) var hostCalls: [UInt64] = []
    var hostCallCount: UInt64 = 0
    /// Whom the host functions of a call keep waiting: this sandbox, if nobody waits for the call.
    var chain: HostCallChain
    /// Whether the task that makes the call knows of that.
    var isChainBound = false
    /// How many of the calls under way were made from inside a host call.
    var depth = 0
    /// The task that has code run on this thread, if there is one: the last one that has begun with that.
    var cancellationScope: CancellationScope?
    /// That of the call under way.
    private var callScope: CancellationScope?
    /// When the guest polls for calls; nothing where it never does.
    var pollingPlan: PollingPlan?
    let polledCalls: PolledCalls
    /// The call that a caller makes meanwhile.
    var polledCall = PolledCall()
    /// What its host function has thrown.
    var polledFailure: (any Error)?
    /// How KVM_RUN has returned to the thread.
    var polledExit: Result<Exit, Errno>?
    /// Has the thread look after a guest that polls.
    let watch = LimitTimer(nil)
    /// The clock of the thread's CPU time.
    var threadClock = clockid_t()
    /// Whether callers run host functions themselves: not where the thread may do less than they.
    var answersPolledHostCalls = false
    /// The host functions that callers run themselves, where their imports are.
    @exclusivity(unchecked) var quickFunctions: [QuickFunction?]
    /// How long a caller polls before it is suspended, how long a quick host function takes at most, and how long a
    /// caller does not look at anything else, in ticks of the processor's clock.
    var callerTicks: UInt64 = 0
    var quickTicks: UInt64 = 0
    var lookTicks: UInt64 = 0
    /// What the plan says of that, apart from what changes in it.
    let callersYield: Bool
    /// The debugger that looks at this sandbox, as of the last time it has asked for attention.
    var debugger: Debugger?
    /// What has been done to the guest for it.
    var debugging = DebuggingState()

    init(
        machine: GuestMachine,
        module: GuestModule,
        image: GuestImage,
        imports: [Import],
        suspendedCall: SuspendedCall?,
        configuration: SandboxConfiguration,
        reference: RunLoopReference
    ) {
        self.machine = machine
        self.module = module
        self.image = image
        self.suspendedCall = suspendedCall
        self.imports = imports
        self.configuration = configuration
        unsafe self.reference = reference
        observer = SandboxObserver(module, configuration)
        chain = HostCallChain(reference)
        interruptHandle = reference.interruptHandle
        thread = reference.thread
        debuggerSlot = reference.debugger
        arenaPosition = machine.memory.addressSpace.arena.lowerBound
        polledCalls = reference.polledCalls
        pollingPlan = PollingPlan(configuration.polling, configuration.pollingTrial)
        callersYield = pollingPlan?.yields == true
        unsafe quickFunctions = Array(repeating: nil, count: imports.count)
        unsafe hostCalls.reserveCapacity(configuration.maximumCallDepth + 1)
        unsafe interruptHandle.setImmediateExit(machine.virtualCPU.immediateExit)
        if machine.memory.served.contains(where: { $0 != nil }) { knowServedMemory() }
        // The thread's own last act here is to take that away again.
        if pollingPlan != nil { thread.setIdle { [unowned(unsafe) self] in unsafe self.pollForCalls() } }
    }

    deinit {
        thread.setIdle(nil)
        // After this nobody touches the mapping of the virtual CPU any more, so it may go.
        timer.delete()
        cpuTimer.delete()
        watch.delete()
        interruptHandle.close()
        debuggerSlot.withLock { $0 }?.sandboxDidClose()
    }

    /// Traps on any thread but the virtual CPU's: signals would be sent to the wrong one.
    func assertOnThread() { thread.checkIsolated() }

    // MARK: - One call

    /// - Parameter scope: what hears of the task's cancellation, where no handler of the call's own does.
    func beginCall(_ options: CallOptions, in scope: CancellationScope? = nil) throws(SandboxError) {
        guard !isInCall else {
            throw SandboxError(
                .busy,
                "A guest call of this sandbox is under way; a host function makes nested ones through its context."
            )
        }
        try checkPoison("so this sandbox runs no more calls until it is restored to a snapshot")
        guard options.resumes == (suspendedCall != nil) else {
            throw options.resumes
                ? SandboxError(.invalidArgument, "There is no call to go on with.")
                : SandboxError(.busy, "The sandbox is in the middle of a call, to go on with or to restore it from.")
        }
        let timeLimit = options.timeLimit ?? configuration.timeLimit
        let cpuTimeLimit = options.cpuTimeLimit ?? configuration.cpuTimeLimit
        if timeLimit != nil { try timer.make(interruptHandle) }
        if cpuTimeLimit != nil { try cpuTimer.make(interruptHandle) }
        beginCall(interruptHandle.beginCall())
        meter = CallMeter(
            measuringCPUTime: configuration.measuresCPUTime || cpuTimeLimit != nil || options.pending != nil
        )
        pollingPlan?.callBegins(meter.began)
        if let pending = options.pending { begin(pending) }
        if let timeLimit { timer.arm(interruptHandle, nanoseconds: timeLimit.nanosecondsClamped) }
        if let cpuTimeLimit { cpuTimer.arm(interruptHandle, nanoseconds: cpuTimeLimit.nanosecondsClamped) }
        // A cancellation from before this beginning found nothing to end; one from now on does.
        callScope = scope
        if scope?.begin(callNumber) ?? Task.isCancelled { interruptHandle.cancelForTask() }
    }

    func beginCall(_ number: UInt64) {
        callNumber = number
        isInCall = true
        isLastFunction = true
        hasEnteredGuest = false
        firstCause = nil
        arenaPosition = machine.memory.addressSpace.arena.lowerBound
    }

    func begin(_ pending: PendingCall) {
        pendingCall = pending
        if let reason = pending.begin(callNumber) {
            _ = try? interruptHandle.terminate(call: callNumber, reason)
        }
    }

    /// Whether a call or a restore has ended half way.
    var isPoisoned: Bool { poison != nil }

    /// Whether the last call ended half way by its guest's doing or from outside.
    var hasEndedCall: Bool { if case .call? = poison { true } else { false } }

    func checkPoison(_ consequence: String) throws(SandboxError) {
        guard let poison else { return }
        let message =
            "An earlier call or restore \(poison.ending). The guest's memory may be inconsistent, \(consequence)."
        throw SandboxError(.poisoned, message)
    }

    /// From here on the sandbox is neither what it was nor what it shall be.
    func willRestore() { poison = .restore }

    /// The sandbox is what a snapshot is of.
    func didRestore(_ call: SuspendedCall?) {
        poison = nil
        // Large, and as a rule not there.
        if hasFault { lastFault = nil }
        suspendedCall = call
        polledCalls.clear()
        isExitPending = false
        isMachineBroken = false
        interruptHandle.clearInternalStop()
    }

    func endCall() {
        if let callScope {
            callScope.end()
            self.callScope = nil
        }
        timer.disarm(interruptHandle)
        cpuTimer.disarm(interruptHandle)
        isInCall = false
        currentImport = nil
        firstCause = nil
        meter.end(at: meter.reading)
        reportEnd()
        interruptHandle.endCall()
    }

    /// Tells those who want to know what the call has cost, which is over.
    func reportEnd() {
        observer?.callEnded(callNumber, meter)
        if let pendingCall {
            pendingCall.statistics.withLock { $0 = meter.statistics }
            self.pendingCall = nil
        }
    }

    func argumentWriter() -> GuestValueWriter {
        .arguments(mailbox: machine.mailbox, memory: machine.memory, arenaPosition: arenaPosition)
    }

    func resultReader() -> GuestValueReader { .result(mailbox: machine.mailbox, memory: machine.memory) }

    /// Calls a guest function whose arguments have been written, and comes back when it has returned.
    ///
    /// - Throws: ``SandboxError`` or what a host function threw; in both cases the call has ended, and the sandbox is
    ///   poisoned if guest code had run.
    func run(function: UInt64, arguments: borrowing GuestValueWriter) throws {
        calledFunction = function
        observer?.callBegins(self)
        give(function, arguments)
        try runToEnd()
    }

    /// Calls a guest function with one set of arguments after the other, in one call.
    ///
    /// - Parameter batch: has the results of those that have returned, also where this throws.
    /// - Throws: as ``run(function:arguments:)``; `.invalidResult` where the guest has left results out.
    func run(function: UInt64, batch: CallBatch) throws {
        guard !batch.isSingle else {
            try run(function: function, arguments: batch.passSingle(machine.memory, machine.mailbox))
            return batch.finishSingle(machine.mailbox)
        }
        calledFunction = function
        observer?.callBegins(self)
        arenaPosition = batch.pass(function, machine.memory, machine.mailbox)
        machine.mailbox.giveToGuest()
        do {
            defer { batch.finish(machine.memory, machine.mailbox) }
            try runToEnd()
        }
        try batch.checkIsWhole()
    }

    /// Goes on with a call whose registers have been set, and whose memory is as it was.
    func run(suspended call: SuspendedCall) throws {
        suspendedCall = nil
        // It was there before, and must not be taken for a sandbox without a call when it ends now.
        hasEnteredGuest = true
        calledFunction = call.function
        arenaPosition = call.arenaPosition
        observer?.callBegins(self)
        try runToEnd()
    }

    private func runToEnd() throws {
        let reason: CallState.Reason?
        do {
            reason = try runToReturn()
        } catch {
            // Settled before it is known what for: a request from before is the cause, a later one is too late.
            throw cause(of: error, interruptHandle.decide())
        }
        if let reason { throw cause(of: nil, reason) }
    }

    /// What a call ends with whose arguments could not be passed: whoever was told before that it would end was told
    /// the truth.
    func refusal(of function: UInt64, for error: any Error) -> any Error {
        calledFunction = function
        observer?.callBegins(self)
        guard let reason = interruptHandle.decide() else {
            observer?.callEnds(.failed, error)
            return error
        }
        return interrupted(reason, underlyingError: error)
    }

    func give(_ function: UInt64, _ arguments: borrowing GuestValueWriter) {
        arenaPosition = arguments.arenaPosition
        machine.mailbox.setStackArgumentCount(arguments.stackArgumentCount)
        machine.mailbox.setFunction(function)
        machine.mailbox.giveToGuest()
    }

    /// Enters the guest until the function has returned, or the call is to be ended from outside for the reason that
    /// is returned.
    ///
    /// - Parameters:
    ///   - first: how KVM_RUN has returned already, to who has left that in the word.
    ///   - isGiven: whether the guest knows that it is its turn. Else it is about to leave, and is told then.
    func runToReturn(after first: Result<Exit, Errno>? = nil, isGiven: Bool = true) throws -> CallState.Reason? {
        if let firstCause { throw firstCause }
        let isNested = depth > 0
        let settles = !isNested && isLastFunction
        var (left, isGiven) = (first, isGiven)
        while true {
            let known = left
            left = nil
            if known == nil {
                switch interruptHandle.enter() {
                case .enter: break
                case .end(let reason):
                    guard interruptHandle.isHeldAgainstKills else { return reason }
                    park()
                    continue
                case .stop:
                    park()
                    continue
                case .debugInterrupt:
                    try heedDebugger()
                    continue
                }
                // Not before: a request that came during a host call is found here, and the call was there when it
                // came.
                currentImport = nil
                hasEnteredGuest = true
                machine.memory.returnLentCopies()
                if let debugger { try arm(debugger) }
            }
            func leave(settling settles: Bool) -> CallState {
                known == nil ? interruptHandle.leave(settling: settles) : interruptHandle.settle(settles)
            }
            meter.exits += 1
            let exit: Exit
            do throws(Errno) {
                if let known { exit = try known.get() } else { exit = try machine.virtualCPU.run() }
            } catch {
                if debugger != nil { disarm() }
                let reason = leave(settling: settlesFaults).reason
                let served = machine.memory.takeServedFailure()
                // A kill did not wait for a page.
                if let reason, known != nil || served?.wasAbandoned == true { return reason }
                if let error = examined(served?.0 ?? failure(of: error)) { throw error }
                continue
            }
            if debugger != nil { disarm() }
            switch exit {
            // The guest has left because it did not know of its turn.
            case .ioOut(UInt16(SHIM_PORT_HOST_CALL), 1, 1, _) where !isGiven,
                .ioOut(UInt16(SHIM_PORT_RETURN), 1, 1, _) where !isGiven:
                let before = leave(settling: false)
                isExitPending = true
                interruptHandle.wakeSleepers()
                if let reason = before.reason { return reason }
                isGiven = true
                machine.mailbox.giveToGuest()
            // Wider or repeated ones reach the neighbouring ports as well, which the bitmap forbids.
            case .ioOut(UInt16(SHIM_PORT_HOST_CALL), 1, 1, _):
                let before = leave(settling: false)
                isExitPending = true
                interruptHandle.wakeSleepers()
                // A call that shall end ends before a host function is begun for it.
                if let reason = before.reason { return reason }
                guard isChainBound else { return try runToReturnWithinChain() }
                try answerHostCall()
            case .ioOut(UInt16(SHIM_PORT_RETURN), 1, 1, _) where !isNested,
                .ioOut(UInt16(SHIM_PORT_NESTED_RETURN), 1, 1, _) where isNested:
                isExitPending = true
                meter.returns += 1
                // Whoever has asked for the end before this has been promised it.
                return leave(settling: settles).reason
            case .interrupted:
                meter.interruptions += 1
                let before = leave(settling: false)
                isExitPending = false
                if let reason = before.reason { return reason }
                interruptHandle.wakeSleepers()
                if known == nil, !before.has(CallState.requests) { interruptHandle.countSpuriousKick() }
                // What a debugger has caused is no part of a state to be looked at, or of a snapshot.
                try finishException()
            default:
                // The first of several functions ends the call too when it faults.
                let before = leave(settling: settlesFaults)
                // The guest had left before it was settled how the call ends: whoever came in between was told that it
                // ends for him.
                if known != nil, let reason = before.reason { return reason }
                if try isForDebugger(exit) {
                    interruptHandle.wakeSleepers()
                    if let reason = before.reason { return reason }
                } else if let error = examined(misbehaviour(exit)) {
                    throw error
                }
            }
        }
    }

    /// Whether nobody can end the call any more once it has faulted: a debugger may look at it first, for long.
    private var settlesFaults: Bool { depth == 0 && debugger == nil }

    /// KVM_RUN has failed: as a rule because memory could not be had that the guest has touched.
    private func failure(of error: Errno) -> any Error {
        if error == .badAddress {
            let place = machine.findAccess { interruptHandle.clearImmediateExit() }
            return machine.memory.explain(place?.address, place?.access)
        }
        isMachineBroken = true
        return SandboxError(.systemCallFailed, "KVM_RUN failed in the guest.", underlyingError: error)
    }

    func misbehaviour(_ exit: Exit) -> Misbehaviour {
        guard case .ioOut(let port, let size, let count, _) = exit else {
            isMachineBroken = true
            return unexpectedExit(exit)
        }
        isExitPending = true
        guard size == 1, count == 1 else {
            isMachineBroken = true
            return Misbehaviour(.portAccess, port: port)
        }
        // Where it is expected it has not got here. The other port is a nested call's alone.
        if port == UInt16(SHIM_PORT_RETURN) {
            return Misbehaviour(.invalidHostCall, message: "The guest returned past a host function that is at work.")
        }
        return portFault(port)
    }
}
