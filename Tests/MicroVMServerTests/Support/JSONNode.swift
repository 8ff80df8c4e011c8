#if Server
import Foundation

/// A piece of JSON or YAML, whose numbers are not mixed up with its truths.
indirect enum JSONNode: Decodable, Equatable, Sendable {
    case null, bool(Bool), integer(Int64), number(Double), string(String), array([JSONNode])
    case object([String: JSONNode])

    init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if container.decodeNil() {
            self = .null
        } else if let value = try? container.decode(Bool.self) {
            self = .bool(value)
        } else if let value = try? container.decode(Int64.self) {
            self = .integer(value)
        } else if let value = try? container.decode(Double.self) {
            self = .number(value)
        } else if let value = try? container.decode(String.self) {
            self = .string(value)
        } else if let value = try? container.decode([JSONNode].self) {
            self = .array(value)
        } else {
            self = .object(try container.decode([String: JSONNode].self))
        }
    }

    init(_ bytes: [UInt8]) throws { self = try JSONDecoder().decode(JSONNode.self, from: Data(bytes)) }

    /// What Yams makes of a document.
    init(yaml value: Any?) {
        switch value {
        case let value as Bool: self = .bool(value)
        case let value as Int: self = .integer(Int64(value))
        case let value as Double: self = .number(value)
        case let value as String: self = .string(value)
        case let value as [Any]: self = .array(value.map { JSONNode(yaml: $0) })
        case let value as [String: Any]: self = .object(value.mapValues { JSONNode(yaml: $0) })
        default: self = .null
        }
    }

    subscript(_ name: String) -> JSONNode? { if case .object(let members) = self { members[name] } else { nil } }

    subscript(_ index: Int) -> JSONNode? {
        if case .array(let elements) = self, elements.indices.contains(index) { elements[index] } else { nil }
    }

    var text: String? { if case .string(let text) = self { text } else { nil } }
    var elements: [JSONNode] { if case .array(let elements) = self { elements } else { [] } }
    var members: [String: JSONNode] { if case .object(let members) = self { members } else { [:] } }
    var isTrue: Bool? { if case .bool(let value) = self { value } else { nil } }

    var integer: Int64? { if case .integer(let value) = self { value } else { nil } }

    var number: Double? {
        switch self {
        case .integer(let value): Double(value)
        case .number(let value): value
        default: nil
        }
    }
}
#endif
