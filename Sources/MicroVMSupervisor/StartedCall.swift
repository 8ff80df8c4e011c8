import MicroVM

/// A call in its sandbox.
struct StartedCall: Sendable {
    /// Ends it.
    let killSwitch: KillSwitch
    /// Waits for what becomes of it, and tells what it has cost.
    let end: @Sendable () async -> (result: Result<CallValue, any Error>, statistics: CallStatistics?)

    /// Starts a call, or goes on with one from the snapshot that the sandbox was restored to.
    init(
        _ request: CallRequest,
        limits: CallLimits,
        resumes: Bool,
        in sandbox: Sandbox,
        executor: (any TaskExecutor)?
    ) throws {
        func start<Value: GuestValue>(
            _ type: Value.Type,
            _ value: @escaping @Sendable (Value) -> CallValue
        ) throws -> StartedCall {
            let call =
                if resumes {
                    sandbox.startResuming(
                        timeLimit: limits.time,
                        cpuTimeLimit: limits.cpuTime,
                        executorPreference: executor,
                        returning: type
                    )
                } else {
                    try sandbox.start(
                        request.function,
                        arguments: request.arguments.compactMap(\.guestValue),
                        timeLimit: limits.time,
                        cpuTimeLimit: limits.cpuTime,
                        executorPreference: executor,
                        returning: type
                    )
                }
            return StartedCall(call, value)
        }
        switch request.returns {
        case .i8: self = try start(Int8.self) { .i8($0) }
        case .u8: self = try start(UInt8.self) { .u8($0) }
        case .i16: self = try start(Int16.self) { .i16($0) }
        case .u16: self = try start(UInt16.self) { .u16($0) }
        case .i32: self = try start(Int32.self) { .i32($0) }
        case .u32: self = try start(UInt32.self) { .u32($0) }
        case .i64: self = try start(Int64.self) { .i64($0) }
        case .u64: self = try start(UInt64.self) { .u64($0) }
        case .f32: self = try start(Float.self) { .f32($0) }
        case .f64: self = try start(Double.self) { .f64($0) }
        case .bool: self = try start(Bool.self) { .bool($0) }
        case .string: self = try start(String.self) { .string($0) }
        case .bytes: self = try start([UInt8].self) { .bytes($0) }
        case .void:
            let call =
                if resumes {
                    sandbox.startResuming(
                        timeLimit: limits.time,
                        cpuTimeLimit: limits.cpuTime,
                        executorPreference: executor
                    )
                } else {
                    try sandbox.start(
                        request.function,
                        arguments: request.arguments.compactMap(\.guestValue),
                        timeLimit: limits.time,
                        cpuTimeLimit: limits.cpuTime,
                        executorPreference: executor
                    )
                }
            self = StartedCall(call) { .void }
        }
    }

    private init<Value: Sendable>(_ call: GuestCall<Value>, _ value: @escaping @Sendable (Value) -> CallValue) {
        killSwitch = call.killSwitch
        end = {
            do {
                let result = try await call.result
                return (.success(value(result)), await call.statistics)
            } catch {
                return (.failure(error), await call.statistics)
            }
        }
    }
}
