import CShims

/// Calls from elsewhere that find the guest polling, and need neither a hop nor an exit (the article Polling).
///
/// The steps are apart for the same reason as those of direct calls.
extension Sandbox {
    /// How often the guest has been found polling for calls; see ``SandboxConfiguration/polling``.
    public nonisolated var pollingStatistics: PollingStatistics { reference.polledCalls.statistics }

    /// Begins a call that is made on the calling thread: if the guest polls for one. ``runPolledCall(_:_:)`` or
    /// ``refusePolledCall(_:_:)`` must follow.
    ///
    /// - Returns: where the arguments go; nothing where the call has to be made the other way.
    @usableFromInline nonisolated func beginPolledCall(
        timeLimit: Duration?,
        cpuTimeLimit: Duration?
    ) throws(SandboxError) -> GuestValueWriter? {
        let calls = reference.polledCalls
        guard calls.baton.take() else { return nil }
        // Nothing more than the call is to be known of most of them.
        guard timeLimit == nil, cpuTimeLimit == nil, calls.areSimple, loan == nil,
            !calls.mayBeInChain || HostCallChain.current == nil
        else { return try beginTakenCall(timeLimit, cpuTimeLimit) }
        return calls.begin()
    }

    /// The same with all that may be said of a call, by who has the baton.
    private nonisolated func beginTakenCall(
        _ timeLimit: Duration?,
        _ cpuTimeLimit: Duration?
    ) throws(SandboxError) -> GuestValueWriter? {
        let baton = reference.polledCalls.baton
        do throws(SandboxError) {
            try HostCallChain.check(reference)
            try loan?.check()
        } catch {
            baton.giveBack()
            throw error
        }
        guard let runLoop = reference.value, !shim_is_task_cancelled(),
            runLoop.beginPolledCall(timeLimit, cpuTimeLimit)
        else {
            baton.giveBack()
            return nil
        }
        // As where any other call begins.
        if let loan, loan.isOver { interruptHandle.kill() }
        return runLoop.polledCalls.argumentWriter
    }

    /// Calls the function at an address of the image with the arguments that have been written. Whether it has
    /// returned, and ``polledResult()`` follows; else ``continuePolledCall(_:)`` does.
    @usableFromInline nonisolated func runPolledCall(
        _ offset: UInt64,
        _ arguments: borrowing GuestValueWriter
    ) throws(SandboxError) -> Bool {
        let function = reference.addressSpace.imageBase + offset
        let calls = reference.polledCalls
        let isGiven = calls.request(function, arguments)
        // Where it is to be put down anyway, that is best done while the guest is at work.
        let expectsHostCalls = calls.expectsHostCalls
        if isGiven, !expectsHostCalls, calls.returnsSoon() { return true }
        calls.expectsHostCalls = false
        let hasReturned = reference.duringCall {
            $0.goOnPolling(
                function: function,
                arguments: arguments,
                isGiven: isGiven,
                expectsHostCalls: expectsHostCalls
            )
        }
        guard let hasReturned else { throw Self.closed }
        return hasReturned
    }

    /// Where the result is of a call that has returned; ``endPolledCall()`` or ``endPolledCall(with:)`` must follow.
    @usableFromInline nonisolated func polledResult() -> GuestValueReader { reference.polledCalls.resultReader }

    /// Ends a call whose result has been taken.
    @usableFromInline nonisolated func endPolledCall() {
        let calls = reference.polledCalls
        guard calls.isUnderWay else { return endPolledCallInRunLoop() }
        calls.end()
        calls.baton.giveBack()
    }

    private nonisolated func endPolledCallInRunLoop() { reference.duringCall { $0.endPolledCall() } }

    /// Ends a call that has returned something else than its caller expects. What it ends with.
    @usableFromInline nonisolated func endPolledCall(with error: SandboxError) -> SandboxError {
        let error = reference.value?.refusalOfResult(error) ?? error
        endPolledCall()
        return error
    }

    /// Goes on with a call on the sandbox's own thread, for whatever cannot be done elsewhere.
    @usableFromInline nonisolated func continuePolledCall<Result: Sendable>(
        _ load: @Sendable (inout GuestValueReader) throws(SandboxError) -> Result
    ) async throws -> Result {
        let runLoop = try polledRunLoop
        let (number, interruptHandle, thread) = (runLoop.callNumber, interruptHandle, reference.thread)
        return try await withTaskCancellationHandler {
            runLoop.handPolledCallOver()
            thread.expectContinuation()
            return try await finishHandedOverCall(load)
        } onCancel: {
            _ = try? interruptHandle.terminate(call: number, .taskCancelled)
        }
    }

    private func finishHandedOverCall<Result: Sendable>(
        _ load: @Sendable (inout GuestValueReader) throws(SandboxError) -> Result
    ) throws -> Result {
        let runLoop = try polledRunLoop
        defer {
            // A snapshot tells nothing of how a call was made.
            runLoop.machine.mailbox.endIdle()
            runLoop.endCall()
        }
        try runLoop.runPolledToEnd()
        return try runLoop.loadResult(load)
    }

    /// Ends a call whose arguments could not be passed. What it ends with.
    @usableFromInline nonisolated func refusePolledCall(_ offset: UInt64, _ error: any Error) -> any Error {
        do {
            let runLoop = try polledRunLoop
            return runLoop.refusePolledCall(of: runLoop.machine.memory.addressSpace.imageBase + offset, for: error)
        } catch {
            return error
        }
    }

    /// The run loop of a call that has begun: while it is under way the sandbox does not close.
    private nonisolated var polledRunLoop: RunLoop {
        get throws(SandboxError) {
            guard let runLoop = reference.value else { throw Self.closed }
            return runLoop
        }
    }

    private static var closed: SandboxError { SandboxError(.closed, "This sandbox has been closed.") }
}
