import MicroVM

/// A call that waits or runs. The supervisor's own: only its actor uses what changes.
final class SupervisedCall {
    /// What holds it.
    enum Hold: Hashable {
        case request
        case throttle
    }

    let id: CallID
    let request: CallRequest
    let module: RegisteredModule
    let limits: CallLimits
    /// What it goes on from, where it is no new call.
    let origin: CallOrigin?
    let output: CallOutput
    /// Whether the task that asked for it runs it, which waits for its turn.
    let isRunByCaller: Bool
    /// The turn, when it has come. Whoever waits for it goes on.
    var turn: CallTurn? {
        didSet {
            guard let turn, let waiter = turnWaiter else { return }
            turnWaiter = nil
            waiter.resume(returning: turn)
        }
    }
    var turnWaiter: CheckedContinuation<CallTurn, Never>?
    /// How many bytes its arguments have.
    let argumentSize: Int
    let accepted = WallTime.now
    let acceptedInstant = ContinuousClock.now
    var began: WallTime?
    private(set) var beganInstant: ContinuousClock.Instant?
    /// What there is of it while it is in its sandbox.
    private(set) var sandbox: Sandbox?
    var killSwitch: KillSwitch?
    var hasStarted = false
    private(set) var holds: Set<Hold> = []
    /// Since when it is held, and for how long it was held before.
    private var heldSince: ContinuousClock.Instant?
    private var heldBefore = Duration.zero
    /// Why it is ended, where somebody has asked for that.
    var ending: CallEnding?
    var sample: CallSample?
    var sampledInstant: ContinuousClock.Instant?
    /// How much of its CPU time has been counted.
    var countedCPUTime = Duration.zero
    var isOverdue = false
    var waiters: [UInt64: CheckedContinuation<CallStatus?, Never>] = [:]

    init(
        id: CallID,
        request: CallRequest,
        module: RegisteredModule,
        limits: CallLimits,
        origin: CallOrigin?,
        output: CallOutput,
        isRunByCaller: Bool
    ) {
        self.id = id
        self.request = request
        self.module = module
        self.limits = limits
        self.origin = origin
        self.output = output
        self.isRunByCaller = isRunByCaller
        argumentSize = request.arguments.reduce(0) { $0 + $1.byteCount }
    }

    /// Whether it has had its turn in its sandbox, so that there is something to be seen of it.
    var isUnderWay: Bool { killSwitch?.hasBegun == true }

    var state: CallStatus.State {
        guard hasStarted else { return .queued }
        if holds.contains(.request) { return .stopped }
        if holds.contains(.throttle) { return .throttled }
        return isUnderWay ? .running : .starting
    }

    var status: CallStatus {
        CallStatus(
            id: id,
            module: request.module,
            function: request.function,
            returns: request.returns,
            labels: request.labels,
            priority: request.priority,
            limits: limits,
            parent: origin?.parent,
            state: state,
            accepted: accepted,
            began: began,
            output: output.written,
            sample: sample
        )
    }

    /// Holds it for a reason: at once if it runs, when it begins if it does not yet.
    func hold(_ hold: Hold) throws(StopError) {
        if holds.isEmpty {
            try sandbox?.interruptHandle.beginExternalStop()
            heldSince = .now
        }
        holds.insert(hold)
    }

    func release(_ hold: Hold) {
        guard holds.remove(hold) != nil, holds.isEmpty else { return }
        heldBefore = heldDuration(until: .now)
        heldSince = nil
        try? sandbox?.interruptHandle.endExternalStop()
    }

    /// It is in its sandbox, where it is held if it is to be.
    func enter(_ sandbox: Sandbox) {
        self.sandbox = sandbox
        beganInstant = .now
        heldBefore = .zero
        guard !holds.isEmpty else { return }
        heldSince = .now
        // Where the sandbox is gone already, the call is over as well.
        try? sandbox.interruptHandle.beginExternalStop()
    }

    /// It leaves its sandbox, and nothing of it holds the next one's call.
    func leave() {
        if !holds.isEmpty { try? sandbox?.interruptHandle.endExternalStop() }
        sandbox = nil
        killSwitch = nil
    }

    /// For how long it has been held since it began.
    func heldDuration(until now: ContinuousClock.Instant) -> Duration {
        heldBefore + (heldSince.map { $0.duration(to: now) } ?? .zero)
    }
}

/// What whoever runs a call needs of it.
struct CallJob: Sendable {
    let id: CallID
    let request: CallRequest
    let limits: CallLimits
    let snapshot: Snapshot?
    let pool: SandboxPool
    let output: CallOutput
    let executor: (any TaskExecutor)?
}

/// How it goes on with a call that its caller runs.
enum CallTurn: Sendable {
    /// It may begin.
    case begins(CallJob)
    /// It has been ended while it waited.
    case isOver(CallStatus)
}

/// What a forked call goes on from.
struct CallOrigin: Sendable {
    var parent: CallID
    var snapshot: Snapshot
}

/// Why a call is ended from outside.
enum CallEnding: Sendable {
    case killed(CallKiller)
    case limited(CallLimit)
}
