/// A guest call that has a name of its own: it can be awaited, and ended without touching any other.
///
/// ```swift
/// let call = try sandbox.start("compress", bytes, returning: [UInt8].self)
/// let killSwitch = call.killSwitch
/// watchdog.add { try? killSwitch.terminate() }
/// let compressed = try await call.result
/// ```
///
/// The call waits for its turn and runs whether anybody awaits it or not, in a task that inherits the priority and the
/// task-local values of the one that started it.
public struct GuestCall<Result: Sendable>: Sendable {
    /// Ends this call and no other.
    public let killSwitch: KillSwitch
    private let reference: RunLoopReference
    private let task: Task<Result, any Error>

    init(_ prepared: PreparedCall<Result>, executorPreference: (any TaskExecutor)? = nil) {
        // Not the whole, which would keep the sandbox when the call is long over.
        killSwitch = prepared.killSwitch
        reference = prepared.reference
        // Whoever starts it does not have to wait for it, also when that is a host function.
        task = HostCallChain.$current.withValue(nil) {
            Task(executorPreference: executorPreference) { try await prepared.run() }
        }
    }

    /// What the call returned. The cancellation of a task that awaits it ends the call with
    /// ``SandboxError/Code/taskCancelled``.
    ///
    /// - Throws: ``SandboxError``, or what a host function threw; ``SandboxError/Code/reentrantCall`` in a host
    ///   function that the call has to wait for.
    public var result: Result {
        get async throws {
            try HostCallChain.check(reference)
            return try await withTaskCancellationHandler {
                try await task.value
            } onCancel: {
                _ = try? killSwitch.terminate(for: .taskCancelled)
            }
        }
    }

    /// What the call has cost, once it is over; nothing when the sandbox refused it because it was closed, poisoned or
    /// busy. A call that was killed before its turn has cost no exits. Awaits the call's end, and leaves it alone when
    /// the awaiting task is cancelled.
    public var statistics: CallStatistics? {
        get async {
            _ = await task.result
            return killSwitch.call.statistics.withLock { $0 }
        }
    }
}

extension Sandbox {
    /// Starts a call of a function that returns a value, which can then be awaited and ended by itself.
    ///
    /// - Parameters: as those of ``call(_:_:timeLimit:cpuTimeLimit:returning:)``.
    /// - Throws: ``SandboxError/Code/unknownExport``; everything else comes from ``GuestCall/result``.
    public nonisolated func start<each Argument: GuestValue, Result: GuestValue>(
        _ name: String,
        _ argument: repeat each Argument,
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil,
        returning resultType: Result.Type = Result.self
    ) throws(SandboxError) -> GuestCall<Result> {
        GuestCall(
            try prepareCall(
                name,
                repeat each argument,
                timeLimit: timeLimit,
                cpuTimeLimit: cpuTimeLimit,
                returning: resultType
            )
        )
    }

    /// Starts a call of a function that returns nothing.
    ///
    /// - Throws: as ``start(_:_:timeLimit:cpuTimeLimit:returning:)``.
    public nonisolated func start<each Argument: GuestValue>(
        _ name: String,
        _ argument: repeat each Argument,
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil
    ) throws(SandboxError) -> GuestCall<Void> {
        GuestCall(try prepareCall(name, repeat each argument, timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit))
    }

    /// Starts a call with arguments whose types are known only at run time.
    ///
    /// While the guest does not run, the call's task runs on the executor preferred for it, or on the global one.
    ///
    /// - Throws: as ``start(_:_:timeLimit:cpuTimeLimit:returning:)``.
    public nonisolated func start<Result: GuestValue>(
        _ name: String,
        arguments: [any GuestValue],
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil,
        executorPreference: (any TaskExecutor)? = nil,
        returning resultType: Result.Type = Result.self
    ) throws(SandboxError) -> GuestCall<Result> {
        GuestCall(
            try prepareCall(
                name,
                arguments: arguments,
                timeLimit: timeLimit,
                cpuTimeLimit: cpuTimeLimit,
                returning: resultType
            ),
            executorPreference: executorPreference
        )
    }

    /// Starts a call of a function that returns nothing, with arguments whose types are known only at run time.
    ///
    /// - Throws: as ``start(_:_:timeLimit:cpuTimeLimit:returning:)``.
    public nonisolated func start(
        _ name: String,
        arguments: [any GuestValue],
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil,
        executorPreference: (any TaskExecutor)? = nil
    ) throws(SandboxError) -> GuestCall<Void> {
        GuestCall(
            try prepareCall(name, arguments: arguments, timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit),
            executorPreference: executorPreference
        )
    }
}
