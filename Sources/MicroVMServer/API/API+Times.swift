#if Server
import MicroVMSupervisor

extension WallTime {
    private static let powersOfTen: [Int64] = [1, 10, 100, 1000, 10_000, 100_000]

    /// As in RFC 3339, in UTC and with microseconds: `2026-11-30T06:24:57.123456Z`.
    package var text: String {
        let microseconds = nanoseconds / 1000
        let seconds = microseconds >= 0 ? microseconds / 1_000_000 : (microseconds - 999_999) / 1_000_000
        let fraction = microseconds - seconds * 1_000_000
        let day = seconds >= 0 ? seconds / 86_400 : (seconds - 86_399) / 86_400
        let second = seconds - day * 86_400
        // The civil calendar, counted in eras of 400 years that begin in March.
        let shifted = day + 719_468
        let era = (shifted >= 0 ? shifted : shifted - 146_096) / 146_097
        let dayOfEra = shifted - era * 146_097
        let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let shiftedMonth = (5 * dayOfYear + 2) / 153
        let dayOfMonth = dayOfYear - (153 * shiftedMonth + 2) / 5 + 1
        let month = shiftedMonth < 10 ? shiftedMonth + 3 : shiftedMonth - 9
        let year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0)
        var text: [UInt8] = []
        text.reserveCapacity(27)
        func append(_ number: Int64, digits: Int, _ separator: Unicode.Scalar) {
            var divisor = Self.powersOfTen[digits - 1]
            while divisor > 0 {
                text.append(UInt8(ascii: "0") + UInt8(number / divisor % 10))
                divisor /= 10
            }
            text.append(UInt8(ascii: separator))
        }
        // Nanoseconds in 64 bits do not leave the years of four digits.
        append(year, digits: 4, "-")
        append(month, digits: 2, "-")
        append(dayOfMonth, digits: 2, "T")
        append(second / 3600, digits: 2, ":")
        append(second / 60 % 60, digits: 2, ":")
        append(second % 60, digits: 2, ".")
        append(fraction, digits: 6, "Z")
        return String(decoding: text, as: UTF8.self)
    }
}

extension Duration {
    /// Microseconds, with fractions.
    package var microseconds: Double { Double(components.seconds) * 1e6 + Double(components.attoseconds) / 1e12 }

    var seconds: Double { microseconds / 1e6 }

    /// A length of time from microseconds; nothing where that is none, or longer than thirty years.
    package init?(microseconds: Double) {
        guard microseconds > 0, microseconds <= 1e15 else { return nil }
        self = .nanoseconds(Int64((microseconds * 1000).rounded(.up)))
    }
}

extension UInt64 {
    /// `0x1f`: JSON's numbers lose the low bits of large addresses.
    var hexadecimal: String { "0x" + String(self, radix: 16) }
}
#endif
