import MicroVM

/// Runs calls of many modules, watches them, and lets people end or hold each of them.
///
/// ```swift
/// let supervisor = Supervisor()
/// try await supervisor.register(module, as: "plugin")
/// let call = try await supervisor.call(CallRequest(module: "plugin", function: "add", arguments: [.i64(2), .i64(3)]))
/// ```
///
/// Each call runs in a sandbox of its module's pool, which is as good as new. How many run at the same time, with how
/// much memory and CPU time, is limited for each module and for all together; others wait in a queue, from which those
/// of the highest priority are taken first, and among these in turn for each value of a label. Whatever becomes of a
/// call is remembered for a while, and told to all who read ``events(bufferSize:)``.
///
/// A supervisor that is no longer used goes when its calls are over; ``shutDown(drainTime:)`` ends them.
public actor Supervisor {
    /// What it allows, and how much it remembers.
    public nonisolated let configuration: SupervisorConfiguration
    nonisolated let hub = EventHub()
    nonisolated let output = MinuteMeter()
    nonisolated let cpuTime = MinuteMeter()

    var modules: [String: RegisteredModule] = [:]
    /// Names that are being registered.
    var registrations: Set<String> = []
    /// Modules without a name that still have calls, and pools that are being shut down.
    var retired: [RegisteredModule] = []
    /// All that wait or run.
    var calls: [CallID: SupervisedCall] = [:]
    var queue = FairQueue()
    var running = 0
    var memory: UInt64 = 0
    var nextCall: UInt64
    var nextWaiter: UInt64 = 0
    var history: CallHistory
    var snapshots: [SnapshotID: KeptSnapshot] = [:]
    var nextSnapshot: UInt64 = 1
    var totals = CallTotals()
    var durations = DurationHistogram()
    var isThrottled = false
    var phase = Phase.open
    var idleWaiters: [CheckedContinuation<Void, Never>] = []
    var watch: Task<Void, Never>?
    nonisolated let log: SupervisorLog

    enum Phase {
        case open, draining, closed
    }

    /// Makes a supervisor without modules.
    public init(configuration: SupervisorConfiguration = SupervisorConfiguration()) {
        self.configuration = configuration
        nextCall = max(configuration.firstCall.rawValue, 1)
        history = CallHistory(size: configuration.historySize, outputSize: configuration.historyOutputSize)
        log = SupervisorLog(configuration)
    }

    deinit {
        watch?.cancel()
        hub.finish()
    }

    // MARK: - Starting calls

    /// Accepts a call, which begins as soon as there is room for it.
    ///
    /// - Returns: its number.
    /// - Throws: ``SupervisorError``: `.unknownModule`, `.unknownFunction`, `.invalidRequest`, `.limitTooSmall`,
    ///   `.queueFull`, `.shuttingDown`.
    @discardableResult
    public func start(_ request: CallRequest) throws(SupervisorError) -> CallID {
        try accept(request, try module(named: request.module), origin: nil).id
    }

    /// Makes a call, when there is room for it, and waits until it is over.
    ///
    /// That is what ``start(_:)`` and ``wait(for:)`` do together, for less: the call runs in the task that asks for it,
    /// and its host functions find that task's priority and task-local values. Everybody else sees it, and can end and
    /// hold it, like any other.
    ///
    /// When the task is cancelled the call is ended: the outcome then is ``CallOutcome/failed(_:)``, with
    /// `CancellationError` where it had not begun, and otherwise with a `SandboxError` of the code `.taskCancelled`.
    ///
    /// - Returns: what has become of it.
    /// - Throws: as ``start(_:)``.
    public nonisolated func call(_ request: CallRequest) async throws(SupervisorError) -> CallStatus {
        switch try await turn(for: request) {
        case .begins(let job): await withTaskExecutorPreference(job.executor) { await run(job) }
        case .isOver(let status): status
        }
    }

    func module(named name: String) throws(SupervisorError) -> RegisteredModule {
        guard let module = modules[name] else { throw Self.unknownModule(name) }
        return module
    }

    func accept(
        _ request: CallRequest,
        _ module: RegisteredModule,
        origin: CallOrigin?,
        isRunByCaller: Bool = false
    ) throws(SupervisorError) -> SupervisedCall {
        try check(request, module)
        guard phase == .open else {
            count(module) { $0.refused += 1 }
            throw SupervisorError(.shuttingDown, "The supervisor shuts down and accepts no more calls.")
        }
        let id = CallID(rawValue: nextCall)
        let limits = request.limits.bounded(by: module.settings.callLimits)
        let call = SupervisedCall(
            id: id,
            request: request,
            module: module,
            limits: limits,
            origin: origin,
            output: makeOutput(id, limits, module),
            isRunByCaller: isRunByCaller
        )
        let startsAtOnce = queue.count == 0 && hasRoom(for: module)
        let isFull =
            queue.count >= configuration.maximumQueuedCalls
            || queue.bytes + call.argumentSize > configuration.maximumQueuedBytes
        guard startsAtOnce || !isFull else {
            count(module) { $0.refused += 1 }
            throw SupervisorError(
                .queueFull,
                "\(queue.count) calls with \(queue.bytes) bytes of arguments wait already. Try again later."
            )
        }
        nextCall += 1
        calls[id] = call
        count(module) { $0.accepted += 1 }
        configuration.recorder?.accepted(call.status)
        publish(.queued, call)
        if startsAtOnce {
            begin(call)
        } else {
            module.queued += 1
            queue.insert(call, group: request.labels[configuration.fairnessLabel])
            startCalls()
        }
        watchIfNeeded()
        return call
    }

    private func check(_ request: CallRequest, _ module: RegisteredModule) throws(SupervisorError) {
        guard module.module.export(named: request.function)?.kind == .function else {
            throw SupervisorError(
                .unknownFunction,
                "The module \(request.module.printable) exports no function named \(request.function.printable)."
            )
        }
        guard request.labels.count <= 32,
            request.labels.allSatisfy({ (1...256).contains($0.key.utf8.count) && $0.value.utf8.count <= 256 })
        else {
            throw SupervisorError(
                .invalidRequest,
                "There may be 32 labels, each with a name of 1 to 256 bytes and a value of at most 256."
            )
        }
        let limits = request.limits
        guard Self.isPositive(limits.time), Self.isPositive(limits.cpuTime), Self.isPositive(limits.queueTime) else {
            throw SupervisorError(.invalidRequest, "A limit on time must be longer than nothing.")
        }
        let limit = min(configuration.limits.memory ?? .max, module.settings.limits.memory ?? .max)
        guard module.memory <= limit else {
            throw SupervisorError(
                .limitTooSmall,
                "A sandbox of \(request.module.printable) may own \(module.memory) bytes of memory, and all calls "
                    + "together \(limit): it can never run."
            )
        }
    }

    private static func isPositive(_ limit: Duration?) -> Bool { limit ?? .seconds(1) > .zero }

    private func makeOutput(_ id: CallID, _ limits: CallLimits, _ module: RegisteredModule) -> CallOutput {
        var meters: [(meter: MinuteMeter, limit: UInt64)] = []
        if let limit = module.settings.limits.outputPerMinute { meters.append((module.output, limit)) }
        if let limit = configuration.limits.outputPerMinute { meters.append((output, limit)) }
        let capacity = configuration.outputBufferSize
        guard limits.output != nil || !meters.isEmpty else { return CallOutput(capacity: capacity) }
        return CallOutput(
            capacity: capacity,
            limit: limits.output,
            meters: meters,
            reachedLimit: { [weak self] limit in
                // On the sandbox's thread, in the middle of the guest's host call: the end comes from elsewhere.
                Task.detached { await self?.end(id, for: limit) }
            }
        )
    }

    // MARK: - Looking

    /// All calls that wait or run, in the order in which they were accepted.
    public func list() -> [CallStatus] {
        calls.values.sorted { $0.id < $1.id }.map(\.status)
    }

    /// The calls that are over and not forgotten, the last one first.
    ///
    /// - Parameter limit: how many at most.
    public func finished(limit: Int = .max) -> [CallStatus] { history.latest(limit) }

    /// What is known of a call, whether it is over or not.
    ///
    /// - Throws: ``SupervisorError/Code/unknownCall``.
    public func status(of id: CallID) throws(SupervisorError) -> CallStatus {
        if let call = calls[id] { return call.status }
        if let call = history[id] { return call }
        throw Self.unknownCall(id)
    }

    /// What a call's guest has written, and writes.
    ///
    /// - Throws: ``SupervisorError/Code/unknownCall``.
    public func output(of id: CallID) throws(SupervisorError) -> CallOutput {
        if let output = calls[id]?.output ?? history.output(of: id) { return output }
        throw Self.unknownCall(id)
    }

    /// Waits until a call is over.
    ///
    /// - Returns: what has become of it; where the task is cancelled, how it is now.
    /// - Throws: ``SupervisorError/Code/unknownCall``.
    public func wait(for id: CallID) async throws(SupervisorError) -> CallStatus {
        guard calls[id] != nil else { return try status(of: id) }
        let number = nextWaiter
        nextWaiter += 1
        let ended = await withTaskCancellationHandler {
            await withCheckedContinuation { (continuation: CheckedContinuation<CallStatus?, Never>) in
                // By a method of the actor: a closure that did not need the actor would run elsewhere.
                self.addWaiter(continuation, number, for: id)
            }
        } onCancel: {
            Task { await self.stopWaiting(for: id, number) }
        }
        if let ended { return ended }
        return try status(of: id)
    }

    private func addWaiter(
        _ continuation: CheckedContinuation<CallStatus?, Never>,
        _ number: UInt64,
        for id: CallID
    ) {
        guard !Task.isCancelled, let call = calls[id] else { return continuation.resume(returning: nil) }
        call.waiters[number] = continuation
    }

    private func stopWaiting(for id: CallID, _ number: UInt64) {
        calls[id]?.waiters.removeValue(forKey: number)?.resume(returning: nil)
    }

    /// What happens from now on.
    ///
    /// - Parameter bufferSize: how many events are kept for a reader that is slow; see ``SupervisorEvents``.
    public nonisolated func events(bufferSize: Int = 1024) -> SupervisorEvents { hub.reader(capacity: bufferSize) }

    /// How much there is of everything.
    public var statistics: SupervisorStatistics {
        SupervisorStatistics(
            running: running,
            queued: queue.count,
            stopped: calls.values.count { $0.state == .stopped },
            throttled: calls.values.count { $0.state == .throttled },
            memory: memory,
            cpuTimeInMinute: .nanoseconds(Int64(clamping: cpuTime.total)),
            outputInMinute: output.total,
            modules: modules.count,
            snapshots: snapshots.count,
            totals: totals,
            durations: durations,
            isShuttingDown: phase != .open
        )
    }

    // MARK: - Errors

    static func unknownModule(_ name: String) -> SupervisorError {
        SupervisorError(.unknownModule, "There is no module named \(name.printable).")
    }

    static func unknownCall(_ id: CallID) -> SupervisorError {
        SupervisorError(.unknownCall, "There is no call \(id), or it has been forgotten.")
    }

    func count(_ module: RegisteredModule, _ change: (inout CallTotals) -> Void) {
        change(&totals)
        change(&module.totals)
    }

    func publish(_ kind: SupervisorEvent.Kind, _ call: SupervisedCall) {
        hub.publish(kind, call: call.id, module: call.request.module, function: call.request.function)
        log.event(kind, call)
    }
}

/// How much a supervisor has of everything.
public struct SupervisorStatistics: Sendable {
    /// How many calls run, the ones that are held included.
    public var running: Int
    /// How many wait in the queue.
    public var queued: Int
    /// How many are held by somebody.
    public var stopped: Int
    /// How many are held until there is CPU time.
    public var throttled: Int
    /// The bytes of memory that the sandboxes of running calls may own.
    public var memory: UInt64
    /// The CPU time that has been used in the last sixty seconds, as far as it has been counted.
    public var cpuTimeInMinute: Duration
    /// The bytes of output that have been written in the last sixty seconds.
    public var outputInMinute: UInt64
    /// How many modules are registered.
    public var modules: Int
    /// How many snapshots are kept.
    public var snapshots: Int
    /// What has become of all calls.
    public var totals: CallTotals
    /// How long those have taken that are over.
    public var durations: DurationHistogram
    /// Whether no more calls are accepted.
    public var isShuttingDown: Bool
}
