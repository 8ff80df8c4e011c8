/// Identifiers in other scripts, as Swift's names have them: by RFC 3492, with `_` for the hyphen and `A` to `J` for
/// the digits.
enum Punycode {
    private static let base = 36
    private static let (least, most) = (1, 26)

    static func decode(_ bytes: ArraySlice<UInt8>) throws(DemanglingRefusal) -> String {
        var scalars: [Unicode.Scalar] = []
        var rest = bytes
        if let delimiter = bytes.lastIndex(of: UInt8(ascii: "_")) {
            scalars = bytes[..<delimiter].map { Unicode.Scalar($0) }
            rest = bytes[(delimiter + 1)...]
        }
        var value = 128
        var index = 0
        var bias = 72
        while !rest.isEmpty {
            let start = index
            var weight = 1
            var place = base
            while true {
                guard let digit = rest.popFirst().flatMap(digit) else { throw DemanglingRefusal() }
                index += digit * weight
                let threshold = min(max(place - bias, least), most)
                if digit < threshold { break }
                weight *= base - threshold
                place += base
                // Beyond all scalars, and far from an overflow.
                guard index <= 1 << 30, weight <= 1 << 24 else { throw DemanglingRefusal() }
            }
            let count = scalars.count + 1
            bias = adapted(index - start, count: count, isFirst: start == 0)
            value += index / count
            index %= count
            guard value <= 0x10ffff else { throw DemanglingRefusal() }
            scalars.insert(try scalar(UInt32(value)), at: index)
            index += 1
        }
        return String(String.UnicodeScalarView(scalars))
    }

    /// Characters that would do something to a terminal or to the order of the text are refused.
    private static func scalar(_ value: UInt32) throws(DemanglingRefusal) -> Unicode.Scalar {
        // ASCII characters that no identifier has are written as surrogates, which no text has.
        let value = (0xd800..<0xd880).contains(value) ? value - 0xd800 : value
        guard let scalar = Unicode.Scalar(value) else { throw DemanglingRefusal() }
        switch scalar.properties.generalCategory {
        case .control, .format, .surrogate, .privateUse, .unassigned, .lineSeparator, .paragraphSeparator:
            throw DemanglingRefusal()
        default: return scalar
        }
    }

    private static func digit(_ byte: UInt8) -> Int? {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"): Int(byte - UInt8(ascii: "a"))
        case UInt8(ascii: "A")...UInt8(ascii: "J"): Int(byte - UInt8(ascii: "A")) + 26
        default: nil
        }
    }

    private static func adapted(_ delta: Int, count: Int, isFirst: Bool) -> Int {
        var delta = delta / (isFirst ? 700 : 2)
        delta += delta / count
        var place = 0
        while delta > (base - least) * most / 2 {
            delta /= base - least
            place += base
        }
        return place + (base - least + 1) * delta / (delta + 38)
    }
}
