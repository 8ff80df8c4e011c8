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

    /// What the task of a call needs of it.
    private struct Job: Sendable {
        let id: CallID
        let request: CallRequest
        let limits: CallLimits
        let snapshot: Snapshot?
        let pool: SandboxPool
        let output: CallOutput
        let executor: (any TaskExecutor)?
    }

    func begin(_ call: SupervisedCall) {
        call.hasStarted = true
        call.began = .now
        running += 1
        memory += call.module.memory
        call.module.running += 1
        let job = Job(
            id: call.id,
            request: call.request,
            limits: call.limits,
            snapshot: call.origin?.snapshot,
            pool: call.module.pool,
            output: call.output,
            executor: configuration.taskExecutor
        )
        publish(.started, call)
        Task.detached(executorPreference: job.executor) { await self.run(job) }
    }

    @concurrent
    private nonisolated func run(_ job: Job) async {
        do {
            try await job.pool.withSandbox(restoredTo: job.snapshot) { sandbox in
                // Before the call can begin: what holds it holds it from the start.
                await self.enter(job.id, sandbox)
                let started: StartedCall
                do {
                    // The guest's output is that of this call: the call's task inherits the value.
                    started = try CallOutput.$current.withValue(job.output) {
                        try StartedCall(
                            job.request,
                            limits: job.limits,
                            resumes: job.snapshot != nil,
                            in: sandbox,
                            executor: job.executor
                        )
                    }
                } catch {
                    return await self.end(job.id, .failure(error), nil)
                }
                if await self.hasStarted(job.id, started.killSwitch) { _ = try? started.killSwitch.terminate() }
                let (result, statistics) = await started.end()
                // Still inside the loan, so that nothing of this call's reaches the next one.
                await self.end(job.id, result, statistics)
            }
        } catch {
            await end(job.id, .failure(error), nil)
        }
    }

    /// A call has its sandbox.
    private func enter(_ id: CallID, _ sandbox: Sandbox) {
        guard let call = calls[id] else { return }
        if call.module.isThrottled || isThrottled { try? call.hold(.throttle) }
        call.enter(sandbox)
    }

    /// A call can be ended by its switch. Whether it shall end at once.
    private func hasStarted(_ id: CallID, _ killSwitch: KillSwitch) -> Bool {
        guard let call = calls[id] else { return true }
        call.killSwitch = killSwitch
        return call.ending != nil
    }

    // MARK: - Ending

    /// Notes why a call is to end. What then ends it, if it has begun; one that waits is over after this.
    func prepareToEnd(_ call: SupervisedCall, _ ending: CallEnding) -> KillSwitch? {
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

    private func end(_ id: CallID, _ result: Result<CallValue, any Error>, _ statistics: CallStatistics?) {
        // It is over already when something else fails after the call.
        guard let call = calls[id] else { return }
        call.leave()
        running -= 1
        memory -= call.module.memory
        call.module.running -= 1
        end(call, result, statistics)
        startCalls()
        closeRetired(call.module)
    }

    private func end(_ call: SupervisedCall, _ result: Result<CallValue, any Error>, _ statistics: CallStatistics?) {
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
        if calls.isEmpty {
            for waiter in idleWaiters { waiter.resume() }
            idleWaiters = []
        }
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
