/// Calls by the names of functions, and how one call goes.
extension Sandbox {
    /// Calls a function of the guest that returns a value.
    ///
    /// - Parameters:
    ///   - name: an export of the module.
    ///   - argument: the arguments, passed by the C convention; see ``GuestValue``.
    ///   - timeLimit: the time the call may take by the clock, from its turn on the sandbox's thread on, host functions
    ///     included; ``SandboxConfiguration/timeLimit`` unless given. Zero or less has passed at once.
    ///   - cpuTimeLimit: the CPU time of the sandbox's thread that the call may use;
    ///     ``SandboxConfiguration/cpuTimeLimit`` unless given.
    ///   - resultType: the type of the result, where it cannot be inferred.
    /// - Throws: ``SandboxError``, or what a host function threw. Cancelling the calling task ends the call with
    ///   ``SandboxError/Code/taskCancelled``. When the call has ended half way, the sandbox is poisoned, and all later
    ///   calls throw ``SandboxError/Code/poisoned``.
    @inlinable
    public nonisolated func call<each Argument: GuestValue, Result: GuestValue>(
        _ name: String,
        _ argument: repeat each Argument,
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil,
        returning resultType: Result.Type = Result.self
    ) async throws -> Result {
        try await makeCall(
            try address(ofExport: name),
            repeat each argument,
            timeLimit: timeLimit,
            cpuTimeLimit: cpuTimeLimit
        ) { reader throws(SandboxError) in
            try Result.load(from: &reader)
        }
    }

    /// Calls a function of the guest that returns nothing.
    ///
    /// - Throws: as ``call(_:_:timeLimit:cpuTimeLimit:returning:)``.
    @inlinable
    public nonisolated func call<each Argument: GuestValue>(
        _ name: String,
        _ argument: repeat each Argument,
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil
    ) async throws {
        try await makeCall(
            try address(ofExport: name),
            repeat each argument,
            timeLimit: timeLimit,
            cpuTimeLimit: cpuTimeLimit
        ) { _ in }
    }

    /// Calls a function of the guest with arguments whose types are known only at run time.
    ///
    /// - Throws: as ``call(_:_:timeLimit:cpuTimeLimit:returning:)``.
    public nonisolated func call<Result: GuestValue>(
        _ name: String,
        arguments: [any GuestValue],
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil,
        returning resultType: Result.Type = Result.self
    ) async throws -> Result {
        try HostCallChain.check(reference)
        let offset = try module.exportedFunction(named: name).address
        let options = CallOptions(timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit)
        return try await perform(offset, arguments: arguments, options: options) { reader throws(SandboxError) in
            try Result.load(from: &reader)
        }
    }

    /// Calls a function of the guest that returns nothing, with arguments whose types are known only at run time.
    ///
    /// - Throws: as ``call(_:_:timeLimit:cpuTimeLimit:returning:)``.
    public nonisolated func call(
        _ name: String,
        arguments: [any GuestValue],
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil
    ) async throws {
        try HostCallChain.check(reference)
        let offset = try module.exportedFunction(named: name).address
        let options = CallOptions(timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit)
        try await perform(offset, arguments: arguments, options: options) { _ in }
    }

    /// Looks up a function once, for many calls.
    ///
    /// ```swift
    /// let add = try sandbox.function("add", as: ((Int, Int) -> Int).self)
    /// let sum = try await add(2, 3)
    /// ```
    ///
    /// - Throws: ``SandboxError/Code/unknownExport``.
    public nonisolated func function<each Argument: GuestValue, Result: GuestValue>(
        _ name: String,
        as type: ((repeat each Argument) -> Result).Type
    ) throws(SandboxError) -> GuestFunction<Result, repeat each Argument> {
        let export = try module.exportedFunction(named: name)
        return GuestFunction(
            sandbox: self,
            name: name,
            offset: export.address,
            hasRegisterResult: Result.self is any GuestRegisterValue.Type
        ) { reader throws(SandboxError) in
            try Result.load(from: &reader)
        }
    }

    /// Looks up a function that returns nothing.
    ///
    /// - Throws: ``SandboxError/Code/unknownExport``.
    public nonisolated func function<each Argument: GuestValue>(
        _ name: String,
        as type: ((repeat each Argument) -> Void).Type
    ) throws(SandboxError) -> GuestFunction<Void, repeat each Argument> {
        let export = try module.exportedFunction(named: name)
        return GuestFunction(sandbox: self, name: name, offset: export.address, hasRegisterResult: true) { _ in }
    }

    // MARK: - One call

    func perform<each Argument: GuestValue, Result: Sendable>(
        _ offset: UInt64,
        _ argument: repeat each Argument,
        options: CallOptions,
        load: @Sendable (inout GuestValueReader) throws(SandboxError) -> Result
    ) async throws -> Result {
        let runLoop = try openRunLoop
        try begin(runLoop, options)
        defer { runLoop.endCall() }
        let function = runLoop.machine.memory.addressSpace.imageBase + offset
        var writer = runLoop.argumentWriter()
        do {
            repeat try (each argument).store(into: &writer)
        } catch {
            throw runLoop.refusal(of: function, for: error)
        }
        return try await finish(runLoop, function, writer, load)
    }

    func perform<Result: Sendable>(
        _ offset: UInt64,
        arguments: [any GuestValue],
        options: CallOptions,
        load: @Sendable (inout GuestValueReader) throws(SandboxError) -> Result
    ) async throws -> Result {
        let runLoop = try openRunLoop
        try begin(runLoop, options)
        defer { runLoop.endCall() }
        let function = runLoop.machine.memory.addressSpace.imageBase + offset
        var writer = runLoop.argumentWriter()
        do {
            for argument in arguments { try argument.store(into: &writer) }
        } catch {
            throw runLoop.refusal(of: function, for: error)
        }
        return try await finish(runLoop, function, writer, load)
    }

    /// Makes the calls of a batch, in one call for everything that watches, limits or ends calls.
    ///
    /// - Parameter batch: has the results of those that have returned, also where this throws.
    @usableFromInline func perform(
        _ offset: UInt64,
        _ batch: CallBatch,
        timeLimit: Duration?,
        cpuTimeLimit: Duration?
    ) async throws {
        let began = MonotonicTime.now
        let runLoop = try openRunLoop
        try begin(runLoop, CallOptions(timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit))
        defer { runLoop.endCall() }
        let function = runLoop.machine.memory.addressSpace.imageBase + offset
        try await withCallCancellation { try runLoop.run(function: function, batch: batch) }
        batch.adapt(to: began.duration(to: .now))
    }

    /// A batch for calls of this sandbox's.
    nonisolated func newBatch(maximum: Int) -> CallBatch {
        CallBatch(arena: reference.addressSpace.arena, maximum: maximum)
    }

    /// Begins a call, which ends at once when the loan has ended meanwhile.
    nonisolated func begin(
        _ runLoop: RunLoop,
        _ options: CallOptions,
        in scope: CancellationScope? = nil
    ) throws(SandboxError) {
        try runLoop.beginCall(options, in: scope)
        // Partner: `SandboxLoan.endCalls`. Either that finds this call, or the end of the loan is seen here.
        if let loan, loan.isOver { interruptHandle.kill() }
    }

    private func finish<Result>(
        _ runLoop: RunLoop,
        _ function: UInt64,
        _ writer: borrowing GuestValueWriter,
        _ load: (inout GuestValueReader) throws(SandboxError) -> Result
    ) async throws -> Result {
        // The arguments stay outside: a closure that captures a pack costs a look-up of its tuple's type.
        try await withCallCancellation { try runLoop.run(function: function, arguments: writer) }
        return try runLoop.loadResult(load)
    }
}
