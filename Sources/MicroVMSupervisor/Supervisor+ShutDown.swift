import MicroVM
#if ServiceLifecycle
public import ServiceLifecycle
#endif

/// What a supervisor's shutdown has found and done.
public struct ShutdownReport: Sendable {
    /// How many calls waited or ran when it began.
    public var calls: Int
    /// Those that had to be ended, in the order in which they were accepted.
    public var killed: [CallStatus]

    package init(calls: Int, killed: [CallStatus]) {
        self.calls = calls
        self.killed = killed
    }
}

extension Supervisor {
    /// Accepts no more calls, lets those go on for a while that wait or run, ends the rest, and closes all sandboxes.
    ///
    /// Calls that are held do not get on, and so are ended. When the task is cancelled, the while is over. May be
    /// called any number of times.
    ///
    /// - Parameter drainTime: how long calls may go on; ``SupervisorConfiguration/drainTime`` unless given.
    /// - Returns: what had to be ended.
    @discardableResult
    public func shutDown(drainTime: Duration? = nil) async -> ShutdownReport {
        if phase == .open { phase = .draining }
        let count = calls.count
        await drain(for: drainTime ?? configuration.drainTime)
        let rest = calls.values.sorted { $0.id < $1.id }
        let ids = rest.map(\.id)
        let switches = rest.compactMap { prepareToEnd($0, .killed(.shutdown)) }
        await Self.terminate(switches)
        await waitUntilIdle()
        phase = .closed
        snapshots = [:]
        let pools = (Array(modules.values) + retired).map(\.pool)
        modules = [:]
        retired = []
        for pool in pools { await pool.shutDown() }
        let report = ShutdownReport(calls: count, killed: ids.compactMap { history[$0] }.filter(\.isKilledByShutdown))
        log.shutDown(report)
        hub.finish()
        return report
    }

    /// Off the actor: each may have to wait until its guest has left.
    @concurrent
    private static func terminate(_ switches: [KillSwitch]) async {
        for killSwitch in switches { _ = try? killSwitch.terminate() }
    }

    private func drain(for time: Duration) async {
        guard !calls.isEmpty else { return }
        let waiting = Task { await waitForIdlenessOrPatience() }
        let timer = Task {
            guard (try? await Task.sleep(for: time)) != nil else { return }
            giveUpDraining()
        }
        await withTaskCancellationHandler {
            await waiting.value
        } onCancel: {
            Task { await self.giveUpDraining() }
        }
        timer.cancel()
    }

    private func waitForIdlenessOrPatience() async {
        guard !calls.isEmpty else { return }
        await withCheckedContinuation { idleWaiters.append($0) }
    }

    private func waitUntilIdle() async {
        // Who loses patience wakes everybody.
        while !calls.isEmpty { await waitForIdlenessOrPatience() }
    }

    private func giveUpDraining() {
        for waiter in idleWaiters { waiter.resume() }
        idleWaiters = []
    }
}

extension CallStatus {
    fileprivate var isKilledByShutdown: Bool {
        if case .killed(by: .shutdown, _) = outcome { true } else { false }
    }
}

#if ServiceLifecycle
extension Supervisor: Service {
    /// Does nothing until the graceful shutdown, and then what ``shutDown(drainTime:)`` does; ends all calls at once
    /// when the task is cancelled.
    public func run() async throws {
        try? await gracefulShutdown()
        await shutDown()
    }
}
#endif
