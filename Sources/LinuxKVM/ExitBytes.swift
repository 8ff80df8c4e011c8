/// The bytes of an exit, in the memory that the virtual CPU shares with the kernel: what the guest wrote, or room for
/// what it is to read.
///
/// They are there until the next call of a method of the virtual CPU that runs it, and never after the virtual CPU is
/// gone; looking at them later is undefined. Holding one is harmless, which is why only its methods are unsafe.
@safe public struct ExitBytes {
    private let bytes: UnsafeMutableRawBufferPointer

    @inline(__always)
    @unsafe init(bytes: UnsafeMutableRawBufferPointer) {
        unsafe self.bytes = bytes
    }

    /// How many bytes there are.
    public var count: Int {
        unsafe bytes.count
    }

    /// The first bytes, eight at most, as a little-endian number. Setting it keeps as many low bytes as there is room
    /// for.
    @unsafe public var value: UInt64 {
        get {
            var value: UInt64 = 0
            for index in 0..<min(unsafe bytes.count, 8) {
                // Safe while the virtual CPU has not run again, which is the caller's promise; the index is in range.
                unsafe value |= UInt64(bytes[index]) << (8 * index)
            }
            return value
        }
        nonmutating set {
            for index in 0..<min(unsafe bytes.count, 8) {
                // Safe for the same reason.
                unsafe bytes[index] = UInt8(truncatingIfNeeded: newValue >> (8 * index))
            }
        }
    }

    /// Calls `body` with the bytes, to read or to write.
    @unsafe public func withUnsafeMutableBytes<Result, Failure>(
        _ body: (UnsafeMutableRawBufferPointer) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        try unsafe body(bytes)
    }
}
