/// Declarations that are no types.
extension DemanglingParser {
    /// `F`.
    mutating func function() throws(Refusal) -> Node {
        let signature = popSignature()
        var type = try functionType(.plain)
        if let signature { type = .generic(signature, type) }
        deepen(by: 1)
        return try declaration(.function, type: type)
    }

    private mutating func declaration(_ kind: DemangledEntity.Kind, type: Node) throws(Refusal) -> Node {
        let labels = try popLabels(for: type)
        let name = try popDeclarationName()
        return .entity(DemangledEntity(kind: kind, context: try popContext(), name: name, labels: labels, type: type))
    }

    /// `v`.
    mutating func variable() throws(Refusal) -> Node {
        let declaration = try declaration(.variable, type: try popType())
        return try accessor(of: declaration)
    }

    /// `i`.
    mutating func subscriptOperation() throws(Refusal) -> Node {
        let discriminator = pop(where: \.isDiscriminator)
        let type = try popType()
        let labels = try popLabels(for: type)
        let entity = DemangledEntity(
            kind: .subscript,
            context: try popContext(),
            discriminator: discriminator,
            labels: labels,
            type: type
        )
        return try accessor(of: .entity(entity))
    }

    /// `ACCESSOR`.
    private mutating func accessor(of node: Node) throws(Refusal) -> Node {
        guard case .entity(let entity) = node else { throw Refusal() }
        switch try reader.next() {
        case "p": return node
        case "G", "g": return .accessor("getter", of: entity)
        case "M": return .accessor("modify", of: entity)
        case "W": return .accessor("didset", of: entity)
        case "b": return .accessor("borrow", of: entity)
        case "i": return .accessor("init", of: entity)
        case "m": return .accessor("materializeForSet", of: entity)
        case "r": return .accessor("read", of: entity)
        case "s": return .accessor("setter", of: entity)
        case "w": return .accessor("willset", of: entity)
        case "x": return .accessor("modify2", of: entity)
        case "y": return .accessor("read2", of: entity)
        case "z": return .accessor("mutate", of: entity)
        case "a":
            guard reader.skip("u") else { throw Refusal() }
            return .accessor("unsafeMutableAddressor", of: entity)
        case "l":
            guard reader.skip("u") else { throw Refusal() }
            return .accessor("unsafeAddressor", of: entity)
        default: throw Refusal()
        }
    }

    /// `f`.
    mutating func functionEntity() throws(Refusal) -> Node {
        switch try reader.next() {
        case "A": try unnamed(.defaultArgument, index: try reader.index())
        case "C": try initializer(.allocator)
        case "D": try unnamed(.deallocator)
        case "E": try unnamed(.variableDestroyer)
        case "F": try unnamed(.propertyWrapper("property wrapped field init accessor"))
        case "P": try unnamed(.propertyWrapper("property wrapper backing initializer"))
        case "U": try closure(.closure)
        case "W": try unnamed(.propertyWrapper("property wrapper init from projected value"))
        case "Z": try unnamed(.isolatedDeallocator)
        case "c": try initializer(.constructor)
        case "d": try unnamed(.destructor)
        case "e": try unnamed(.variableInitializer)
        case "i": try unnamed(.initialValue)
        case "u": try closure(.implicitClosure)
        default: throw Refusal()
        }
    }

    private mutating func unnamed(_ kind: DemangledEntity.Kind, index: Int = 0) throws(Refusal) -> Node {
        .entity(DemangledEntity(kind: kind, context: try popContext(), index: index))
    }

    private mutating func initializer(_ kind: DemangledEntity.Kind) throws(Refusal) -> Node {
        var discriminator = pop(where: \.isDiscriminator)
        if case .allocator = kind { discriminator = nil }
        let type = try popType()
        let labels = try popLabels(for: type)
        let context = try popContext()
        return .entity(
            DemangledEntity(kind: kind, context: context, discriminator: discriminator, labels: labels, type: type)
        )
    }

    private mutating func closure(_ kind: DemangledEntity.Kind) throws(Refusal) -> Node {
        let index = try reader.index()
        let type = try popType()
        return .entity(DemangledEntity(kind: kind, context: try popContext(), type: type, index: index))
    }
}
