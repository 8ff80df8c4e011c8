/// A little-endian view of a file's bytes in which no offset can do harm.
struct ELFReader: Sendable {
    let bytes: [UInt8]

    /// The size of the file in bytes.
    var size: UInt64 { UInt64(bytes.count) }

    /// The bytes `offset..<offset + size`, or nothing where they are not all in the file.
    func range(offset: UInt64, size: UInt64) -> Range<UInt64>? {
        let (end, overflow) = offset.addingReportingOverflow(size)
        guard !overflow, end <= self.size else { return nil }
        return offset..<end
    }

    /// The integer at an offset, aligned or not. Beyond the end of the file everything reads as zero, which does not
    /// happen to a caller that has checked the range of a table before it walks it.
    @inline(__always)
    func load<Value: FixedWidthInteger & BitwiseCopyable>(_ type: Value.Type, at offset: UInt64) -> Value {
        let (end, overflow) = offset.addingReportingOverflow(UInt64(MemoryLayout<Value>.size))
        guard !overflow, end <= size else { return 0 }
        // Unsafe only in that any bit pattern becomes a value, and every bit pattern is an integer; the bounds are
        // checked above and by the span again.
        return unsafe bytes.span.bytes.unsafeLoadUnaligned(
            fromByteOffset: Int(truncatingIfNeeded: offset),
            as: Value.self
        )
    }

    /// The bytes of a zero-terminated string that begins at `offset` within a string table, or nothing where it begins
    /// outside the table, does not end in it, or is longer than `limit` bytes.
    func string(at offset: UInt64, in table: Range<UInt64>, limit: UInt64) -> ArraySlice<UInt8>? {
        let (start, overflow) = table.lowerBound.addingReportingOverflow(offset)
        guard !overflow, start < table.upperBound, table.upperBound <= size else { return nil }
        // One more than the limit, for the terminator.
        let end = min(table.upperBound - start, limit + 1) + start
        let candidate = bytes[Int(start)..<Int(end)]
        return candidate.firstIndex(of: 0).map { candidate[..<$0] }
    }
}
