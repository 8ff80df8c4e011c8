extension Sandbox {
    /// Takes a snapshot: of the memory as it is between two calls, or of a call in its middle.
    ///
    /// The sandbox is stopped while this works, if it is not stopped already. A call that is under way is caught
    /// between two instructions of the guest, with all its registers, and goes on afterwards as if nothing had been. A
    /// synchronous host function is waited for.
    ///
    /// - Throws: ``SandboxError``: `.busy` while an asynchronous host function, a nested call or an initialiser is at
    ///   work; `.poisoned`, `.closed`, `.systemCallFailed` (no memory); `.reentrantCall` from a host function of the
    ///   same sandbox.
    public nonisolated func snapshot() async throws(SandboxError) -> Snapshot {
        try await observe { runLoop throws(SandboxError) in try runLoop.snapshot() }
    }

    /// Puts the sandbox back to a snapshot: nothing remains of what has happened since, in its memory or its registers.
    ///
    /// The virtual machine, its thread and the host functions stay as they are; what a host function keeps is its own
    /// affair. A poisoned sandbox is as good as new. Waits for a call under way, which it does not end.
    ///
    /// - Parameter snapshot: of this sandbox, or any other one of the same module, memory sizes and host functions.
    /// - Returns: what it has cost.
    /// - Throws: ``SandboxError``: `.incompatibleSnapshot` (and nothing has changed), `.closed`, `.reentrantCall` from
    ///   a host function of the same sandbox; `.systemCallFailed` or `.invalidSnapshot` when it failed half way, which
    ///   leaves the sandbox poisoned.
    @discardableResult
    public nonisolated func restore(to snapshot: Snapshot) async throws -> RestoreStatistics {
        // Asynchronous code that this thread runs is isolated to the sandbox, and need not look whose turn it is.
        if reference.thread.isCurrent { return try restoreHere(to: snapshot) }
        try HostCallChain.check(reference)
        return try await restoreNow(to: snapshot)
    }

    private func restoreNow(to snapshot: Snapshot) throws(SandboxError) -> RestoreStatistics {
        try restoreHere(to: snapshot)
    }

    private nonisolated func restoreHere(to snapshot: Snapshot) throws(SandboxError) -> RestoreStatistics {
        try openRunLoop.restore(to: snapshot)
    }

    /// Goes on with the call that the snapshot was taken in the middle of, from which the sandbox was made, or to which
    /// it was restored.
    ///
    /// - Parameters:
    ///   - timeLimit: as that of ``call(_:_:timeLimit:cpuTimeLimit:returning:)``, from now on.
    ///   - cpuTimeLimit: likewise.
    ///   - resultType: what the function returns.
    /// - Throws: as ``call(_:_:timeLimit:cpuTimeLimit:returning:)``; ``SandboxError/Code/invalidArgument`` where there
    ///   is no call to go on with.
    public nonisolated func resume<Result: GuestValue>(
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil,
        returning resultType: Result.Type = Result.self
    ) async throws -> Result {
        try HostCallChain.check(reference)
        let options = CallOptions(timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit, resumes: true)
        return try await performResumed(options) { reader throws(SandboxError) in try Result.load(from: &reader) }
    }

    /// Goes on with a call of a function that returns nothing.
    ///
    /// - Throws: as ``resume(timeLimit:cpuTimeLimit:returning:)``.
    public nonisolated func resume(timeLimit: Duration? = nil, cpuTimeLimit: Duration? = nil) async throws {
        try HostCallChain.check(reference)
        let options = CallOptions(timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit, resumes: true)
        try await performResumed(options) { _ in }
    }

    /// Starts to go on with the call that the snapshot was taken in the middle of, so that it can be awaited and ended
    /// by itself.
    ///
    /// - Parameters: as those of ``resume(timeLimit:cpuTimeLimit:returning:)``, and where the call's task runs while
    ///   the guest does not; on the global executor unless given.
    /// - Returns: the rest of the call. Where there is none to go on with, its result is
    ///   ``SandboxError/Code/invalidArgument``.
    public nonisolated func startResuming<Result: GuestValue>(
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil,
        executorPreference: (any TaskExecutor)? = nil,
        returning resultType: Result.Type = Result.self
    ) -> GuestCall<Result> {
        GuestCall(
            prepareResuming(timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit, returning: resultType),
            executorPreference: executorPreference
        )
    }

    /// Starts to go on with a call of a function that returns nothing.
    ///
    /// - Parameters: as those of ``resume(timeLimit:cpuTimeLimit:returning:)``, and where the call's task runs while
    ///   the guest does not; on the global executor unless given.
    public nonisolated func startResuming(
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil,
        executorPreference: (any TaskExecutor)? = nil
    ) -> GuestCall<Void> {
        GuestCall(
            prepareResuming(timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit),
            executorPreference: executorPreference
        )
    }

    /// Prepares to go on with the call that the snapshot was taken in the middle of, to be done by whoever calls
    /// ``PreparedCall/run()``.
    ///
    /// - Parameters: as those of ``resume(timeLimit:cpuTimeLimit:returning:)``.
    public nonisolated func prepareResuming<Result: GuestValue>(
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil,
        returning resultType: Result.Type = Result.self
    ) -> PreparedCall<Result> {
        PreparedCall(self, timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit) { options in
            var options = options
            options.resumes = true
            return try await self.performResumed(options) { reader throws(SandboxError) in
                try Result.load(from: &reader)
            }
        }
    }

    /// Prepares to go on with a call of a function that returns nothing.
    ///
    /// - Parameters: as those of ``resume(timeLimit:cpuTimeLimit:returning:)``.
    public nonisolated func prepareResuming(
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil
    ) -> PreparedCall<Void> {
        PreparedCall(self, timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit) { options in
            var options = options
            options.resumes = true
            try await self.performResumed(options) { _ in }
        }
    }

    private func performResumed<Result: Sendable>(
        _ options: CallOptions,
        load: @Sendable (inout GuestValueReader) throws(SandboxError) -> Result
    ) async throws -> Result {
        let runLoop = try openRunLoop
        try begin(runLoop, options)
        defer { runLoop.endCall() }
        try await withCallCancellation { try runLoop.resumeSuspendedCall() }
        return try runLoop.loadResult(load)
    }
}
