/// Declarations and where they are: `module.Type.function(label: Type) -> Result`.
extension DemanglingPrinter {
    mutating func printDeclaration(_ node: Node, asContext: Bool) throws(Refusal) -> Node? {
        switch node {
        case .module(let name): try write(name)
        case .nominal(_, let context, let name):
            return try printNominal(node, context, name, asContext: asContext)
        case .extensionContext(let module, let type, let signature):
            try write("(extension in \(module)):")
            try print(type)
            if let signature { try print(signature) }
        case .staticMember(let member):
            try write("static ")
            try print(member)
        case .entity(let entity): return try print(entity, accessor: nil, asContext: asContext)
        case .accessor(let name, let entity): return try print(entity, accessor: name, asContext: asContext)
        default: throw Refusal()
        }
        return nil
    }

    private mutating func printNominal(
        _ node: Node,
        _ context: Node,
        _ name: Node,
        asContext: Bool
    ) throws(Refusal) -> Node? {
        var rest: Node?
        if name.isLocalName {
            // Its name has a space, and does not go well with dots.
            if asContext { return node }
            rest = context
        } else {
            rest = try printPrefix(context)
        }
        try print(name)
        if !asContext, let context = rest {
            try write(" in ")
            try print(context)
            rest = nil
        }
        return rest
    }

    /// A context with a dot behind, if it can be there.
    private mutating func printPrefix(_ context: Node) throws(Refusal) -> Node? {
        let length = text.utf8.count
        let rest = try print(context, asContext: true)
        if text.utf8.count != length { try write(".") }
        return rest
    }

    private mutating func print(
        _ entity: DemangledEntity,
        accessor: String?,
        asContext: Bool
    ) throws(Refusal) -> Node? {
        let title = entity.title
        let hasSpace = title?.contains(" ") ?? false || entity.name?.isLocalName ?? false
        // With a type behind it, it cannot stand before a dot.
        if asContext, entity.type != nil || hasSpace { return .entity(entity) }
        var rest: Node?
        if hasSpace {
            rest = entity.context
        } else {
            rest = try printPrefix(entity.context)
        }
        if hasSpace, let accessor { try write(accessor + " of ") }
        if let name = entity.name { try print(name) }
        if let discriminator = entity.discriminator, accessor == nil, title != "subscript" {
            try print(discriminator)
            try write(".")
        }
        if let title { try write(title) }
        if !hasSpace, let accessor { try write("." + accessor) }
        if let type = entity.type {
            try printType(type, of: entity, isBehindColon: accessor != nil || entity.isVariable, hasSpace: hasSpace)
        }
        if !asContext, let context = rest {
            try write(entity.preposition)
            try print(context)
            rest = nil
        }
        return rest
    }

    private mutating func printType(
        _ type: Node,
        of entity: DemangledEntity,
        isBehindColon: Bool,
        hasSpace: Bool
    ) throws(Refusal) {
        var inner = type
        if case .generic(_, let type) = inner { inner = type }
        var isFunction = false
        if case .function(let function) = inner { isFunction = function.isCallable }
        if isBehindColon || !isFunction {
            try write(" : ")
        } else if hasSpace || !type.isAttachedToName {
            try write(" ")
        }
        guard case .function(let function) = inner, entity.labels != nil || !entity.arguments.isEmpty
        else { return try print(type) }
        if !entity.arguments.isEmpty {
            try write("<")
            try printList(entity.arguments)
            try write(">")
        } else if case .generic(let signature, _) = type {
            try print(signature)
        }
        try print(function, labels: entity.labels ?? [])
    }
}
