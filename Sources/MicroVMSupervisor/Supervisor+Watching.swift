import MicroVM

extension Supervisor {
    /// Looks at what runs from time to time, for as long as anything does.
    func watchIfNeeded() {
        guard watch == nil, !calls.isEmpty else { return }
        let interval = max(configuration.watchInterval, .milliseconds(1))
        watch = Task { [weak self] in
            while !Task.isCancelled {
                try? await Task.sleep(for: interval)
                guard let self, await self.watchOnce() else { return }
            }
        }
    }

    /// Whether it is to be done again.
    private func watchOnce() async -> Bool {
        if needsCPUTimes { await sample(maximumAge: configuration.watchInterval / 2) }
        throttle()
        endOverdueCalls()
        startCalls()
        guard calls.isEmpty, !isThrottled, !modules.values.contains(where: \.isThrottled) else { return true }
        watch = nil
        return false
    }

    // MARK: - Looking at running calls

    private var needsCPUTimes: Bool {
        configuration.limits.cpuTimePerMinute != nil
            || calls.values.contains { $0.module.settings.limits.cpuTimePerMinute != nil }
    }

    /// Looks at every running call that has not been looked at for some time, so that ``CallStatus/sample`` says where
    /// it is. Each is taken out of the guest for this, for some tens of microseconds.
    ///
    /// - Parameter maximumAge: how old a sample may be; half a second unless given.
    public func sample(maximumAge: Duration = .milliseconds(500)) async {
        let now = ContinuousClock.now
        let due = calls.values.compactMap { call -> (CallID, Sandbox)? in
            guard let sandbox = call.sandbox else { return nil }
            if let last = call.sampledInstant, last.duration(to: now) < maximumAge { return nil }
            call.sampledInstant = now
            return (call.id, sandbox)
        }
        guard !due.isEmpty else { return }
        let states = await Self.states(of: due)
        for (id, state) in states {
            guard let call = calls[id], state.isInCall else { continue }
            call.sample = CallSample(state, after: call.sample)
            charge(call, state.statistics.cpuTime ?? .zero)
        }
    }

    /// A few at a time: each waits for its guest to leave.
    @concurrent
    private static func states(of calls: [(CallID, Sandbox)]) async -> [(CallID, SandboxState)] {
        await withTaskGroup(of: (CallID, SandboxState)?.self) { group in
            var states: [(CallID, SandboxState)] = []
            for (index, (id, sandbox)) in calls.enumerated() {
                if index >= 8, let state = await group.next() ?? nil { states.append(state) }
                group.addTask { (try? await sandbox.pullFullState()).map { (id, $0) } }
            }
            for await case .some(let state) in group { states.append(state) }
            return states
        }
    }

    // MARK: - Limits

    /// Holds the calls of those that have used up their CPU time, and lets them go on when there is some again.
    private func throttle() {
        let isOver = Self.isOver(cpuTime, configuration.limits.cpuTimePerMinute)
        isThrottled = isOver
        for module in modules.values + retired {
            module.isThrottled = Self.isOver(module.cpuTime, module.settings.limits.cpuTimePerMinute)
        }
        for call in calls.values where call.sandbox != nil {
            let isHeld = call.holds.contains(.throttle)
            guard isHeld != (isOver || call.module.isThrottled) else { continue }
            if isHeld {
                call.release(.throttle)
                publish(.unthrottled, call)
            } else if (try? call.hold(.throttle)) != nil {
                publish(.throttled, call)
            }
        }
    }

    private static func isOver(_ meter: MinuteMeter, _ limit: Duration?) -> Bool {
        guard let limit else { return false }
        return Duration.nanoseconds(Int64(clamping: meter.total)) >= limit
    }

    /// Ends calls that have waited for too long, and those that should have ended long ago by themselves.
    private func endOverdueCalls() {
        let now = ContinuousClock.now
        for call in Array(calls.values) {
            if !call.hasStarted {
                if let limit = call.limits.queueTime, call.acceptedInstant.duration(to: now) > limit {
                    end(call.id, for: .queueTime)
                }
            } else if !call.isOverdue, call.holds.isEmpty, let limit = call.limits.time, let began = call.beganInstant,
                began.duration(to: now) - call.heldDuration(until: now) > limit + configuration.watchdogGrace
            {
                call.isOverdue = true
                publish(.overdue, call)
                end(call.id, for: .time)
            }
        }
    }
}
