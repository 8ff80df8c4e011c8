/// What has become of an asynchronous host function.
private final class HostFunctionOutcome: Sendable {
    let result = Locked<Result<HostFunction.Completion, any Error>?>(nil)
}

/// Waiting inside a call: on the virtual CPU's thread, which meanwhile does what others need of it.
extension RunLoop {
    /// Holds the call before its next entry while a stop is in force and no kill overrides it.
    func park() { hold(stoppingClock: !configuration.countsStoppedTime) { interruptHandle.isStopped } }

    /// Holds the call between two instructions of the guest for as long as a condition is met and no kill overrides it.
    /// Whoever changes the condition wakes the thread.
    func hold(stoppingClock: Bool, while condition: () -> Bool) {
        isParked = true
        defer { isParked = false }
        interruptHandle.wakeSleepers()
        let began = MonotonicTime.now
        let isTimerHeld = stoppingClock && timer.hold(interruptHandle)
        interruptHandle.wait { state in
            // The mailbox holds what the guest is to do next, which a nested call would overwrite.
            let hasRun = thread.runInterludes(.observation, .inspection)
            let isKilled = state.reason != nil && !interruptHandle.isHeldAgainstKills
            if isKilled || !condition() { return .over }
            return hasRun ? .again : .sleep()
        }
        meter.stopped += MonotonicTime.now.nanoseconds - began.nanoseconds
        if isTimerHeld { timer.goOn(interruptHandle) }
    }

    /// Runs an asynchronous host function in a task, and does meanwhile what it asks of this thread. The task is
    /// cancelled when the call shall end, and awaited all the same.
    func await(_ work: @escaping @Sendable () async throws -> HostFunction.Completion) throws -> HostFunction.Completion
    {
        let outcome = HostFunctionOutcome()
        let interruptHandle = interruptHandle
        let task = Task {
            do {
                let completion = try await work()
                outcome.result.withLock { $0 = .success(completion) }
            } catch {
                outcome.result.withLock { $0 = .failure(error) }
            }
            interruptHandle.wakeIfWaiting()
        }
        var isCancelled = false
        var result: Result<HostFunction.Completion, any Error>?
        interruptHandle.wait { state in
            result = outcome.result.withLock { $0 }
            if result != nil { return .over }
            if state.reason != nil, !isCancelled {
                isCancelled = true
                task.cancel()
            }
            return thread.runInterludes() ? .again : .sleep()
        }
        guard let result else { throw CancellationError() }
        return try result.get()
    }

    /// Sleeps in a host function.
    ///
    /// - Returns: whether all of the time has passed; false when the call shall end.
    func sleep(nanoseconds: UInt64) -> Bool { thread.withCustody { sleepInCustody(nanoseconds: nanoseconds) } }

    private func sleepInCustody(nanoseconds: UInt64) -> Bool {
        let (end, isTooLong) = MonotonicTime.now.nanoseconds.addingReportingOverflow(nanoseconds)
        var hasPassed = false
        interruptHandle.wait { state in
            if state.reason != nil { return .over }
            let now = MonotonicTime.now.nanoseconds
            hasPassed = !isTooLong && now >= end
            if hasPassed { return .over }
            return thread.runInterludes() ? .again : .sleep(nanoseconds: isTooLong ? 0 : end - now)
        }
        return hasPassed
    }
}
