import FoundationEssentials
import MicroVM

/// What a guest function returned.
enum GuestResult: Sendable, Encodable {
    case signed(Int64)
    case unsigned(UInt64)
    case float(Float)
    case double(Double)
    case bool(Bool)
    case string(String)
    case bytes([UInt8])
    case void

    /// Calls the function and takes its result as the type it is said to have.
    ///
    /// - Parameter began: is given what ends the call, before it is awaited.
    /// - Returns: what came of the call, and what it had cost.
    static func call(
        _ sandbox: Sandbox,
        _ function: String,
        _ arguments: [any GuestValue],
        returning type: ResultType,
        timeLimit: Duration?,
        cpuTimeLimit: Duration?,
        began: (KillSwitch) -> Void
    ) async throws -> (result: Result<GuestResult, any Error>, statistics: CallStatistics?) {
        func end<Value>(
            _ call: GuestCall<Value>,
            _ result: (Value) -> GuestResult
        ) async -> (Result<GuestResult, any Error>, CallStatistics?) {
            began(call.killSwitch)
            do {
                let value = try await call.result
                return (.success(result(value)), await call.statistics)
            } catch {
                return (.failure(error), await call.statistics)
            }
        }
        func value<Value: GuestValue>(
            _ type: Value.Type,
            _ result: (Value) -> GuestResult
        ) async throws -> (Result<GuestResult, any Error>, CallStatistics?) {
            let call = try sandbox.start(
                function,
                arguments: arguments,
                timeLimit: timeLimit,
                cpuTimeLimit: cpuTimeLimit,
                returning: type
            )
            return await end(call, result)
        }
        switch type {
        case .value(.i8): return try await value(Int8.self) { .signed(Int64($0)) }
        case .value(.i16): return try await value(Int16.self) { .signed(Int64($0)) }
        case .value(.i32): return try await value(Int32.self) { .signed(Int64($0)) }
        case .value(.i64): return try await value(Int64.self) { .signed($0) }
        case .value(.u8): return try await value(UInt8.self) { .unsigned(UInt64($0)) }
        case .value(.u16): return try await value(UInt16.self) { .unsigned(UInt64($0)) }
        case .value(.u32): return try await value(UInt32.self) { .unsigned(UInt64($0)) }
        case .value(.u64): return try await value(UInt64.self) { .unsigned($0) }
        case .value(.f32): return try await value(Float.self) { .float($0) }
        case .value(.f64): return try await value(Double.self) { .double($0) }
        case .value(.bool): return try await value(Bool.self) { .bool($0) }
        case .value(.string): return try await value(String.self) { .string($0) }
        case .bytes: return try await value([UInt8].self) { .bytes($0) }
        case .void:
            let call = try sandbox.start(
                function,
                arguments: arguments,
                timeLimit: timeLimit,
                cpuTimeLimit: cpuTimeLimit
            )
            return await end(call) { .void }
        }
    }

    /// What goes to standard output: a line, the bytes as they are, or nothing.
    var output: [UInt8] {
        switch self {
        case .signed(let value): Array("\(value)\n".utf8)
        case .unsigned(let value): Array("\(value)\n".utf8)
        case .float(let value): Array("\(value)\n".utf8)
        case .double(let value): Array("\(value)\n".utf8)
        case .bool(let value): Array("\(value)\n".utf8)
        case .string(let value): Array("\(value)\n".utf8)
        case .bytes(let bytes): bytes
        case .void: []
        }
    }

    /// A number, true or false, or a string; bytes in Base64; null for nothing.
    func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        switch self {
        case .signed(let value): try container.encode(value)
        case .unsigned(let value): try container.encode(value)
        case .float(let value): try container.encode(value)
        case .double(let value): try container.encode(value)
        case .bool(let value): try container.encode(value)
        case .string(let value): try container.encode(value)
        case .bytes(let bytes): try container.encode(Data(bytes).base64EncodedString())
        case .void: try container.encodeNil()
        }
    }
}
