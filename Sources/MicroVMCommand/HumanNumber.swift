import MicroVM

/// A number with a unit behind it, as people write sizes and times.
enum HumanNumber {
    /// Splits `1.5MiB` into its number and the factor of its unit; the product is at most `limit`.
    ///
    /// - Throws: ``ParsingError``, in words that name what is wrong and give an example.
    static func parse(
        _ text: String,
        units: [String: Double],
        example: String,
        limit: Double
    ) throws(ParsingError) -> Double {
        let digits = text.prefix { $0.isASCII && ($0.isNumber || $0 == ".") }
        let unit = String(text.dropFirst(digits.count).drop(while: { $0 == " " }))
        guard let first = digits.first, first != ".", digits.last != ".", let number = Double(digits) else {
            throw ParsingError("“\(text.printable)” does not begin with a number; write \(example).")
        }
        guard let factor = units[unit] else {
            throw ParsingError(
                unit.isEmpty
                    ? "“\(text.printable)” has no unit; write \(example)."
                    : "“\(unit.printable)” is not a unit known here; write \(example)."
            )
        }
        let value = number * factor
        guard value <= limit else { throw ParsingError("“\(text.printable)” is too large.") }
        return value
    }
}
