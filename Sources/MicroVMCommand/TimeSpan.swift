import MicroVM

/// A length of time as people write it: `500ms`, `1.5s`, `2min`.
struct TimeSpan: Sendable, Hashable, CustomStringConvertible {
    var duration: Duration

    init(_ duration: Duration) { self.duration = duration }

    private static let units: [String: Double] = [
        "ns": 1, "us": 1e3, "µs": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "min": 60e9, "h": 3600e9,
    ]

    init(parsing text: String) throws(ParsingError) {
        // A hundred days: more than anybody waits, less than what overflows.
        let nanoseconds = try HumanNumber.parse(
            text,
            units: Self.units,
            example: "500ms, 2s or 1.5min",
            limit: 100 * 24 * 3600e9
        )
        guard nanoseconds >= 1 else { throw ParsingError("“\(text.printable)” is no time at all.") }
        duration = .nanoseconds(Int64(nanoseconds))
    }

    var microseconds: Double {
        let (seconds, attoseconds) = duration.components
        return Double(seconds) * 1e6 + Double(attoseconds) / 1e12
    }

    /// Three decimals at most, in the unit that suits the size: `27.4 µs`, `1.204 s`.
    var description: String {
        switch microseconds {
        case ..<1_000: "\(microseconds.decimal(places: 1)) µs"
        case ..<1_000_000: "\((microseconds / 1_000).decimal(places: 1)) ms"
        default: "\((microseconds / 1_000_000).decimal(places: 3)) s"
        }
    }
}
