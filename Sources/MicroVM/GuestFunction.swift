/// An export that was looked up once, with the Swift types of its parameters and its result.
///
/// It holds its sandbox. Calling it from code isolated to that sandbox costs no hop.
public struct GuestFunction<Result, each Argument: GuestValue>: Sendable {
    /// The sandbox whose function this is.
    public let sandbox: Sandbox
    /// The export's name.
    public let name: String
    /// The function's address in the image.
    @usableFromInline let offset: UInt64
    @usableFromInline let load: @Sendable (inout GuestValueReader) throws(SandboxError) -> Result
    /// Whether the result is whole when the function has returned, whatever runs then.
    @usableFromInline let hasRegisterResult: Bool

    init(
        sandbox: Sandbox,
        name: String,
        offset: UInt64,
        hasRegisterResult: Bool,
        load: @escaping @Sendable (inout GuestValueReader) throws(SandboxError) -> Result
    ) {
        self.sandbox = sandbox
        self.name = name
        self.offset = offset
        self.hasRegisterResult = hasRegisterResult
        self.load = load
    }
}

extension GuestFunction where Result: Sendable {
    /// Calls the function.
    ///
    /// - Parameters:
    ///   - argument: the arguments.
    ///   - timeLimit: the wall-clock time the call may take; ``SandboxConfiguration/timeLimit`` unless given.
    ///   - cpuTimeLimit: the CPU time the call may use; ``SandboxConfiguration/cpuTimeLimit`` unless given.
    /// - Throws: as ``Sandbox/call(_:_:timeLimit:cpuTimeLimit:returning:)``.
    @inlinable
    public func callAsFunction(
        _ argument: repeat each Argument,
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil
    ) async throws -> Result {
        try await sandbox.makeCall(
            offset,
            repeat each argument,
            timeLimit: timeLimit,
            cpuTimeLimit: cpuTimeLimit,
            load: load
        )
    }

    /// Starts a call, which can then be awaited and ended by itself.
    ///
    /// - Parameters: as those of ``callAsFunction(_:timeLimit:cpuTimeLimit:)``.
    public func start(
        _ argument: repeat each Argument,
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil
    ) -> GuestCall<Result> {
        GuestCall(prepareCall(repeat each argument, timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit))
    }

    /// Prepares a call, which can be ended by itself, to be made by whoever calls ``PreparedCall/run()``.
    ///
    /// - Parameters: as those of ``callAsFunction(_:timeLimit:cpuTimeLimit:)``.
    public func prepareCall(
        _ argument: repeat each Argument,
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil
    ) -> PreparedCall<Result> {
        PreparedCall(sandbox, timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit) { options in
            try await sandbox.perform(offset, repeat each argument, options: options, load: load)
        }
    }
}
