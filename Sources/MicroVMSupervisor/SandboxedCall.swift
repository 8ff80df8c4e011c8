import MicroVM

/// A call that has its sandbox, and is to be made there.
struct SandboxedCall: Sendable {
    /// Ends it, also before it is made.
    let killSwitch: KillSwitch
    /// Makes it, once, and tells what has become of it and what it has cost.
    let run: @Sendable () async -> (result: Result<CallValue, any Error>, statistics: CallStatistics?)

    /// Prepares a call, or what is left of the one that was under way in the snapshot that the sandbox was restored to.
    init(_ request: CallRequest, limits: CallLimits, resumes: Bool, in sandbox: Sandbox) throws {
        func prepare<Value: GuestValue>(
            _ type: Value.Type,
            _ value: @escaping @Sendable (Value) -> CallValue
        ) throws -> SandboxedCall {
            let call =
                if resumes {
                    sandbox.prepareResuming(timeLimit: limits.time, cpuTimeLimit: limits.cpuTime, returning: type)
                } else {
                    try sandbox.prepareCall(
                        request.function,
                        arguments: request.arguments.compactMap(\.guestValue),
                        timeLimit: limits.time,
                        cpuTimeLimit: limits.cpuTime,
                        returning: type
                    )
                }
            return SandboxedCall(call, value)
        }
        switch request.returns {
        case .i8: self = try prepare(Int8.self) { .i8($0) }
        case .u8: self = try prepare(UInt8.self) { .u8($0) }
        case .i16: self = try prepare(Int16.self) { .i16($0) }
        case .u16: self = try prepare(UInt16.self) { .u16($0) }
        case .i32: self = try prepare(Int32.self) { .i32($0) }
        case .u32: self = try prepare(UInt32.self) { .u32($0) }
        case .i64: self = try prepare(Int64.self) { .i64($0) }
        case .u64: self = try prepare(UInt64.self) { .u64($0) }
        case .f32: self = try prepare(Float.self) { .f32($0) }
        case .f64: self = try prepare(Double.self) { .f64($0) }
        case .bool: self = try prepare(Bool.self) { .bool($0) }
        case .string: self = try prepare(String.self) { .string($0) }
        case .bytes: self = try prepare([UInt8].self) { .bytes($0) }
        case .void:
            let call =
                if resumes {
                    sandbox.prepareResuming(timeLimit: limits.time, cpuTimeLimit: limits.cpuTime)
                } else {
                    try sandbox.prepareCall(
                        request.function,
                        arguments: request.arguments.compactMap(\.guestValue),
                        timeLimit: limits.time,
                        cpuTimeLimit: limits.cpuTime
                    )
                }
            self = SandboxedCall(call) { .void }
        }
    }

    private init<Value: Sendable>(_ call: PreparedCall<Value>, _ value: @escaping @Sendable (Value) -> CallValue) {
        killSwitch = call.killSwitch
        run = {
            do {
                let result = try await call.run()
                return (.success(value(result)), call.statistics)
            } catch {
                return (.failure(error), call.statistics)
            }
        }
    }
}
