import ArgumentParser
import MicroVM

/// What a function is said to return.
enum ResultType: Sendable, Hashable {
    case value(ValueType)
    /// Pointer and length of bytes, written raw.
    case bytes
    case void

    /// The names on the command line.
    static let names = ValueType.allCases.map(\.rawValue) + ["bytes", "void"]

    init(parsing text: String) throws(ParsingError) {
        switch text {
        case "bytes": self = .bytes
        case "void": self = .void
        default:
            guard let type = ValueType(rawValue: text) else {
                let names = Self.names.joined(separator: ", ")
                throw ParsingError("“\(text.printable)” is not a type; there are \(names).")
            }
            self = .value(type)
        }
    }

    var name: String {
        switch self {
        case .value(let type): type.rawValue
        case .bytes: "bytes"
        case .void: "void"
        }
    }
}
