/// A guest call that has a name of its own before it begins, and runs in the task that has it run: where somebody else
/// is to be able to end just this call, and nobody needs another task for it.
///
/// ```swift
/// let call = try sandbox.prepareCall("compress", bytes, returning: [UInt8].self)
/// await register(call.killSwitch)
/// let compressed = try await call.run()
/// ```
///
/// ``Sandbox/start(_:_:timeLimit:cpuTimeLimit:returning:)`` is the same with a task for the call.
public struct PreparedCall<Result: Sendable>: Sendable {
    /// Ends this call and no other. One that is ended before it runs throws as soon as it is to run, and no guest code
    /// runs for it.
    public let killSwitch: KillSwitch
    let reference: RunLoopReference
    private let options: CallOptions
    private let body: @Sendable (CallOptions) async throws -> Result

    init(
        _ sandbox: Sandbox,
        timeLimit: Duration?,
        cpuTimeLimit: Duration?,
        _ body: @escaping @Sendable (CallOptions) async throws -> Result
    ) {
        let pending = PendingCall()
        options = CallOptions(timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit, pending: pending)
        reference = sandbox.reference
        killSwitch = KillSwitch(call: pending, interruptHandle: sandbox.interruptHandle)
        self.body = body
    }

    /// Makes the call. It can be made once.
    ///
    /// - Returns: what the guest's function has returned.
    /// - Throws: as ``Sandbox/call(_:_:timeLimit:cpuTimeLimit:returning:)``; ``SandboxError/Code/invalidArgument`` when
    ///   it has been made already.
    public func run() async throws -> Result {
        try HostCallChain.check(reference)
        let pending = killSwitch.call
        guard pending.claim() else {
            throw SandboxError(.invalidArgument, "This call has been made already. Each one is prepared by itself.")
        }
        defer { pending.end() }
        do {
            return try await body(options)
        } catch {
            throw pending.error(insteadOf: error)
        }
    }

    /// What the call has cost, once it is over; nothing before, and when the sandbox refused it because it was closed,
    /// poisoned or busy.
    public var statistics: CallStatistics? { killSwitch.call.statistics.withLock { $0 } }
}

extension Sandbox {
    /// Prepares a call of a function that returns a value, to be made by whoever calls ``PreparedCall/run()``.
    ///
    /// - Parameters: as those of ``call(_:_:timeLimit:cpuTimeLimit:returning:)``.
    /// - Throws: ``SandboxError/Code/unknownExport``; everything else comes from ``PreparedCall/run()``.
    public nonisolated func prepareCall<each Argument: GuestValue, Result: GuestValue>(
        _ name: String,
        _ argument: repeat each Argument,
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil,
        returning resultType: Result.Type = Result.self
    ) throws(SandboxError) -> PreparedCall<Result> {
        let offset = try module.exportedFunction(named: name).address
        return PreparedCall(self, timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit) { options in
            try await self.perform(offset, repeat each argument, options: options) { reader throws(SandboxError) in
                try Result.load(from: &reader)
            }
        }
    }

    /// Prepares a call of a function that returns nothing.
    ///
    /// - Throws: as ``prepareCall(_:_:timeLimit:cpuTimeLimit:returning:)``.
    public nonisolated func prepareCall<each Argument: GuestValue>(
        _ name: String,
        _ argument: repeat each Argument,
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil
    ) throws(SandboxError) -> PreparedCall<Void> {
        let offset = try module.exportedFunction(named: name).address
        return PreparedCall(self, timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit) { options in
            try await self.perform(offset, repeat each argument, options: options) { _ in }
        }
    }

    /// Prepares a call with arguments whose types are known only at run time.
    ///
    /// - Throws: as ``prepareCall(_:_:timeLimit:cpuTimeLimit:returning:)``.
    public nonisolated func prepareCall<Result: GuestValue>(
        _ name: String,
        arguments: [any GuestValue],
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil,
        returning resultType: Result.Type = Result.self
    ) throws(SandboxError) -> PreparedCall<Result> {
        let offset = try module.exportedFunction(named: name).address
        return PreparedCall(self, timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit) { options in
            try await self.perform(offset, arguments: arguments, options: options) { reader throws(SandboxError) in
                try Result.load(from: &reader)
            }
        }
    }

    /// Prepares a call of a function that returns nothing, with arguments whose types are known only at run time.
    ///
    /// - Throws: as ``prepareCall(_:_:timeLimit:cpuTimeLimit:returning:)``.
    public nonisolated func prepareCall(
        _ name: String,
        arguments: [any GuestValue],
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil
    ) throws(SandboxError) -> PreparedCall<Void> {
        let offset = try module.exportedFunction(named: name).address
        return PreparedCall(self, timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit) { options in
            try await self.perform(offset, arguments: arguments, options: options) { _ in }
        }
    }
}
