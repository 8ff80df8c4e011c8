/// Text from a guest or a module, made fit for a log: one line, nothing that a terminal would obey, bounded in length.
enum HarmlessText {
    /// The bytes of a name that are kept.
    private static let longestName = 256

    /// A name, cut where it is too long.
    static func name(_ name: String) -> String { text(name, limit: longestName) }

    /// Text, cut after so many bytes, and then with an ellipsis.
    static func text(_ text: String, limit: Int) -> String {
        let isCut = text.utf8.count > limit
        return Self.text(Array(text.utf8.prefix(limit)), isCut: isCut) + (isCut ? "…" : "")
    }

    /// Text whose bytes may be anything: what is not UTF-8 becomes U+FFFD, and characters without a shape of their own
    /// that change what is seen or done are escaped as in a Swift literal.
    ///
    /// - Parameter isCut: whether the bytes went on, so that the last character may be a part of one.
    static func text(_ bytes: [UInt8], isCut: Bool = false) -> String {
        let whole = isCut ? bytes.prefix(lengthOfWholeCharacters(bytes)) : bytes[...]
        let text = String(decoding: whole, as: UTF8.self)
        if text.unicodeScalars.allSatisfy(isHarmless) { return text }
        var result = ""
        result.reserveCapacity(2 * whole.count)
        for scalar in text.unicodeScalars {
            if isHarmless(scalar) {
                result.unicodeScalars.append(scalar)
            } else {
                result += scalar.escaped(asASCII: true)
            }
        }
        return result
    }

    /// Without the beginning of a character at the end.
    private static func lengthOfWholeCharacters(_ bytes: [UInt8]) -> Int {
        // A character has four bytes at most, all but the first of the form 10xxxxxx.
        for back in 1...3 where back <= bytes.count {
            let byte = bytes[bytes.count - back]
            if byte & 0xc0 == 0x80 { continue }
            let length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1
            return length > back ? bytes.count - back : bytes.count
        }
        return bytes.count
    }

    private static func isHarmless(_ scalar: Unicode.Scalar) -> Bool {
        if scalar.value < 0x7f { return scalar.value >= 0x20 }
        switch scalar.properties.generalCategory {
        // Formats are the marks that turn the direction of writing around, among others.
        case .control, .format, .lineSeparator, .paragraphSeparator: return false
        default: return true
        }
    }
}
