/// The text of a packet, taken apart from its beginning.
struct GDBText {
    private(set) var rest: ArraySlice<UInt8>

    init(_ bytes: ArraySlice<UInt8>) { rest = bytes }

    var isAtEnd: Bool { rest.isEmpty }

    /// Whether the text goes on with these characters, which are then taken.
    mutating func take(_ text: StaticString) -> Bool {
        let bytes = unsafe Array(UnsafeBufferPointer(start: text.utf8Start, count: text.utf8CodeUnitCount))
        guard rest.starts(with: bytes) else { return false }
        rest = rest.dropFirst(bytes.count)
        return true
    }

    /// A number in hexadecimal, of at most 64 bits.
    mutating func takeNumber() -> UInt64? {
        var value: UInt64 = 0
        var count = 0
        while let digit = rest.first.flatMap(GDBPackets.hexadecimalDigit) {
            guard value >> 60 == 0 else { return nil }
            value = value << 4 | UInt64(digit)
            count += 1
            rest = rest.dropFirst()
        }
        return count > 0 ? value : nil
    }

    /// A length that somebody could mean seriously.
    mutating func takeCount() -> Int? { takeNumber().flatMap { $0 <= 1 << 32 ? Int($0) : nil } }

    /// All characters up to the next one of these, or to the end.
    mutating func take(until separator: Character) -> ArraySlice<UInt8> {
        let end = rest.firstIndex(of: separator.asciiValue ?? 0) ?? rest.endIndex
        defer { rest = rest[end...] }
        return rest[..<end]
    }

    /// Bytes as pairs of digits, to the end; `xx` is a byte that is not known.
    static func bytes(_ digits: ArraySlice<UInt8>) -> [UInt8?]? {
        guard digits.count % 2 == 0 else { return nil }
        var result: [UInt8?] = []
        var index = digits.startIndex
        while index < digits.endIndex {
            let (high, low) = (digits[index], digits[index + 1])
            if high == UInt8(ascii: "x"), low == high {
                result.append(nil)
            } else {
                guard let high = GDBPackets.hexadecimalDigit(high), let low = GDBPackets.hexadecimalDigit(low) else {
                    return nil
                }
                result.append(high << 4 | low)
            }
            index += 2
        }
        return result
    }
}
