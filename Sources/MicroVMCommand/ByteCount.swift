import MicroVM

/// A number of bytes as people write it: `64MiB`, `1.5GiB`, `4096`.
struct ByteCount: Sendable, Hashable, CustomStringConvertible {
    var bytes: UInt64

    init(_ bytes: UInt64) { self.bytes = bytes }

    private static let units: [String: Double] = [
        "": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9,
        "K": 1024, "KiB": 1024, "M": 1_048_576, "MiB": 1_048_576, "G": 1_073_741_824, "GiB": 1_073_741_824,
    ]

    init(parsing text: String) throws(ParsingError) {
        let value = try HumanNumber.parse(text, units: Self.units, example: "64MiB, 1GiB or 65536", limit: 0x1p53)
        guard value > 0, value == value.rounded() else {
            throw ParsingError("“\(text.printable)” is not a whole number of bytes, at least one.")
        }
        bytes = UInt64(value)
    }

    /// Exact, in the largest unit of which it is a whole number: `64MiB`, `1044KiB`, `100B`.
    var description: String {
        for (unit, size) in [("GiB", UInt64(1) << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
        where bytes >= size && bytes % size == 0 {
            return "\(bytes / size)\(unit)"
        }
        return "\(bytes)B"
    }
}
