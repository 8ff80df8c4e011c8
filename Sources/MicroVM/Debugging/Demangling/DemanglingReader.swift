/// Reads a mangled name from its start, character by character.
struct DemanglingReader {
    private let bytes: [UInt8]
    private var position = 0

    init(_ bytes: some Sequence<UInt8>) { self.bytes = Array(bytes) }

    var isAtEnd: Bool { position >= bytes.count }

    /// The next character, which stays the next.
    var peek: Unicode.Scalar? { isAtEnd ? nil : Unicode.Scalar(bytes[position]) }

    var isAtDigit: Bool { !isAtEnd && (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(bytes[position]) }

    mutating func next() throws(DemanglingRefusal) -> Unicode.Scalar {
        guard let next = peek else { throw DemanglingRefusal() }
        position += 1
        return next
    }

    /// Whether the next character was this one; then it is passed over.
    mutating func skip(_ character: Unicode.Scalar) -> Bool {
        guard peek == character else { return false }
        position += 1
        return true
    }

    mutating func bytes(_ count: Int) throws(DemanglingRefusal) -> ArraySlice<UInt8> {
        guard count >= 0, count <= bytes.count - position else { throw DemanglingRefusal() }
        defer { position += count }
        return bytes[position..<position + count]
    }

    /// All that is left.
    mutating func rest() -> String {
        defer { position = bytes.count }
        return String(decoding: bytes[position...], as: UTF8.self)
    }

    /// `NATURAL`, of at most nine digits.
    mutating func natural() throws(DemanglingRefusal) -> Int {
        let start = position
        var value = 0
        while isAtDigit {
            guard position - start < 9 else { throw DemanglingRefusal() }
            value = value * 10 + Int(bytes[position] - UInt8(ascii: "0"))
            position += 1
        }
        guard position > start else { throw DemanglingRefusal() }
        return value
    }

    /// `INDEX`: `_` is 0, `0_` is 1, and so on.
    mutating func index() throws(DemanglingRefusal) -> Int {
        if skip("_") { return 0 }
        let value = try natural()
        guard skip("_") else { throw DemanglingRefusal() }
        return value + 1
    }

    /// The digits of a number, which may be one of more than 64 bits.
    mutating func digits() -> String {
        let start = position
        while isAtDigit { position += 1 }
        return String(decoding: bytes[start..<position], as: UTF8.self)
    }
}
