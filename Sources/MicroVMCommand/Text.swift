extension String {
    /// The text with spaces behind it, up to a width.
    func padded(to width: Int) -> String { self + String(repeating: " ", count: max(0, width - count)) }

    /// The text with spaces before it, up to a width.
    func padded(before width: Int) -> String { String(repeating: " ", count: max(0, width - count)) + self }
}

extension UInt64 {
    /// `0x1f`.
    var hexadecimal: String { "0x" + String(self, radix: 16) }
}

extension Double {
    /// The number with so many decimals, rounded; without exponent.
    func decimal(places: Int) -> String {
        var scale = 1.0
        for _ in 0..<places { scale *= 10 }
        let scaled = (self * scale).rounded()
        guard scaled.magnitude < 9e15 else { return String(self) }
        let digits = String(Int64(scaled.magnitude))
        let padded = String(repeating: "0", count: max(0, places + 1 - digits.count)) + digits
        let whole = padded.dropLast(places)
        return (scaled < 0 ? "-" : "") + whole + (places == 0 ? "" : "." + padded.suffix(places))
    }
}
