#if Server
import FoundationEssentials

/// JSON that is written without Foundation's encoder, for what is written with every call or by the thousand. The text
/// is the encoder's, with sorted keys.
struct JSONText {
    private(set) var bytes: [UInt8] = []
    private var needsComma = false

    /// An object, whose members come in alphabetical order.
    mutating func object(_ members: (inout JSONText) -> Void) {
        bytes.append(UInt8(ascii: "{"))
        needsComma = false
        members(&self)
        bytes.append(UInt8(ascii: "}"))
        needsComma = true
    }

    mutating func array(_ elements: some Sequence<some JSONWritable>) {
        bytes.append(UInt8(ascii: "["))
        needsComma = false
        for element in elements {
            separate()
            element.write(to: &self)
        }
        bytes.append(UInt8(ascii: "]"))
        needsComma = true
    }

    /// A member of an object; none where there is no value.
    mutating func member<Value>(_ name: String, _ value: Value?, _ write: (inout JSONText, Value) -> Void) {
        guard let value else { return }
        separate()
        string(name)
        bytes.append(UInt8(ascii: ":"))
        write(&self, value)
        needsComma = true
    }

    mutating func member(_ name: String, _ value: String?) { member(name, value) { $0.string($1) } }
    mutating func member(_ name: String, _ value: Bool) { member(name, value) { $0.raw($1 ? "true" : "false") } }
    mutating func member(_ name: String, _ value: (some BinaryInteger)?) { member(name, value) { $0.raw("\($1)") } }
    mutating func member(_ name: String, _ value: Double?) { member(name, value) { $0.number($1) } }
    mutating func member(_ name: String, _ value: (some JSONWritable)?) { member(name, value) { $1.write(to: &$0) } }

    /// A member that is rare, or large anyway.
    mutating func member(_ name: String, encoding value: (some Encodable)?) {
        member(name, value) { text, value in
            // Numbers that JSON does not have are written as text before they come here.
            let data = try? JSONEncoder.ofAnswers.encode(value)
            text.bytes += data ?? Data("null".utf8)
        }
    }

    private mutating func separate() {
        if needsComma { bytes.append(UInt8(ascii: ",")) }
        needsComma = false
    }

    private mutating func raw(_ text: String) { bytes += text.utf8 }

    private mutating func number(_ value: Double) {
        let text = value.isFinite ? "\(value)" : "null"
        raw(text.hasSuffix(".0") ? String(text.dropLast(2)) : text)
    }

    private mutating func string(_ text: String) {
        bytes.append(UInt8(ascii: "\""))
        if text.utf8.allSatisfy({ $0 >= 0x20 && $0 != UInt8(ascii: "\"") && $0 != UInt8(ascii: "\\") }) {
            raw(text)
        } else {
            escaped(text)
        }
        bytes.append(UInt8(ascii: "\""))
    }

    private mutating func escaped(_ text: String) {
        for byte in text.utf8 {
            switch byte {
            case UInt8(ascii: "\""), UInt8(ascii: "\\"): bytes += [UInt8(ascii: "\\"), byte]
            case 0x08: raw("\\b")
            case 0x09: raw("\\t")
            case 0x0a: raw("\\n")
            case 0x0c: raw("\\f")
            case 0x0d: raw("\\r")
            case ..<0x20: raw((byte < 0x10 ? "\\u000" : "\\u00") + String(byte, radix: 16))
            default: bytes.append(byte)
            }
        }
    }
}

/// What knows how to write itself as JSON.
protocol JSONWritable: Encodable {
    func write(to text: inout JSONText)
}

extension JSONWritable {
    var json: [UInt8] {
        var text = JSONText()
        write(to: &text)
        return text.bytes
    }
}

extension JSONEncoder {
    /// One that writes as all answers are written.
    static var ofAnswers: JSONEncoder {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.withoutEscapingSlashes, .sortedKeys]
        return encoder
    }
}
#endif
