import ArgumentParser
import MicroVM

/// The types of values on the command line, by the names they have there.
enum ValueType: String, CaseIterable, Sendable {
    case i8, u8, i16, u16, i32, u32, i64, u64, f32, f64, bool, string

    /// All names, for messages.
    static let names = allCases.map(\.rawValue).joined(separator: ", ")

    /// Makes a value of this type.
    ///
    /// - Throws: ``ParsingError``, which tells a value out of range from what is no value at all.
    func parse(_ text: String) throws(ParsingError) -> any GuestValue {
        switch self {
        case .i8: try integer(Int8.self, text)
        case .u8: try integer(UInt8.self, text)
        case .i16: try integer(Int16.self, text)
        case .u16: try integer(UInt16.self, text)
        case .i32: try integer(Int32.self, text)
        case .u32: try integer(UInt32.self, text)
        case .i64: try integer(Int64.self, text)
        case .u64: try integer(UInt64.self, text)
        case .f32: try floatingPoint(Float.self, text)
        case .f64: try floatingPoint(Double.self, text)
        case .bool: try boolean(text)
        case .string: text
        }
    }

    private func integer<Integer: FixedWidthInteger>(
        _ type: Integer.Type,
        _ text: String
    ) throws(ParsingError) -> Integer {
        var digits = text[...]
        let sign = digits.first.flatMap { "+-".contains($0) ? $0 : nil }
        if sign != nil { digits = digits.dropFirst() }
        var radix = 10
        for (prefix, value) in [("0x", 16), ("0X", 16), ("0o", 8), ("0b", 2)] where digits.hasPrefix(prefix) {
            digits = digits.dropFirst(2)
            radix = value
        }
        let areDigits = digits.allSatisfy { $0.isASCII && ($0.hexDigitValue ?? 16) < radix }
        guard !digits.isEmpty, areDigits else {
            throw ParsingError("“\(text.printable)” is not a whole number, as \(self) needs one.")
        }
        let signed = (sign.map { String($0) } ?? "") + digits
        guard let value = Integer(signed, radix: radix) else {
            throw ParsingError(
                "\(text) is out of range for \(self), which reaches from \(Integer.min) to \(Integer.max)."
            )
        }
        return value
    }

    private func floatingPoint<Number: BinaryFloatingPoint & LosslessStringConvertible>(
        _ type: Number.Type,
        _ text: String
    ) throws(ParsingError) -> Number {
        guard let value = Number(text) else {
            throw ParsingError("“\(text.printable)” is not a number, as \(self) needs one.")
        }
        guard value.isFinite || !text.contains(where: \.isNumber) else {
            throw ParsingError("\(text) is out of range for \(self).")
        }
        return value
    }

    private func boolean(_ text: String) throws(ParsingError) -> Bool {
        guard let value = Bool(text) else {
            throw ParsingError("“\(text.printable)” is neither true nor false, as bool needs it.")
        }
        return value
    }
}
