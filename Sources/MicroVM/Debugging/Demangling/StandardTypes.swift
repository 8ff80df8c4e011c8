/// The types of Swift's standard library that mangled names call by a letter (`KNOWN-TYPE-KIND`).
enum StandardTypes {
    static let optional = node(.enumeration, "Optional")

    static func type(_ letter: Unicode.Scalar, isConcurrency: Bool) -> DemanglingNode? {
        let groups = isConcurrency ? concurrency : library
        for (kind, types) in groups {
            if let name = types[letter] { return node(kind, name) }
        }
        return nil
    }

    private static func node(_ kind: DemanglingNode.Nominal, _ name: String) -> DemanglingNode {
        .nominal(kind, context: .module("Swift"), name: .identifier(name))
    }

    private static let library: [(DemanglingNode.Nominal, [Unicode.Scalar: String])] = [
        (
            .structure,
            [
                "A": "AutoreleasingUnsafeMutablePointer", "a": "Array", "b": "Bool", "D": "Dictionary", "d": "Double",
                "f": "Float", "h": "Set", "I": "DefaultIndices", "i": "Int", "J": "Character", "N": "ClosedRange",
                "n": "Range", "O": "ObjectIdentifier", "P": "UnsafePointer", "p": "UnsafeMutablePointer",
                "R": "UnsafeBufferPointer", "r": "UnsafeMutableBufferPointer", "S": "String", "s": "Substring",
                "u": "UInt", "V": "UnsafeRawPointer", "v": "UnsafeMutableRawPointer", "W": "UnsafeRawBufferPointer",
                "w": "UnsafeMutableRawBufferPointer",
            ]
        ),
        (.enumeration, ["q": "Optional"]),
        (
            .protocol,
            [
                "B": "BinaryFloatingPoint", "E": "Encodable", "e": "Decodable", "F": "FloatingPoint",
                "G": "RandomNumberGenerator", "H": "Hashable", "j": "Numeric", "K": "BidirectionalCollection",
                "k": "RandomAccessCollection", "L": "Comparable", "l": "Collection", "M": "MutableCollection",
                "m": "RangeReplaceableCollection", "Q": "Equatable", "T": "Sequence", "t": "IteratorProtocol",
                "U": "UnsignedInteger", "X": "RangeExpression", "x": "Strideable", "Y": "RawRepresentable",
                "y": "StringProtocol", "Z": "SignedInteger", "z": "BinaryInteger",
            ]
        ),
    ]

    private static let concurrency: [(DemanglingNode.Nominal, [Unicode.Scalar: String])] = [
        (
            .structure,
            [
                "C": "CheckedContinuation", "c": "UnsafeContinuation", "E": "CancellationError",
                "e": "UnownedSerialExecutor", "G": "TaskGroup", "g": "ThrowingTaskGroup", "J": "UnownedJob",
                "P": "TaskPriority", "S": "AsyncStream", "s": "AsyncThrowingStream", "T": "Task",
                "t": "UnsafeCurrentTask",
            ]
        ),
        (.class, ["M": "MainActor"]),
        (
            .protocol,
            [
                "A": "Actor", "F": "Executor", "f": "SerialExecutor", "h": "TaskExecutor",
                "I": "AsyncIteratorProtocol", "i": "AsyncSequence",
            ]
        ),
    ]
}
