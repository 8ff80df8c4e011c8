/// What a host function may use while it runs: the guest's memory, calls back into the guest, and the news that the
/// call shall end.
///
/// Good until the host function returns; what comes later throws ``SandboxError/Code/contextExpired``. The methods that
/// are not asynchronous are for synchronous host functions, on the thread they run on.
public struct HostCallContext: Sendable {
    private let reference: RunLoopReference
    private nonisolated(unsafe) let guestMemory: GuestMemory
    private let callNumber: UInt64
    private let hostCallNumber: UInt64

    init(reference: RunLoopReference, memory: GuestMemory, callNumber: UInt64, hostCallNumber: UInt64) {
        self.reference = reference
        unsafe guestMemory = memory
        self.callNumber = callNumber
        self.hostCallNumber = hostCallNumber
    }

    /// The memory of the guest that called. The guest waits, so nothing changes under the host function's hands but by
    /// its own nested calls.
    public var memory: GuestMemory { unsafe guestMemory }

    // MARK: - The end of the call

    /// Whether the call shall end: it was killed, or its task was cancelled, or a limit has passed. The guest will not
    /// run again, so that there is no sense in going on. Also when it is over. From any thread.
    public var isCancelled: Bool {
        let state = reference.interruptHandle.currentState
        return !state.isOf(call: callNumber) || state.reason != nil
    }

    /// Throws when the call shall end.
    ///
    /// - Throws: `CancellationError`.
    public func checkCancellation() throws {
        if isCancelled { throw CancellationError() }
    }

    /// Sleeps, for as long as the call is not to end. An asynchronous host function uses `Task.sleep(for:)`, whose task
    /// is cancelled when the call shall end.
    ///
    /// - Throws: `CancellationError` when the call shall end, or ``SandboxError/Code/contextExpired``.
    @available(*, noasync, message: "use Task.sleep(for:), which is cancelled when the call shall end")
    public func sleep(for duration: Duration) throws {
        guard try runLoop().sleep(nanoseconds: duration.nanosecondsClamped) else { throw CancellationError() }
    }

    /// Begins an internal stop: the guest is not entered again before somebody has called
    /// ``LinuxInterruptHandle/endInternalStop()``. From any thread.
    ///
    /// - Throws: ``StopError/internalStop`` when there is one already; ``StopError/dropped`` after the call.
    public func beginInternalStop(_ stop: TaskStop) throws(StopError) {
        try reference.interruptHandle.beginInternalStop(stop, call: callNumber)
    }

    // MARK: - Nested calls

    /// Calls a function of the guest that returns a value, while the guest waits for this host function.
    ///
    /// It runs on the guest's stack, under the limits of the call it is nested in. When it faults, is killed or throws
    /// half way, the outer guest code does not go on either: the host function unwinds, or does what it has left to do,
    /// and the outermost call ends with the first cause.
    ///
    /// - Throws: ``SandboxError``, ``SandboxError/Code/callTooDeep`` and ``SandboxError/Code/contextExpired`` among
    ///   them, or what a nested host function threw.
    @available(*, noasync, message: "await the asynchronous form")
    public func call<each Argument: GuestValue, Result: GuestValue>(
        _ name: String,
        _ argument: repeat each Argument,
        returning resultType: Result.Type = Result.self
    ) throws -> Result {
        let runLoop = try runLoop()
        var writer = try runLoop.nestedArgumentWriter()
        repeat try (each argument).store(into: &writer)
        try runLoop.runNested(function: runLoop.address(of: name), arguments: writer)
        return try runLoop.loadResult { reader throws(SandboxError) in try Result.load(from: &reader) }
    }

    /// Calls a function of the guest that returns nothing, while the guest waits for this host function.
    ///
    /// - Throws: as the form that returns a value.
    @available(*, noasync, message: "await the asynchronous form")
    public func call<each Argument: GuestValue>(_ name: String, _ argument: repeat each Argument) throws {
        let runLoop = try runLoop()
        var writer = try runLoop.nestedArgumentWriter()
        repeat try (each argument).store(into: &writer)
        try runLoop.runNested(function: runLoop.address(of: name), arguments: writer)
    }

    /// Calls a function of the guest that returns a value, from an asynchronous host function: the call is carried to
    /// the sandbox's thread, which waits for the host function.
    ///
    /// - Throws: as the synchronous form.
    public func call<each Argument: GuestValue, Result: GuestValue>(
        _ name: String,
        _ argument: repeat each Argument,
        returning resultType: Result.Type = Result.self
    ) async throws -> Result {
        try await onThread { runLoop in
            var writer = try runLoop.nestedArgumentWriter()
            repeat try (each argument).store(into: &writer)
            try runLoop.runNested(function: runLoop.address(of: name), arguments: writer)
            return try runLoop.loadResult { reader throws(SandboxError) in try Result.load(from: &reader) }
        }
    }

    /// Calls a function of the guest that returns nothing, from an asynchronous host function.
    ///
    /// - Throws: as the synchronous form.
    public func call<each Argument: GuestValue>(_ name: String, _ argument: repeat each Argument) async throws {
        try await onThread { runLoop in
            var writer = try runLoop.nestedArgumentWriter()
            repeat try (each argument).store(into: &writer)
            try runLoop.runNested(function: runLoop.address(of: name), arguments: writer)
        }
    }

    /// The run loop, when this is its thread and the host call is under way.
    private func runLoop() throws(SandboxError) -> RunLoop {
        guard reference.thread.isCurrent, let runLoop = reference.value,
            runLoop.isUnderWay(hostCall: hostCallNumber)
        else {
            throw SandboxError(
                .contextExpired,
                "This context belongs to a host call that is over, or to another thread than the calling one."
            )
        }
        return runLoop
    }

    private func onThread<Result: Sendable>(
        _ body: @escaping @Sendable (RunLoop) throws -> Result
    ) async throws -> Result {
        // The thread is in the guest call's task; what is called now belongs to this one.
        let trace = TraceContext.current
        let result = await handedOver { handOver in
            reference.thread.addInterlude(.nestedCall) {
                handOver(Swift.Result { try trace.bound { try body(runLoop()) } })
            }
        }
        return try result.get()
    }
}
