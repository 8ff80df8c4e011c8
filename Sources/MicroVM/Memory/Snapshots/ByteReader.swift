/// Numbers, one after the other, little endian, of a file that may say anything.
struct ByteReader {
    private let bytes: [UInt8]
    private var position = 0
    let failure: () -> SandboxError

    init(_ bytes: [UInt8], failure: @escaping () -> SandboxError) {
        self.bytes = bytes
        self.failure = failure
    }

    mutating func next<Value: FixedWidthInteger>(_ type: Value.Type) throws(SandboxError) -> Value {
        let size = Value.bitWidth / 8
        guard bytes.count - position >= size else { throw failure() }
        defer { position += size }
        return bytes[position..<position + size].reversed().reduce(0) { $0 << 8 | Value(truncatingIfNeeded: $1) }
    }

    /// A number from 0 to a maximum.
    mutating func nextCount(_ maximum: Int) throws(SandboxError) -> Int {
        let value = try next(UInt64.self)
        guard maximum >= 0, value <= UInt64(maximum) else { throw failure() }
        return Int(value)
    }

    /// A count, and so many bytes.
    mutating func nextBytes() throws(SandboxError) -> [UInt8] {
        let count = try nextCount(bytes.count)
        guard bytes.count - position >= count else { throw failure() }
        defer { position += count }
        return Array(bytes[position..<position + count])
    }
}
