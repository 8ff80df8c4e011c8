/// Why a value on the command line is not one.
struct ParsingError: Error, CustomStringConvertible, Equatable {
    /// A full sentence.
    var description: String

    init(_ description: String) { self.description = description }
}
