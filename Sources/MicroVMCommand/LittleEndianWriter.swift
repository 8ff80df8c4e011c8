/// Puts numbers into bytes, the lowest byte first.
struct LittleEndianWriter {
    private(set) var bytes: [UInt8] = []

    mutating func append(_ number: Int, size: Int) {
        for index in 0..<size { bytes.append(UInt8(truncatingIfNeeded: number >> (8 * index))) }
    }

    mutating func append(_ more: [UInt8]) { bytes += more }

    /// Fills up with zeros.
    mutating func pad(to count: Int) { bytes += [UInt8](repeating: 0, count: max(0, count - bytes.count)) }
}
