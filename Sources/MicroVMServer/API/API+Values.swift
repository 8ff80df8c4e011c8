#if Server
import FoundationEssentials
import MicroVM
package import MicroVMSupervisor

extension API {
    /// A value with its type: `{"type": "i64", "value": 42}`.
    ///
    /// Bytes are Base64. Integers may be numbers or strings of digits; they are written as strings where a reader that
    /// knows only floating-point numbers would lose digits. What is no number is `"nan"`, `"inf"` or `"-inf"`.
    package struct Value: Codable, Sendable, Hashable {
        package var value: CallValue

        package init(_ value: CallValue) { self.value = value }

        private enum Key: String, CodingKey, CaseIterable { case type, value }

        package init(from decoder: any Decoder) throws {
            try decoder.allowOnly(Key.self)
            let container = try decoder.container(keyedBy: Key.self)
            let name = try container.decode(String.self, forKey: .type)
            guard let type = CallValueType(rawValue: name) else {
                let names = CallValueType.allCases.map(\.rawValue).joined(separator: ", ")
                throw container.corrupted(.type, "“\(name.printable)” is not a type; there are \(names).")
            }
            func integer<Integer: FixedWidthInteger & Decodable>(_ type: Integer.Type) throws -> Integer {
                if let text = try? container.decode(String.self, forKey: .value) {
                    guard let value = Integer(text) else {
                        throw container.corrupted(.value, "“\(text.printable)” is not an integer of type \(name).")
                    }
                    return value
                }
                return try container.decode(Integer.self, forKey: .value)
            }
            func float() throws -> Double {
                if let text = try? container.decode(String.self, forKey: .value) {
                    switch text {
                    case "nan": return .nan
                    case "inf": return .infinity
                    case "-inf": return -.infinity
                    default: throw container.corrupted(.value, "“\(text.printable)” is not a number.")
                    }
                }
                return try container.decode(Double.self, forKey: .value)
            }
            switch type {
            case .i8: value = .i8(try integer(Int8.self))
            case .u8: value = .u8(try integer(UInt8.self))
            case .i16: value = .i16(try integer(Int16.self))
            case .u16: value = .u16(try integer(UInt16.self))
            case .i32: value = .i32(try integer(Int32.self))
            case .u32: value = .u32(try integer(UInt32.self))
            case .i64: value = .i64(try integer(Int64.self))
            case .u64: value = .u64(try integer(UInt64.self))
            case .f32: value = .f32(Float(try float()))
            case .f64: value = .f64(try float())
            case .bool: value = .bool(try container.decode(Bool.self, forKey: .value))
            case .string: value = .string(try container.decode(String.self, forKey: .value))
            case .bytes:
                let text = try container.decode(String.self, forKey: .value)
                guard let data = Data(base64Encoded: text) else {
                    throw container.corrupted(.value, "Bytes are written in Base64, which this is not.")
                }
                value = .bytes(Array(data))
            case .void: value = .void
            }
        }

        package func encode(to encoder: any Encoder) throws {
            var container = encoder.container(keyedBy: Key.self)
            try container.encode(value.type.rawValue, forKey: .type)
            func integer(_ value: some FixedWidthInteger & Encodable) throws {
                if value.magnitude < 1 << 53 {
                    try container.encode(value, forKey: .value)
                } else {
                    try container.encode("\(value)", forKey: .value)
                }
            }
            func float(_ value: Double) throws {
                if value.isFinite {
                    try container.encode(value, forKey: .value)
                } else {
                    try container.encode(value.isNaN ? "nan" : value < 0 ? "-inf" : "inf", forKey: .value)
                }
            }
            switch value {
            case .i8(let value): try container.encode(value, forKey: .value)
            case .u8(let value): try container.encode(value, forKey: .value)
            case .i16(let value): try container.encode(value, forKey: .value)
            case .u16(let value): try container.encode(value, forKey: .value)
            case .i32(let value): try container.encode(value, forKey: .value)
            case .u32(let value): try container.encode(value, forKey: .value)
            case .i64(let value): try integer(value)
            case .u64(let value): try integer(value)
            case .f32(let value): try float(Double(value))
            case .f64(let value): try float(value)
            case .bool(let value): try container.encode(value, forKey: .value)
            case .string(let value): try container.encode(value, forKey: .value)
            case .bytes(let value): try container.encode(Data(value).base64EncodedString(), forKey: .value)
            case .void: break
            }
        }
    }
}

/// Any member of an object.
private struct AnyKey: CodingKey {
    var stringValue: String
    var intValue: Int? { nil }
    init?(stringValue: String) { self.stringValue = stringValue }
    init?(intValue: Int) { nil }
}

extension Decoder {
    /// Refuses an object with members that mean nothing, which would else be mistakes that nobody notices.
    func allowOnly<Key: CodingKey & CaseIterable>(_ keys: Key.Type) throws {
        let names = try container(keyedBy: AnyKey.self).allKeys.map(\.stringValue)
        guard let unknown = names.filter({ Key(stringValue: $0) == nil }).min() else { return }
        let known = Key.allCases.map(\.stringValue).sorted()
        throw DecodingError.dataCorrupted(
            DecodingError.Context(
                codingPath: codingPath,
                debugDescription: "“\(unknown.printable)” is no member here; there are "
                    + known.joined(separator: ", ") + "."
            )
        )
    }
}

extension KeyedDecodingContainer {
    func corrupted(_ key: Key, _ description: String) -> DecodingError {
        DecodingError.dataCorruptedError(forKey: key, in: self, debugDescription: description)
    }
}
#endif
