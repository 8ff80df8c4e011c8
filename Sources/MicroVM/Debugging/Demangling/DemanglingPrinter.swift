/// Writes a name's parts as they would be in source code.
///
/// Parts can be in several places, and those of such parts in even more: what is written is counted, and so is how
/// often something was.
struct DemanglingPrinter {
    typealias Node = DemanglingNode
    typealias Refusal = DemanglingRefusal

    /// More than a text of the greatest length takes.
    private static let visitMaximum = 4 * Demangling.resultMaximum
    private(set) var text = ""
    private var visits = 0
    /// Whether `[A]` stands for `Array<A>`, and so on.
    let hasSugar: Bool

    init(hasSugar: Bool) { self.hasSugar = hasSugar }

    mutating func write(_ string: String) throws(Refusal) {
        text += string
        guard text.utf8.count <= Demangling.resultMaximum else { throw Refusal() }
    }

    mutating func print(_ parts: [DemanglingPart]) throws(Refusal) {
        for part in parts {
            switch part {
            case .text(let text): try write(text)
            case .node(let node): try print(node)
            }
        }
    }

    mutating func print(_ node: Node) throws(Refusal) {
        if let context = try print(node, asContext: false) { try print(context) }
    }

    /// - Parameter asContext: whether a dot and a name is to follow.
    /// - Returns: what could not be printed there, and is to be behind the name, after `in`.
    mutating func print(_ node: Node, asContext: Bool) throws(Refusal) -> Node? {
        visits += 1
        guard visits <= Self.visitMaximum else { throw Refusal() }
        switch node {
        case .nominal, .entity, .accessor, .extensionContext, .staticMember, .module:
            return try printDeclaration(node, asContext: asContext)
        case .identifier, .operatorName, .localName, .privateName, .relatedName: try printName(node)
        case .function(let function): try print(function)
        case .implementation(let function): try print(function)
        case .signature(let signature): try print(signature)
        case .phrase(let parts), .attribute(let parts), .requirement(let parts): try print(parts)
        default: try printType(node)
        }
        return nil
    }

    private mutating func printName(_ node: Node) throws(Refusal) {
        switch node {
        case .identifier(let name), .operatorName(let name): try write(name)
        case .localName(let name, let index):
            try print(name)
            try write(" #\(index + 1)")
        case .privateName(let name, let discriminator):
            try write("(")
            if let name {
                try print(name)
                try write(" ")
            }
            try write("in \(discriminator))")
        case .relatedName(let relation, let name):
            try write("related decl '\(relation)' for ")
            try print(name)
        default: throw Refusal()
        }
    }

    mutating func print(_ signature: DemangledSignature) throws(Refusal) {
        try write("<")
        for (depth, count) in signature.counts.enumerated() {
            if depth > 0 { try write("><") }
            for index in 0..<count {
                if index > 0 { try write(", ") }
                // This many are not needed.
                guard index < 128 else {
                    try write("...")
                    break
                }
                let parameter = Node.GenericParameter(depth: depth, index: index)
                if depth == 0, index == 0 { try write(signature.marker) }
                try write(parameter.name)
            }
        }
        for (index, requirement) in signature.requirements.enumerated() {
            try write(index == 0 ? " where " : ", ")
            try print(requirement)
        }
        try write(">")
    }
}
