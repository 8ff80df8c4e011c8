public import MicroVM

/// A value that is passed to a guest function or returned by one, whose type is known at run time.
public enum CallValue: Sendable, Hashable {
    /// Integers, passed and returned as C passes them.
    case i8(Int8), u8(UInt8), i16(Int16), u16(UInt16), i32(Int32), u32(UInt32), i64(Int64), u64(UInt64)
    /// Floating-point numbers.
    case f32(Float), f64(Double)
    /// True or false.
    case bool(Bool)
    /// Text, as pointer and length of its UTF-8.
    case string(String)
    /// Bytes, as pointer and length.
    case bytes([UInt8])
    /// No value: what a function returns that returns nothing. As an argument it is nothing, too.
    case void

    /// What kind of value this is.
    public var type: CallValueType {
        switch self {
        case .i8: .i8
        case .u8: .u8
        case .i16: .i16
        case .u16: .u16
        case .i32: .i32
        case .u32: .u32
        case .i64: .i64
        case .u64: .u64
        case .f32: .f32
        case .f64: .f64
        case .bool: .bool
        case .string: .string
        case .bytes: .bytes
        case .void: .void
        }
    }

    /// The bytes that it has beyond its own size.
    var byteCount: Int {
        switch self {
        case .string(let text): text.utf8.count
        case .bytes(let bytes): bytes.count
        default: 0
        }
    }

    /// The value as it is passed; nothing for ``void``.
    public var guestValue: (any GuestValue)? {
        switch self {
        case .i8(let value): value
        case .u8(let value): value
        case .i16(let value): value
        case .u16(let value): value
        case .i32(let value): value
        case .u32(let value): value
        case .i64(let value): value
        case .u64(let value): value
        case .f32(let value): value
        case .f64(let value): value
        case .bool(let value): value
        case .string(let value): value
        case .bytes(let value): value
        case .void: nil
        }
    }
}

/// The types of ``CallValue``, by the names they have in text.
public enum CallValueType: String, Sendable, Hashable, CaseIterable {
    /// Integers.
    case i8, u8, i16, u16, i32, u32, i64, u64
    /// Floating-point numbers.
    case f32, f64
    /// True or false.
    case bool
    /// Text.
    case string
    /// Bytes.
    case bytes
    /// Nothing.
    case void
}
