/// Calls that are made without suspending, by code that is isolated to the sandbox.
///
/// Where all that happens elsewhere between two entries leaves the processor's caches cold, the frames of an
/// asynchronous call, its cancellation handler, and the look at whose turn it is cost a fifth of what the call costs.
/// The steps are apart so that a client's compiler can put calls together for the types at hand: a pack of arguments
/// costs a look-up of its tuple's type each time.
extension Sandbox {
    /// Calls the function at an address of the image.
    @inlinable
    @inline(__always)
    nonisolated func makeCall<each Argument: GuestValue, Result: Sendable>(
        _ offset: UInt64,
        _ argument: repeat each Argument,
        timeLimit: Duration?,
        cpuTimeLimit: Duration?,
        load: @Sendable (inout GuestValueReader) throws(SandboxError) -> Result
    ) async throws -> Result {
        if var writer = try beginDirectCall(timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit) {
            do {
                try Self.store(repeat each argument, into: &writer)
            } catch {
                throw refuseDirectCall(offset, error)
            }
            return try finishDirectCall(offset, writer, load)
        }
        if var writer = try beginPolledCall(timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit) {
            do {
                try Self.store(repeat each argument, into: &writer)
            } catch {
                throw refusePolledCall(offset, error)
            }
            guard try runPolledCall(offset, writer) else { return try await continuePolledCall(load) }
            var reader = polledResult()
            do throws(SandboxError) {
                let result = try load(&reader)
                endPolledCall()
                return result
            } catch {
                throw endPolledCall(with: error)
            }
        }
        return try await callFromElsewhere(
            offset,
            repeat each argument,
            timeLimit: timeLimit,
            cpuTimeLimit: cpuTimeLimit,
            load: load
        )
    }

    /// Puts arguments where they go. Apart, because what an asynchronous function needs for each of a pack's elements
    /// it takes from the task's memory, which takes as long as to store them all.
    @inlinable
    @inline(never)
    static func store<each Argument: GuestValue>(
        _ argument: repeat each Argument,
        into writer: inout GuestValueWriter
    ) throws(SandboxError) {
        repeat try (each argument).store(into: &writer)
    }

    /// Calls the function with whatever hop, or wait for others, that takes.
    @usableFromInline nonisolated func callFromElsewhere<each Argument: GuestValue, Result: Sendable>(
        _ offset: UInt64,
        _ argument: repeat each Argument,
        timeLimit: Duration?,
        cpuTimeLimit: Duration?,
        load: @Sendable (inout GuestValueReader) throws(SandboxError) -> Result
    ) async throws -> Result {
        try HostCallChain.check(reference)
        let options = CallOptions(timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit)
        return try await perform(offset, repeat each argument, options: options, load: load)
    }

    /// Where a function is that is to be called from here.
    @usableFromInline nonisolated func address(ofExport name: String) throws(SandboxError) -> UInt64 {
        try HostCallChain.check(reference)
        return try module.exportedFunction(named: name).address
    }

    /// Begins a call that need not be asynchronous: if this is the sandbox's own thread, and the task's cancellation is
    /// heard of already. ``finishDirectCall(_:_:_:)`` or ``refuseDirectCall(_:_:)`` must follow.
    ///
    /// - Returns: where the arguments go; nothing where the call has to be made the other way.
    @usableFromInline nonisolated func beginDirectCall(
        timeLimit: Duration?,
        cpuTimeLimit: Duration?
    ) throws(SandboxError) -> GuestValueWriter? {
        // Asynchronous code that this thread runs is isolated to the sandbox.
        guard reference.isOnThread else { return nil }
        return try beginCallOnThread(timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit)
    }

    private nonisolated func beginCallOnThread(
        timeLimit: Duration?,
        cpuTimeLimit: Duration?
    ) throws(SandboxError) -> GuestValueWriter? {
        guard let runLoop = reference.value, let scope = runLoop.cancellationScope,
            scope.isCurrent(on: reference.thread)
        else { return nil }
        try loan?.check()
        try begin(runLoop, CallOptions(timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit), in: scope)
        return runLoop.argumentWriter()
    }

    /// Calls the function at an address of the image with the arguments that have been written, and ends the call.
    @usableFromInline nonisolated func finishDirectCall<Result>(
        _ offset: UInt64,
        _ arguments: borrowing GuestValueWriter,
        _ load: (inout GuestValueReader) throws(SandboxError) -> Result
    ) throws -> Result {
        let runLoop = try begunDirectCall
        defer { runLoop.endCall() }
        try runLoop.run(function: runLoop.machine.memory.addressSpace.imageBase + offset, arguments: arguments)
        return try runLoop.loadResult(load)
    }

    /// Ends a call whose arguments could not be passed. What it ends with.
    @usableFromInline nonisolated func refuseDirectCall(_ offset: UInt64, _ error: any Error) -> any Error {
        do {
            let runLoop = try begunDirectCall
            defer { runLoop.endCall() }
            return runLoop.refusal(of: runLoop.machine.memory.addressSpace.imageBase + offset, for: error)
        } catch {
            return error
        }
    }

    /// The run loop, between the steps of a call. A loan that has ended meanwhile kills the call, which must still end.
    private nonisolated var begunDirectCall: RunLoop {
        get throws(SandboxError) {
            guard let runLoop = reference.value else { throw SandboxError(.closed, "This sandbox has been closed.") }
            return runLoop
        }
    }
}
