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
    static func call(
        _ sandbox: Sandbox,
        _ function: String,
        _ arguments: [any GuestValue],
        returning type: ResultType,
        timeLimit: Duration?
    ) async throws -> GuestResult {
        func call<Value: GuestValue>(_ type: Value.Type) async throws -> Value {
            try await sandbox.call(function, arguments: arguments, timeLimit: timeLimit, returning: type)
        }
        switch type {
        case .value(.i8): return .signed(Int64(try await call(Int8.self)))
        case .value(.i16): return .signed(Int64(try await call(Int16.self)))
        case .value(.i32): return .signed(Int64(try await call(Int32.self)))
        case .value(.i64): return .signed(try await call(Int64.self))
        case .value(.u8): return .unsigned(UInt64(try await call(UInt8.self)))
        case .value(.u16): return .unsigned(UInt64(try await call(UInt16.self)))
        case .value(.u32): return .unsigned(UInt64(try await call(UInt32.self)))
        case .value(.u64): return .unsigned(try await call(UInt64.self))
        case .value(.f32): return .float(try await call(Float.self))
        case .value(.f64): return .double(try await call(Double.self))
        case .value(.bool): return .bool(try await call(Bool.self))
        case .value(.string): return .string(try await call(String.self))
        case .bytes: return .bytes(try await call([UInt8].self))
        case .void:
            try await sandbox.call(function, arguments: arguments, timeLimit: timeLimit)
            return .void
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
