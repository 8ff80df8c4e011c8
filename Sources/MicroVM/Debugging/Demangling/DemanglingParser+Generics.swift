/// Generic parameters, their signatures, and types that belong to them.
extension DemanglingParser {
    /// `GENERIC-PARAM-INDEX`.
    private mutating func genericParameter() throws(Refusal) -> Node.GenericParameter {
        if reader.skip("z") { return Node.GenericParameter(depth: 0, index: 0) }
        if reader.skip("d") {
            let depth = try reader.index() + 1
            return Node.GenericParameter(depth: depth, index: try reader.index())
        }
        return Node.GenericParameter(depth: 0, index: try reader.index() + 1)
    }

    /// The same, where it can be the `Self` of an existential type's requirements too.
    mutating func genericParameterType() throws(Refusal) -> Node {
        if reader.skip("s") { return .simpleType("Self") }
        return .simpleType(try genericParameter().name)
    }

    // MARK: - Signatures

    /// `l` and `r`.
    mutating func signature(hasCounts: Bool) throws(Refusal) -> Node {
        var signature = DemangledSignature(counts: hasCounts ? [] : [1], marker: "", requirements: [])
        if hasCounts {
            while !reader.skip("l") {
                signature.counts.append(reader.skip("z") ? 0 : try reader.index() + 1)
            }
        }
        while true {
            if case .requirement(let parts)? = pop(where: \.isRequirement) {
                signature.requirements.append(parts)
            } else if case .parameterMarker(let marker, let parameter)? = pop(
                where: { if case .parameterMarker = $0 { true } else { false } })
            {
                if parameter == Node.GenericParameter(depth: 0, index: 0) { signature.marker = marker }
            } else {
                // They are popped from the last to the first.
                signature.requirements.reverse()
                return .signature(signature)
            }
        }
    }

    /// `u`: a type with generic parameters of its own.
    mutating func popGenericType() throws(Refusal) -> Node {
        guard let signature = popSignature() else { throw Refusal() }
        return .generic(signature, try popType())
    }

    /// `R`: what is required of a generic parameter, or of a type that belongs to one.
    mutating func requirement() throws(Refusal) -> Node {
        switch reader.peek {
        case "v":
            _ = try reader.next()
            return .parameterMarker("each ", try genericParameter())
        case "V":
            _ = try reader.next()
            let parameter = try genericParameter()
            _ = try popType()
            return .parameterMarker("let ", parameter)
        case "i", "I", "j", "J":
            let form = try reader.next()
            let bit = try reader.index()
            let name =
                switch bit {
                case 0: "Swift.Copyable"
                case 1: "Swift.Escapable"
                default: "Swift.<bit \(bit)>"
                }
            let subject = try subject(form, direct: "i", member: "j", path: "J", reference: "I")
            return .requirement([.node(subject), .text(": ~" + name)])
        case "b", "B", "c", "C":
            let subject = try subject(try reader.next(), direct: "b", member: "c", path: "C", reference: "B")
            return .requirement([.node(subject), ": ", .node(try popType())])
        case "s", "S", "t", "T":
            let subject = try subject(try reader.next(), direct: "s", member: "t", path: "T", reference: "S")
            return .requirement([.node(subject), " == ", .node(try popType())])
        case "l", "L", "m", "M":
            let subject = try subject(try reader.next(), direct: "l", member: "m", path: "M", reference: "L")
            return .requirement([.node(subject), .text(": " + (try layout()))])
        case "h":
            let subject = try subject(try reader.next(), direct: "h", member: nil, path: nil, reference: nil)
            return .requirement([.node(subject), ".shape == ", .node(try popType()), ".shape"])
        case "p", "P", "Q":
            let subject = try subject(try reader.next(), direct: nil, member: "p", path: "P", reference: "Q")
            return .requirement([.node(subject), ": ", .node(try popProtocol())])
        default:
            let subject = try genericParameterType()
            return .requirement([.node(subject), ": ", .node(try popProtocol())])
        }
    }

    /// Whom a requirement is about, by the letter that says in which form it is given.
    private mutating func subject(
        _ form: Unicode.Scalar,
        direct: Unicode.Scalar?,
        member: Unicode.Scalar?,
        path: Unicode.Scalar?,
        reference: Unicode.Scalar?
    ) throws(Refusal) -> Node {
        switch form {
        case direct: return try genericParameterType()
        case member:
            let node = try popMember(of: try genericParameterType())
            remember(node)
            return node
        case path:
            let node = try popMemberPath(of: try genericParameterType())
            remember(node)
            return node
        case reference: return try popType()
        default: throw Refusal()
        }
    }

    /// `LAYOUT-CONSTRAINT`.
    private mutating func layout() throws(Refusal) -> String {
        switch try reader.next() {
        case "C": return "AnyObject"
        case "D": return "_NativeClass"
        case "N": return "_NativeRefCountedObject"
        case "R": return "_RefCountedObject"
        case "T": return "_Trivial"
        case "U": return "_UnknownLayout"
        default: throw Refusal()
        }
    }

    // MARK: - Associated types

    mutating func popMemberName() throws(Refusal) -> (name: String, ofProtocol: Node?) {
        let ofProtocol = pop(where: \.isType)
        guard ofProtocol?.isProtocol ?? true, let name = popIdentifier() else { throw Refusal() }
        return (name, ofProtocol)
    }

    /// - Parameter base: nil if it is on the stack, below.
    private mutating func popMember(of base: Node?) throws(Refusal) -> Node {
        let (name, ofProtocol) = try popMemberName()
        guard let base = base ?? pop(where: \.isType) else { throw Refusal() }
        return .member(of: base, name: name, ofProtocol: ofProtocol)
    }

    private mutating func popMemberPath(of base: Node?) throws(Refusal) -> Node {
        let path = try popList { (parser) throws(Refusal) in try parser.popMemberName() }
        guard !path.isEmpty else { throw Refusal() }
        deepen(by: path.count)
        guard var node = base ?? pop(where: \.isType) else { throw Refusal() }
        for (name, ofProtocol) in path { node = .member(of: node, name: name, ofProtocol: ofProtocol) }
        return node
    }

    /// `Q`: associated types, opaque types and packs.
    mutating func archetype() throws(Refusal) {
        let first = Node.simpleType("A")
        switch try reader.next() {
        case "a":
            guard let name = popIdentifier() else { throw Refusal() }
            try pushSubstitutable(.member(of: try popType(), name: name, ofProtocol: nil))
        case "O": try push(.opaqueResultOf(try popContext()))
        case "P": try push(.pack("Pack", try popTypes()))
        case "R":
            _ = try reader.index()
            try push(.opaqueResult)
        case "S":
            switch try reader.next() {
            case "d": try push(.pack("@direct Pack", try popTypes()))
            case "i": try push(.pack("@indirect Pack", try popTypes()))
            default: throw Refusal()
            }
        case "X": try pushSubstitutable(try popMemberPath(of: nil))
        case "Y": try pushSubstitutable(try popMemberPath(of: try genericParameterType()))
        case "Z": try pushSubstitutable(try popMemberPath(of: first))
        case "e":
            let level = try reader.index()
            try push(.attributed("/* level: \(level) */ each ", try popType()))
        case "o":
            let index = try reader.index()
            _ = try popArguments()
            let declaration = try demand(where: \.isOpaqueDeclaration)
            try pushSubstitutable(.opaqueType(declaration, index: index))
        case "p":
            _ = try popType()
            try push(.expansion(try popType()))
        case "r": try push(.opaqueResult)
        case "x": try pushSubstitutable(try popMember(of: nil))
        case "y": try pushSubstitutable(try popMember(of: try genericParameterType()))
        case "z": try pushSubstitutable(try popMember(of: first))
        default: throw Refusal()
        }
    }

    // MARK: - Arguments

    /// `bound-generic-args`: a list of types for each type and context that has parameters, the innermost first.
    mutating func popArguments() throws(Refusal) -> [[Node]] {
        while pop(where: \.isRetroactiveConformance) != nil {}
        var lists: [[Node]] = []
        while true {
            var types: [Node] = []
            while let type = pop(where: \.isType) { types.append(type) }
            types.reverse()
            lists.append(types)
            if popEmptyList() { return lists }
            guard popFirstElement() else { throw Refusal() }
        }
    }

    /// `G`.
    mutating func pushBoundGeneric() throws(Refusal) {
        let lists = try popArguments()
        let type = try demand(where: \.isNominal)
        deepen(by: 2 * lists.count)
        try pushSubstitutable(try Self.bound(type, lists[...]))
    }

    /// Gives each of the lists to the declaration that it belongs to, from the inside.
    private static func bound(_ node: Node, _ lists: ArraySlice<[Node]>) throws(Refusal) -> Node {
        guard let types = lists.first else { return node }
        let rest = node.takesArguments ? lists.dropFirst() : lists
        var node = node
        switch node {
        case .nominal(let kind, let context, let name):
            node = .nominal(kind, context: try bound(context, rest), name: name)
        case .extensionContext(let module, let type, let signature):
            return .extensionContext(module: module, type: try bound(type, lists), signature: signature)
        case .entity(var entity):
            entity.context = try bound(entity.context, rest)
            if node.takesArguments, !types.isEmpty {
                guard case .function = entity.kind else { throw Refusal() }
                entity.arguments = types
            }
            return .entity(entity)
        case .accessor(let name, var entity):
            guard types.isEmpty else { throw Refusal() }
            entity.context = try bound(entity.context, rest)
            return .accessor(name, of: entity)
        case .staticMember(let member): return .staticMember(try bound(member, lists))
        default: throw Refusal()
        }
        guard !types.isEmpty else { return node }
        guard !node.isProtocol else { throw Refusal() }
        return .boundGeneric(node, arguments: types)
    }

    // MARK: - Conformances

    /// `protocol-conformance`, as parts of a phrase.
    mutating func popConformance() throws(Refusal) -> [Part] {
        let signature = popSignature()
        guard let module = popModule() else { throw Refusal() }
        let ofProtocol = try popProtocol()
        var type = try popType()
        if let signature { type = .generic(signature, type) }
        return [.node(type), " : ", .node(ofProtocol), .text(" in " + module)]
    }

    private mutating func popAnyConformance() throws(Refusal) {
        _ = try demand(where: \.isConformance)
    }

    /// `g`: one that the type's module and the protocol's know nothing of. It is not printed.
    mutating func retroactiveConformance() throws(Refusal) {
        _ = try reader.index()
        try popAnyConformance()
        try push(.retroactiveConformance)
    }

    /// `H`: conformances in arguments, which are not printed, and records of the binary's.
    mutating func conformanceOperation() throws(Refusal) -> Node {
        switch try reader.next() {
        case "A":
            _ = try reader.index()
            _ = try popProtocol()
            _ = try popType()
            try popAnyConformance()
        case "C":
            _ = try popList { (parser) throws(Refusal) in try parser.popAnyConformance() }
            if pop(where: \.isConformance) == nil {
                guard popModule() != nil else { throw Refusal() }
                _ = try popProtocol()
            }
            _ = try popType()
        case "D":
            _ = try reader.index()
            _ = try popProtocol()
            _ = try popType()
        case "I":
            _ = try reader.index()
            _ = try popProtocol()
            try popAnyConformance()
        case "P", "p": _ = try popProtocol()
        case "F": return .attribute(["accessible function runtime record for "])
        case "c":
            return .phrase(["protocol conformance descriptor runtime record for "] + (try popConformance()))
        case "n": return phrase("nominal type descriptor runtime record for ", try popType())
        case "o": return phrase("opaque type descriptor runtime record for ", try popEntity())
        case "r": return phrase("protocol descriptor runtime record for ", try popProtocol())
        default: throw Refusal()
        }
        return .conformance
    }
}
