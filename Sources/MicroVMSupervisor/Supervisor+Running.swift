import MicroVM

extension Supervisor {
    // MARK: - Beginning

    /// Whether one more call of a module may run now.
    func hasRoom(for module: RegisteredModule) -> Bool { hasRoom && module.hasRoom && fits(module) }

    private var hasRoom: Bool {
        guard !isThrottled else { return false }
        if let limit = configuration.limits.sandboxes, running >= limit { return false }
        return true
    }

    private func fits(_ module: RegisteredModule) -> Bool {
        guard let limit = configuration.limits.memory else { return true }
        return module.memory <= limit && memory <= limit - module.memory
    }

    /// Starts as many of the calls that wait as there is room for.
    func startCalls() {
        while hasRoom, let call = queue.next(where: { $0.hasRoom && fits($0) }) {
            call.module.queued -= 1
            begin(call)
        }
    }

    func begin(_ call: SupervisedCall) {
        call.hasStarted = true
        call.began = .now
        running += 1
        memory += call.module.memory
        call.module.running += 1
        publish(.started, call)
        let job = CallJob(
            id: call.id,
            request: call.request,
            limits: call.limits,
            snapshot: call.origin?.snapshot,
            pool: call.module.pool,
            output: call.output,
            executor: configuration.taskExecutor
        )
        guard call.isRunByCaller else {
            Task.detached(executorPreference: job.executor) { await self.run(job) }
            return
        }
        call.turn = .begins(job)
    }

    /// Accepts a call that its caller is to run, and waits until it may begin or is over without that.
    func turn(for request: CallRequest) async throws(SupervisorError) -> CallTurn {
        let call = try accept(request, try module(named: request.module), origin: nil, isRunByCaller: true)
        if let turn = call.turn { return turn }
        let id = call.id
        return await withTaskCancellationHandler {
            await withCheckedContinuation { (continuation: CheckedContinuation<CallTurn, Never>) in
                // By a method of the actor: a closure that did not need the actor would run elsewhere.
                self.addTurnWaiter(continuation, id)
            }
        } onCancel: {
            Task { await self.leaveQueue(id) }
        }
    }

    private func addTurnWaiter(_ continuation: CheckedContinuation<CallTurn, Never>, _ id: CallID) {
        // It is there: since it was accepted nobody else has had the actor.
        calls[id]?.turnWaiter = continuation
    }

    /// The task that wanted to run a call has been cancelled while the call waited.
    private func leaveQueue(_ id: CallID) {
        guard let call = calls[id], !call.hasStarted else { return }
        _ = prepareToEnd(call, nil)
    }

    /// Runs a call that may begin, in the current task.
    @discardableResult
    @concurrent
    nonisolated func run(_ job: CallJob) async -> CallStatus {
        do {
            return try await job.pool.withSandbox(restoredTo: job.snapshot) { sandbox in
                let call = try SandboxedCall(
                    job.request,
                    limits: job.limits,
                    resumes: job.snapshot != nil,
                    in: sandbox
                )
                // Before the call can begin: what holds it holds it from the start, and what ends it ends it.
                if await enter(job.id, sandbox, call.killSwitch) { _ = try? call.killSwitch.terminate() }
                // The guest's output is that of this call: its host functions inherit the value.
                let (result, statistics) = await CallOutput.$current.withValue(job.output) { await call.run() }
                // Still inside the loan, so that nothing of this call's reaches the next one.
                return await end(job.id, result, statistics)
            }
        } catch {
            return await end(job.id, .failure(error), nil)
        }
    }

    /// A call has its sandbox, and a switch that can end it. Whether it shall end at once.
    private func enter(_ id: CallID, _ sandbox: Sandbox, _ killSwitch: KillSwitch) -> Bool {
        let call = running(id)
        if call.module.isThrottled || isThrottled { try? call.hold(.throttle) }
        call.enter(sandbox)
        call.killSwitch = killSwitch
        return call.ending != nil
    }

    /// A call that has begun and not ended.
    private func running(_ id: CallID) -> SupervisedCall {
        // Cannot fail, whatever a guest or a caller does: one that has begun is ended by whoever runs it, and by nobody
        // else.
        guard let call = calls[id] else { preconditionFailure("a call that runs is over") }
        return call
    }

    // MARK: - Ending

    /// Notes why a call is to end. What then ends it, if it has begun; one that waits is over after this.
    func prepareToEnd(_ call: SupervisedCall, _ ending: CallEnding?) -> KillSwitch? {
        if call.ending == nil { call.ending = ending }
        if !call.hasStarted {
            queue.remove(call)
            call.module.queued -= 1
            end(call, .failure(CancellationError()), nil)
        }
        return call.killSwitch
    }

    /// A call has reached a limit that its sandbox does not know of.
    func end(_ id: CallID, for limit: CallLimit) {
        guard let call = calls[id] else { return }
        let killSwitch = prepareToEnd(call, .limited(limit))
        // Elsewhere: this may have to wait until the guest has left.
        if let killSwitch { Task.detached { _ = try? killSwitch.terminate() } }
    }

    private func end(
        _ id: CallID,
        _ result: Result<CallValue, any Error>,
        _ statistics: CallStatistics?
    ) -> CallStatus {
        let call = running(id)
        call.leave()
        running -= 1
        memory -= call.module.memory
        call.module.running -= 1
        let status = end(call, result, statistics)
        startCalls()
        closeRetired(call.module)
        return status
    }

    @discardableResult
    private func end(
        _ call: SupervisedCall,
        _ result: Result<CallValue, any Error>,
        _ statistics: CallStatistics?
    ) -> CallStatus {
        calls[call.id] = nil
        call.output.finish()
        let outcome = outcome(of: result, call)
        var status = call.status
        status.state = .finished
        status.ended = .now
        status.outcome = outcome
        status.statistics = statistics
        if case .failure(let error as SandboxError) = result { status.coreDump = error.coreDump }
        let used = statistics?.cpuTime ?? .zero
        charge(call, used)
        if let statistics { durations.add(statistics.duration) }
        count(call.module) { totals in
            totals.count(outcome)
            totals.cpuTime += used
            totals.output += status.output
        }
        history.add(status, output: call.output)
        configuration.recorder?.ended(status)
        publish(Self.event(outcome), call)
        for waiter in call.waiters.values { waiter.resume(returning: status) }
        call.waiters = [:]
        if !call.hasStarted, call.isRunByCaller { call.turn = .isOver(status) }
        if calls.isEmpty {
            for waiter in idleWaiters { waiter.resume() }
            idleWaiters = []
        }
        return status
    }

    private func outcome(of result: Result<CallValue, any Error>, _ call: SupervisedCall) -> CallOutcome {
        switch result {
        case .success(let value): return .returned(value)
        case .failure(let error):
            let failure = error as? SandboxError
            if let fault = failure?.fault { return .faulted(fault) }
            switch failure?.code {
            case .timeLimitExceeded?: return .limited(.time, at: failure?.interruption)
            case .cpuTimeLimitExceeded?: return .limited(.cpuTime, at: failure?.interruption)
            default: break
            }
            // What the guest's end looks like from inside says nothing about who wanted it.
            switch call.ending {
            case .killed(let killer): return .killed(by: killer, at: failure?.interruption)
            case .limited(let limit): return .limited(limit, at: failure?.interruption)
            case nil: return .failed(error)
            }
        }
    }

    private static func event(_ outcome: CallOutcome) -> SupervisorEvent.Kind {
        switch outcome {
        case .returned: .exited
        case .faulted(let fault): .faulted(fault.kind.rawValue)
        case .killed(let killer, _): .killed(killer)
        case .limited(let limit, _): .limitHit(limit)
        case .failed(let error): .failed((error as? SandboxError)?.code.description ?? "\(type(of: error))")
        }
    }

    /// Counts CPU time that a call has used, as far as it has not been counted yet.
    func charge(_ call: SupervisedCall, _ used: Duration) {
        let more = used - call.countedCPUTime
        guard more > .zero else { return }
        call.countedCPUTime = used
        let (seconds, attoseconds) = more.components
        let nanoseconds = UInt64(seconds) * 1_000_000_000 + UInt64(attoseconds / 1_000_000_000)
        cpuTime.add(nanoseconds)
        call.module.cpuTime.add(nanoseconds)
    }
}
