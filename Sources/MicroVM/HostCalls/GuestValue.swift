/// A Swift value that can be passed to a guest function, returned by one, or both.
///
/// Values travel by the System V AMD64 calling convention (AMD64 ABI 3.2.3): integers and pointers in integer
/// registers, `Float` and `Double` in vector registers, more of them on the stack; `String` and `[UInt8]` as a pointer
/// and a length. An enumeration with a raw value that is a guest value becomes one by declaring the conformance.
public protocol GuestValue: Sendable {
    /// Passes the value on to the guest.
    ///
    /// - Throws: ``SandboxError/Code/argumentTooLarge`` or ``SandboxError/Code/invalidArgument`` when it does not fit.
    func store(into writer: inout GuestValueWriter) throws(SandboxError)

    /// Takes a value that comes from the guest, which may have put anything there.
    ///
    /// - Throws: ``SandboxError/Code/invalidResult`` or ``SandboxError/Code/invalidPointer`` when it is not one.
    static func load(from reader: inout GuestValueReader) throws(SandboxError) -> Self
}

/// A guest value that is whole in registers: to take it, nothing is read of the guest's memory, which may hold
/// something else by then. Only functions that return such values, or nothing, can be called many at a time
/// (``GuestFunction/stream(_:maximumBatch:timeLimit:cpuTimeLimit:)``).
///
/// An enumeration whose raw value is one becomes one by declaring the conformance.
public protocol GuestRegisterValue: GuestValue {}

extension GuestValue where Self: FixedWidthInteger {
    /// Passes the value sign- or zero-extended to 64 bits.
    public func store(into writer: inout GuestValueWriter) throws(SandboxError) {
        try writer.appendInteger(UInt64(truncatingIfNeeded: self))
    }

    /// Takes the low bits of one integer; the convention leaves the others undefined.
    public static func load(from reader: inout GuestValueReader) throws(SandboxError) -> Self {
        Self(truncatingIfNeeded: try reader.nextInteger())
    }
}

extension Int8: GuestRegisterValue {}
extension Int16: GuestRegisterValue {}
extension Int32: GuestRegisterValue {}
extension Int64: GuestRegisterValue {}
extension Int: GuestRegisterValue {}
extension UInt8: GuestRegisterValue {}
extension UInt16: GuestRegisterValue {}
extension UInt32: GuestRegisterValue {}
extension UInt64: GuestRegisterValue {}
extension UInt: GuestRegisterValue {}

extension Bool: GuestRegisterValue {
    /// Passes 0 or 1.
    public func store(into writer: inout GuestValueWriter) throws(SandboxError) {
        try writer.appendInteger(self ? 1 : 0)
    }

    /// Takes the low byte of one integer: false when it is 0.
    public static func load(from reader: inout GuestValueReader) throws(SandboxError) -> Bool {
        try reader.nextInteger() & 0xff != 0
    }
}

extension Double: GuestRegisterValue {
    /// Passes the value in a vector register.
    public func store(into writer: inout GuestValueWriter) throws(SandboxError) {
        try writer.appendVector(bitPattern)
    }

    /// Takes the low half of a vector register.
    public static func load(from reader: inout GuestValueReader) throws(SandboxError) -> Double {
        Double(bitPattern: try reader.nextVector())
    }
}

extension Float: GuestRegisterValue {
    /// Passes the value in a vector register.
    public func store(into writer: inout GuestValueWriter) throws(SandboxError) {
        try writer.appendVector(UInt64(bitPattern))
    }

    /// Takes the low quarter of a vector register.
    public static func load(from reader: inout GuestValueReader) throws(SandboxError) -> Float {
        Float(bitPattern: UInt32(truncatingIfNeeded: try reader.nextVector()))
    }
}

extension String: GuestValue {
    /// Copies the text's UTF-8 bytes to the guest and passes pointer and length; a zero byte that the length does not
    /// count follows them.
    public func store(into writer: inout GuestValueWriter) throws(SandboxError) {
        var copy = self
        // Native strings lend their bytes as they are; `withUTF8` makes the others so.
        let result: Swift.Result<Void, SandboxError> = copy.withUTF8 { bytes in
            do throws(SandboxError) {
                return .success(unsafe try writer.appendBytes(UnsafeRawBufferPointer(bytes)))
            } catch {
                return .failure(error)
            }
        }
        try result.get()
    }

    /// Copies the bytes that pointer and length name, which must be valid UTF-8.
    public static func load(from reader: inout GuestValueReader) throws(SandboxError) -> String {
        let bytes = unsafe try reader.nextBytes()
        guard let text = unsafe String(validating: bytes, as: UTF8.self) else {
            throw SandboxError(.invalidResult, "The guest's \(bytes.count) bytes of text are not valid UTF-8.")
        }
        return text
    }
}

extension Array: GuestValue where Element == UInt8 {
    /// Copies the bytes to the guest and passes pointer and length; a zero byte that the length does not count follows
    /// them.
    public func store(into writer: inout GuestValueWriter) throws(SandboxError) {
        let result: Swift.Result<Void, SandboxError> = unsafe withUnsafeBytes { bytes in
            do throws(SandboxError) {
                return .success(unsafe try writer.appendBytes(bytes))
            } catch {
                return .failure(error)
            }
        }
        try result.get()
    }

    /// Copies the bytes that pointer and length name.
    public static func load(from reader: inout GuestValueReader) throws(SandboxError) -> [UInt8] {
        unsafe Array(try reader.nextBytes())
    }
}

extension GuestValue where Self: RawRepresentable, RawValue: GuestValue {
    /// Passes the raw value.
    public func store(into writer: inout GuestValueWriter) throws(SandboxError) { try rawValue.store(into: &writer) }

    /// Takes a raw value, which must be one of the type's own.
    public static func load(from reader: inout GuestValueReader) throws(SandboxError) -> Self {
        let rawValue = try RawValue.load(from: &reader)
        guard let value = Self(rawValue: rawValue) else {
            throw SandboxError(.invalidResult, "The guest's value \(rawValue) is no \(Self.self).")
        }
        return value
    }
}
