/// Warm sandboxes that are all the same, lent to one caller at a time.
///
/// ```swift
/// let pool = try await SandboxPool(module, size: 4...16) { sandbox in
///     try await sandbox.call("load_tables")
/// }
/// let answer: [UInt8] = try await pool.withSandbox { sandbox in
///     try await sandbox.call("handle", request)
/// }
/// ```
///
/// The module's initialisers and the preparation run once. What the sandbox is then is the pool's ``snapshot``, and
/// every sandbox that is lent is just that.
///
/// A sandbox is restored when it comes back, on its own thread, while its borrower goes on: nothing of a tenant lies
/// about in an idle sandbox, not even for as long as nobody needs it; whoever takes one that is idle has nothing to
/// wait for; and one that cannot be restored is found out before anybody gets it. It is restored however the loan has
/// ended: when its calls were killed or have faulted, when the closure threw, when its task was cancelled. One that
/// cannot be is closed, and another one is made for the next caller.
///
/// The memories of all sandboxes lie in one reservation of address space, with guard pages between them. A pool that is
/// no longer used goes like any other object, and everything with it; ``shutDown()`` lets others finish first.
///
/// With the package trait `Metrics` a pool reports through swift-metrics, each metric with the dimension `pool`, its
/// name: meters `microvm.pool.in_use` and `microvm.pool.waiting`, and the counters `microvm.pool.restores`,
/// `.restore_failures`, `.pages_copied`, `.pages_dropped`, `.killed_returns`, `.poisoned_returns` and `.refusals`. With
/// the trait `ServiceLifecycle` a pool is a `Service` that ends at the graceful shutdown.
public final class SandboxPool: Sendable {
    struct State {
        /// Restored, and in nobody's hands; the one that was used last is taken first, because its memory is warm.
        /// While somebody waits there is none.
        var idle: [Sandbox] = []
        var loans: [ObjectIdentifier: SandboxLoan] = [:]
        /// How many are being made.
        var making = 0
        /// All there are, and those that are being made.
        var count = 0
        /// How many of them are about to be closed because there are too many.
        var departing = 0
        /// How many there shall be at least, and at most.
        var size: ClosedRange<Int>
        var line = SandboxPoolLine()
        var isShutDown = false
        var shutDowns: [CheckedContinuation<Void, Never>] = []
        var totals = SandboxPoolStatistics()
        /// Whether callers have been turned away since there last was an idle sandbox.
        var isExhausted = false

        mutating func lend(_ sandbox: Sandbox) -> Sandbox {
            let loan = SandboxLoan(of: sandbox)
            loans[ObjectIdentifier(sandbox)] = loan
            totals.loans += 1
            return Sandbox(loan)
        }

        /// Whether there is one too many, which then is to be closed.
        mutating func dismissesOne() -> Bool {
            guard count - departing > size.upperBound else { return false }
            departing += 1
            return true
        }
    }

    /// What to do next about a caller.
    private enum Reception {
        case grant(SandboxPoolGrant)
        case wait(SandboxPoolLine.Waiter)
        case refuse
        case shutDown
    }

    /// What the pool is called in its metrics.
    public let name: String
    /// What each sandbox is when it is lent.
    public let snapshot: Snapshot
    /// How many sandboxes are made at the beginning, and how many there are at most. Those in between are made when
    /// they are needed. ``resize(to:)`` changes it.
    public var size: ClosedRange<Int> { state.withLock { $0.size } }
    /// How many callers may wait at the same time.
    public let maximumWaiters: Int
    /// How long each of them may wait.
    public let waitingTimeLimit: Duration?

    private let hostFunctions: [HostFunction]
    private let configuration: SandboxConfiguration
    let reservation: MemoryReservation
    let metrics: SandboxPoolMetrics
    let log: SandboxPoolLog
    /// Everything that changes. Whoever takes a sandbox out of it has it alone until it is back in, and the lock orders
    /// the two; continuations are resumed, sandboxes made and restored when it is free.
    let state: Locked<State>

    // MARK: - Making

    /// Makes a pool of a module's sandboxes.
    ///
    /// - Parameters:
    ///   - module: the module to run.
    ///   - hostFunctions: what the module's imports stand for, in every sandbox.
    ///   - configuration: memory and limits of every sandbox.
    ///   - size: how many sandboxes are made now, and how many there may be at most. `0...16` makes them all when they
    ///     are needed, `16...16` makes them all now; one takes about a millisecond.
    ///   - maximumWaiters: how many callers may wait for a sandbox at the same time; any number unless given. The next
    ///     one is refused with ``SandboxError/Code/poolExhausted``.
    ///   - waitingTimeLimit: how long each may wait, before it is refused likewise; for ever unless given.
    ///   - name: what the pool is called in its metrics.
    ///   - prepare: brings the first sandbox, whose initialisers have run, into the state that all are to be in.
    /// - Throws: ``SandboxError``, as when a sandbox is made, and `.invalidConfiguration` for limits that make no
    ///   sense; and what `prepare` throws.
    public convenience init(
        _ module: GuestModule,
        hostFunctions: [HostFunction] = [],
        configuration: SandboxConfiguration = SandboxConfiguration(),
        size: ClosedRange<Int>,
        maximumWaiters: Int = .max,
        waitingTimeLimit: Duration? = nil,
        name: String = "sandboxes",
        prepare: (Sandbox) async throws -> Void = { _ in }
    ) async throws {
        let sandbox = try await Sandbox(module, hostFunctions: hostFunctions, configuration: configuration)
        let snapshot: Snapshot
        do {
            try await prepare(sandbox)
            snapshot = try await sandbox.snapshot()
        } catch {
            await sandbox.close()
            throw error
        }
        await sandbox.close()
        try await self.init(
            from: snapshot,
            hostFunctions: hostFunctions,
            configuration: configuration,
            size: size,
            maximumWaiters: maximumWaiters,
            waitingTimeLimit: waitingTimeLimit,
            name: name
        )
    }

    /// Makes a pool of sandboxes that are what another one was when a snapshot of it was taken.
    ///
    /// - Parameters:
    ///   - snapshot: what every sandbox is when it is lent. With one that was taken in the middle of a call, that call
    ///     goes on in ``Sandbox/resume(timeLimit:cpuTimeLimit:returning:)``.
    ///   - hostFunctions: what the module's imports stand for, in every sandbox.
    ///   - configuration: limits and output; that of the snapshot's sandbox unless given. Its memory sizes must be the
    ///     same.
    ///   - size: as that of a module's pool, and likewise the rest.
    ///   - maximumWaiters: how many callers may wait for a sandbox at the same time.
    ///   - waitingTimeLimit: how long each may wait.
    ///   - name: what the pool is called in its metrics.
    /// - Throws: ``SandboxError``, as ``Sandbox/init(from:hostFunctions:configuration:)``, and `.invalidConfiguration`
    ///   for limits that make no sense.
    public init(
        from snapshot: Snapshot,
        hostFunctions: [HostFunction] = [],
        configuration: SandboxConfiguration? = nil,
        size: ClosedRange<Int>,
        maximumWaiters: Int = .max,
        waitingTimeLimit: Duration? = nil,
        name: String = "sandboxes"
    ) async throws {
        try Self.check(size, maximumWaiters)
        self.name = name
        self.snapshot = snapshot
        self.hostFunctions = hostFunctions
        self.configuration = configuration ?? snapshot.configuration
        state = Locked(State(size: size))
        self.maximumWaiters = maximumWaiters
        self.waitingTimeLimit = waitingTimeLimit
        metrics = SandboxPoolMetrics(self.configuration, pool: name)
        log = SandboxPoolLog(self.configuration, pool: name)
        reservation = try MemoryReservation(
            memorySize: Int(snapshot.image.addressSpace.size),
            boundary: snapshot.image.addressSpace.hostBoundary,
            count: size.upperBound
        )
        for _ in 0..<size.lowerBound {
            let sandbox = try makeSandbox()
            state.withLock { state in
                state.count += 1
                state.idle.append(sandbox)
            }
        }
        log.made(size)
    }

    static func check(_ size: ClosedRange<Int>, _ maximumWaiters: Int) throws(SandboxError) {
        guard size.lowerBound >= 0, size.upperBound > 0, maximumWaiters >= 0 else {
            throw SandboxError(
                .invalidConfiguration,
                "A pool of \(size.lowerBound) to \(size.upperBound) sandboxes with \(maximumWaiters) waiting callers "
                    + "serves nobody; it needs at least one sandbox, and no number may be negative."
            )
        }
    }

    func makeSandbox() throws(SandboxError) -> Sandbox {
        try Sandbox(from: snapshot, hostFunctions, configuration, in: reservation)
    }

    // MARK: - Lending

    /// Lends a sandbox for as long as a closure runs.
    ///
    /// Callers are served in the order in which they come. When the closure has returned or thrown, whatever the
    /// sandbox is still doing for it is killed, and it is restored. What was kept of it is of no use: calls throw
    /// ``SandboxError/Code/closed``. Only its ``Sandbox/interruptHandle`` is the next borrower's as well, and so must
    /// not be used any more; a ``KillSwitch`` may, it knows its call.
    ///
    /// - Parameters:
    ///   - snapshot: what the sandbox shall be, where that is not the pool's own ``SandboxPool/snapshot``: one of the
    ///     same module, memory sizes and host functions.
    ///   - body: what the sandbox is needed for.
    /// - Returns: what `body` returns.
    /// - Throws: what `body` throws; ``SandboxError``: `.poolExhausted` when too many callers wait already, or this one
    ///   has waited for too long; `.taskCancelled` when the task is cancelled while it waits; `.poolShutDown`;
    ///   `.incompatibleSnapshot`; and, where a sandbox had to be made, whatever that throws.
    public func withSandbox<Result>(
        restoredTo snapshot: Snapshot? = nil,
        _ body: (Sandbox) async throws -> Result
    ) async throws -> Result {
        let (sandbox, loan) = try await borrow()
        defer { giveBack(loan) }
        if let snapshot, snapshot !== self.snapshot { count(try await sandbox.restore(to: snapshot)) }
        return try await body(sandbox)
    }

    private func borrow() async throws -> (Sandbox, SandboxLoan) {
        let grant: SandboxPoolGrant
        switch receive() {
        case .grant(let immediate): grant = immediate
        case .wait(let waiter): grant = try await wait(waiter)
        case .refuse: throw refusal("\(maximumWaiters) callers wait for them already")
        case .shutDown: throw Self.shutDownError
        }
        let sandbox: Sandbox
        switch grant {
        case .sandbox(let idle): sandbox = idle
        case .place:
            // It takes its time, for which the caller's executor may be too good.
            sandbox = try await withTaskExecutorPreference(globalConcurrentExecutor) { try fillPlace() }
        }
        // Cannot happen, whatever a guest or a caller does: every sandbox that is granted comes from `State.lend`,
        // which makes it of a loan.
        guard let loan = sandbox.loan else { preconditionFailure("lent without a loan") }
        metrics.inUse(1)
        return (sandbox, loan)
    }

    private func receive() -> Reception {
        state.withLock { state in
            if state.isShutDown { return .shutDown }
            if let sandbox = state.idle.popLast() { return .grant(.sandbox(state.lend(sandbox))) }
            if state.count < state.size.upperBound {
                state.count += 1
                state.making += 1
                return .grant(.place)
            }
            guard state.line.count < maximumWaiters else { return .refuse }
            return .wait(state.line.join())
        }
    }

    private func wait(_ waiter: SandboxPoolLine.Waiter) async throws -> SandboxPoolGrant {
        metrics.waiting(1)
        defer { metrics.waiting(-1) }
        let timer = waitingTimeLimit.map { limit in
            Task {
                try await Task.sleep(for: limit)
                leave(waiter, refusal("this caller has waited for \(limit)"))
            }
        }
        defer { timer?.cancel() }
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let suspends = state.withLock { _ in waiter.suspend(continuation) }
                if !suspends { continuation.resume() }
            }
        } onCancel: {
            let message = "The task was cancelled while it waited for a sandbox of the pool."
            leave(waiter, SandboxError(.taskCancelled, message))
        }
        // Cannot be nil: only what settles the wait resumes it.
        guard let outcome = state.withLock({ _ in waiter.outcome }) else { preconditionFailure("woken for nothing") }
        return try outcome.get()
    }

    private func leave(_ waiter: SandboxPoolLine.Waiter, _ error: SandboxError) {
        let resumption = state.withLock { $0.line.leave(waiter, error) }
        resumption?()
    }

    /// Makes the sandbox whose place the caller has been given.
    private func fillPlace() throws(SandboxError) -> Sandbox {
        do throws(SandboxError) {
            let made = try makeSandbox()
            let lent: Sandbox? = state.withLock { state in
                guard !state.isShutDown else { return nil }
                state.making -= 1
                return state.lend(made)
            }
            guard let lent else { throw Self.shutDownError }
            return lent
        } catch {
            // The next one in the line tries for itself.
            state.withLock { $0.making -= 1 }
            if error.code != .poolShutDown { log.makingFailed(error) }
            loseSandbox()
            throw error
        }
    }

    private func refusal(_ reason: String) -> SandboxError {
        let isFirst = state.withLock { state in
            state.totals.refusals += 1
            defer { state.isExhausted = true }
            return !state.isExhausted
        }
        metrics.refused()
        // Once for all that are turned away in a row: under load nobody needs more words.
        if isFirst { log.isExhausted(reason) }
        let message = "All \(size.upperBound) sandboxes of the pool are in use, and \(reason). Try again later."
        return SandboxError(.poolExhausted, message)
    }

    static var shutDownError: SandboxError {
        SandboxError(.poolShutDown, "The pool has been shut down and lends no more sandboxes.")
    }

    // MARK: - Looking

    /// What the pool has and what it has done.
    public var statistics: SandboxPoolStatistics {
        state.withLock { state in
            var statistics = state.totals
            statistics.sandboxes = state.count
            statistics.idle = state.idle.count
            statistics.inUse = state.loans.count + state.making
            statistics.waiting = state.line.count
            return statistics
        }
    }
}
