/// A value of which every bit pattern is valid, so that it may be read from a guest's memory.
///
/// Conform a structure of such values to it to load it whole; never a type with forbidden bit patterns, such as `Bool`
/// or an enumeration.
public protocol GuestScalar: BitwiseCopyable, Sendable {}

extension Int8: GuestScalar {}
extension Int16: GuestScalar {}
extension Int32: GuestScalar {}
extension Int64: GuestScalar {}
extension Int: GuestScalar {}
extension UInt8: GuestScalar {}
extension UInt16: GuestScalar {}
extension UInt32: GuestScalar {}
extension UInt64: GuestScalar {}
extension UInt: GuestScalar {}
extension Float: GuestScalar {}
extension Double: GuestScalar {}

/// An address in the guest that is said to hold a value of a type. It is only a number until ``GuestMemory`` checks it.
public struct GuestPointer<Pointee: GuestScalar>: GuestValue, Hashable {
    /// The guest address.
    public var address: UInt64

    /// Makes a pointer from a guest address.
    public init(address: UInt64) { self.address = address }

    /// The pointer to the value `count` places further on; wraps around like an address does.
    public func advanced(by count: Int) -> GuestPointer {
        let distance = UInt64(truncatingIfNeeded: count) &* UInt64(MemoryLayout<Pointee>.stride)
        return GuestPointer(address: address &+ distance)
    }

    /// Passes the address as one integer.
    public func store(into writer: inout GuestValueWriter) throws(SandboxError) { try writer.appendInteger(address) }

    /// Takes the address from one integer.
    public static func load(from reader: inout GuestValueReader) throws(SandboxError) -> GuestPointer {
        GuestPointer(address: try reader.nextInteger())
    }
}

/// A stretch of guest memory that a guest names by pointer and length. Only two numbers until ``GuestMemory`` checks
/// them.
public struct GuestBuffer: GuestValue, Hashable {
    /// The guest address of the first byte.
    public var address: UInt64
    /// The number of bytes.
    public var count: UInt64

    /// Makes a buffer from a guest address and a number of bytes.
    public init(address: UInt64, count: UInt64) {
        self.address = address
        self.count = count
    }

    /// Passes pointer and length as two integers.
    public func store(into writer: inout GuestValueWriter) throws(SandboxError) {
        try writer.appendInteger(address)
        try writer.appendInteger(count)
    }

    /// Takes pointer and length from two integers.
    public static func load(from reader: inout GuestValueReader) throws(SandboxError) -> GuestBuffer {
        GuestBuffer(address: try reader.nextInteger(), count: try reader.nextInteger())
    }
}
