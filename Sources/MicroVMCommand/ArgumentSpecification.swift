import MicroVM

/// One argument of the guest function as it is written on the command line: `TYPE:VALUE`, `file:PATH` or `stdin:`.
enum ArgumentSpecification: Sendable {
    case value(any GuestValue)
    /// The bytes of a file.
    case file(String)
    /// The bytes of standard input.
    case standardInput

    init(parsing text: String) throws(ParsingError) {
        guard let colon = text.firstIndex(of: ":") else {
            throw ParsingError("“\(text.printable)” has no type; write TYPE:VALUE, such as i64:\(text.printable).")
        }
        let type = String(text[..<colon])
        let value = String(text[text.index(after: colon)...])
        switch type {
        case "file":
            guard !value.isEmpty else { throw ParsingError("file: needs a path behind it.") }
            self = .file(value)
        case "stdin":
            guard value.isEmpty else {
                throw ParsingError("stdin: has nothing behind it; write file:PATH to read a file.")
            }
            self = .standardInput
        default:
            guard let type = ValueType(rawValue: type) else {
                throw ParsingError(
                    "“\(type.printable)” is not a type; there are \(ValueType.names), and file:PATH and stdin:."
                )
            }
            self = .value(try type.parse(value))
        }
    }

    var isStandardInput: Bool {
        if case .standardInput = self { true } else { false }
    }
}
