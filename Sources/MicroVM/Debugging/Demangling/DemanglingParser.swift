/// Reads a mangled name: a list of operations, each of which takes what it is about from a stack, and leaves its result
/// there.
struct DemanglingParser {
    typealias Node = DemanglingNode
    typealias Part = DemanglingPart
    typealias Refusal = DemanglingRefusal

    struct Element {
        var node: DemanglingNode
        /// How many operations it has come from, one on top of the other.
        var depth: Int
    }

    /// More than a name has without repetitions.
    private static let stackMaximum = Demangling.lengthMaximum

    var reader: DemanglingReader
    let nesting: Int
    private var stack: [Element] = []
    private var substitutions: [Element] = []
    /// Parts of earlier identifiers that later ones refer to.
    var words: [String] = []
    /// The greatest depth of all that the operation under way has taken.
    private var depth = 0

    init(_ mangled: some Sequence<UInt8>, nesting: Int) {
        reader = DemanglingReader(mangled)
        self.nesting = nesting
    }

    /// What the whole name is about.
    mutating func symbol() throws(Refusal) -> Node {
        var suffix: [Part] = []
        while let character = reader.peek {
            if character == "." {
                // The compiler's back end has added something.
                suffix = [.text(" with unmangled suffix \"\(reader.rest())\"")]
            } else {
                depth = 0
                try operation(try reader.next())
            }
        }
        var parts: [Part] = []
        while case .attribute(let attribute)? = pop(where: \.isAttribute) { parts += attribute }
        let subject = try pop()
        guard stack.isEmpty, subject.isSubject else { throw Refusal() }
        return .phrase(parts + [.node(subject)] + suffix)
    }

    private mutating func operation(_ character: Unicode.Scalar) throws(Refusal) {
        switch character {
        case "A": try substitution()
        case "B": try push(try builtin())
        case "C": try pushNominal(.class)
        case "D": try push(phrase("", try popType()))
        case "E": try push(try extensionContext())
        case "F": try push(try function())
        case "G": try pushBoundGeneric()
        case "H": try push(try conformanceOperation())
        case "I": try push(try implementationType())
        case "K": try push(.mark(.throwing))
        case "L": try push(try discriminatedName())
        case "M": try push(try metadata())
        case "N": try push(phrase("type metadata for ", try popType()))
        case "O": try pushNominal(.enumeration)
        case "P": try pushNominal(.protocol)
        case "Q": try archetype()
        case "R": try push(try requirement())
        case "S": try standardSubstitution()
        case "T": try push(try thunkOrSpecialization())
        case "V": try pushNominal(.structure)
        case "W": try push(try witness())
        case "X": try specialType()
        case "Y": try push(try typeAnnotation())
        case "Z": try push(.staticMember(try popEntity()))
        case "a": try pushNominal(.alias)
        case "c": try push(try functionType(.plain))
        case "d": try push(.mark(.variadic))
        case "f": try push(try functionEntity())
        case "g": try retroactiveConformance()
        case "h": try push(.attributed("__shared ", try popType()))
        case "i": try push(try subscriptOperation())
        case "l": try push(try signature(hasCounts: false))
        case "m": try push(.metatype(try popType(), representation: "", isExistential: false))
        case "n": try push(.attributed("__owned ", try popType()))
        case "o": try push(try operatorName())
        case "p": try push(.composition(try popProtocols(), superclass: nil, isClassBound: false))
        case "q": try push(try genericParameterType())
        case "r": try push(try signature(hasCounts: true))
        case "s": try push(.module("Swift"))
        case "t": try push(try popTuple())
        case "u": try push(try popGenericType())
        case "v": try push(try variable())
        case "w": try push(try valueWitness())
        case "x": try push(.simpleType("A"))
        case "y": try push(.emptyList)
        case "z": try push(.attributed("inout ", try popType()))
        case "_": try push(.firstElement)
        case "$": try push(try integer())
        case "0"..."9": try pushIdentifier(character)
        default: throw Refusal()
        }
    }

    // MARK: - The stack

    mutating func push(_ node: Node) throws(Refusal) { try push(Element(node: node, depth: depth + 1)) }

    private mutating func push(_ element: Element) throws(Refusal) {
        guard stack.count < Self.stackMaximum, element.depth <= Demangling.depthMaximum else { throw Refusal() }
        stack.append(element)
    }

    /// To be called when more than one node is put around another.
    mutating func deepen(by count: Int) { depth += count }

    mutating func pop() throws(Refusal) -> Node {
        guard let element = stack.popLast() else { throw Refusal() }
        depth = max(depth, element.depth)
        return element.node
    }

    /// The topmost, if it is of this kind; else it stays.
    mutating func pop(where isWanted: (Node) -> Bool) -> Node? {
        guard let element = stack.last, isWanted(element.node) else { return nil }
        stack.removeLast()
        depth = max(depth, element.depth)
        return element.node
    }

    mutating func demand(where isWanted: (Node) -> Bool) throws(Refusal) -> Node {
        guard let node = pop(where: isWanted) else { throw Refusal() }
        return node
    }

    mutating func popEmptyList() -> Bool {
        pop(where: \.isEmptyList) != nil
    }

    mutating func popFirstElement() -> Bool {
        pop(where: \.isFirstElement) != nil
    }

    mutating func popMark(_ mark: Node.Mark) -> Bool {
        pop { if case .mark(mark) = $0 { true } else { false } } != nil
    }

    mutating func popType() throws(Refusal) -> Node { try demand(where: \.isType) }

    mutating func popContext() throws(Refusal) -> Node {
        if let module = popModule() { return .module(module) }
        return try demand(where: \.isContext)
    }

    /// A declaration. A type is one too, where the compiler says so.
    mutating func popEntity() throws(Refusal) -> Node { try demand { $0.isType || $0.isContext } }

    mutating func popModule() -> String? {
        switch stack.last?.node {
        case .module(let name), .identifier(let name):
            stack.removeLast()
            return name
        default: return nil
        }
    }

    mutating func popIdentifier() -> String? {
        guard case .identifier(let name)? = stack.last?.node else { return nil }
        stack.removeLast()
        return name
    }

    mutating func popDeclarationName() throws(Refusal) -> Node { try demand(where: \.isDeclarationName) }

    mutating func popProtocol() throws(Refusal) -> Node {
        if let type = pop(where: \.isType) {
            guard type.isProtocol else { throw Refusal() }
            return type
        }
        let name = try popDeclarationName()
        return .nominal(.protocol, context: try popContext(), name: name)
    }

    /// Where it has to be a type already.
    mutating func popProtocolType() throws(Refusal) -> Node { try demand(where: \.isProtocol) }

    mutating func popSignature() -> DemangledSignature? {
        guard case .signature(let signature)? = stack.last?.node, let element = stack.popLast() else { return nil }
        depth = max(depth, element.depth)
        return signature
    }

    /// `type-list`, and others like it: an empty list, or elements, of which the first is marked.
    mutating func popList<Value>(
        _ value: (inout DemanglingParser) throws(Refusal) -> Value
    ) throws(Refusal) -> [Value] {
        var values: [Value] = []
        if popEmptyList() { return values }
        var isFirst = false
        while !isFirst {
            isFirst = popFirstElement()
            values.append(try value(&self))
        }
        values.reverse()
        return values
    }

    mutating func popTypes() throws(Refusal) -> [Node] {
        try popList { (parser) throws(Refusal) in try parser.popType() }
    }

    mutating func popProtocols() throws(Refusal) -> [Node] {
        try popList { (parser) throws(Refusal) in try parser.popProtocol() }
    }

    // MARK: - Substitutions

    /// Makes a node known to later references, and leaves it on the stack.
    mutating func pushSubstitutable(_ node: Node) throws(Refusal) {
        substitutions.append(Element(node: node, depth: depth + 1))
        try push(node)
    }

    /// The same for one that is part of what goes on the stack.
    mutating func remember(_ node: Node) { substitutions.append(Element(node: node, depth: depth + 1)) }

    /// `A`: what was there before, by its number. Several can be in one.
    private mutating func substitution() throws(Refusal) {
        while true {
            let count = reader.isAtDigit ? try reader.natural() : nil
            let character = try reader.next()
            switch character {
            case "_":
                let index = 26 + (count.map { $0 + 1 } ?? 0)
                try pushSubstitution(at: index, count: 1)
                return
            case "a"..."z": try pushSubstitution(at: Int(character.value - ("a" as Unicode.Scalar).value), count: count)
            case "A"..."Z":
                try pushSubstitution(at: Int(character.value - ("A" as Unicode.Scalar).value), count: count)
                return
            default: throw Refusal()
            }
        }
    }

    private mutating func pushSubstitution(at index: Int, count: Int?) throws(Refusal) {
        guard index < substitutions.count else { throw Refusal() }
        for _ in 0..<max(count ?? 1, 1) { try push(substitutions[index]) }
    }
}
