/// Types.
extension DemanglingPrinter {
    mutating func printType(_ node: Node) throws(Refusal) {
        switch node {
        case .simpleType(let name): try write(name)
        case .opaqueResult: try write("some")
        case .opaqueResultOf(let declaration):
            try write("<<opaque return type of ")
            try print(declaration)
            try write(">>")
        case .opaqueType(let declaration, let index):
            try print(declaration)
            try write(".\(index)")
        case .member(let base, let name, let ofProtocol): try printMember(base, name, ofProtocol)
        case .boundGeneric(let type, let arguments): try printBoundGeneric(type, arguments)
        case .tuple(let elements): try printElements(elements)
        case .pack(let kind, let types):
            try write(kind + "{")
            try printList(types)
            try write("}")
        case .attributed(let attribute, let type):
            try write(attribute)
            try print(type)
        case .expansion(let pattern):
            try write("repeat ")
            try print(pattern)
        case .metatype(let type, let representation, let isExistential):
            try printMetatype(type, representation, isExistential)
        case .composition(let protocols, let superclass, let isClassBound):
            try printComposition(protocols, superclass, isClassBound)
        case .constrainedExistential(let type, let requirements):
            try write("any ")
            try print(type)
            try write("<")
            try printList(requirements)
            try write(">")
        case .generic(let signature, let type):
            try print(signature)
            if !type.isAttachedToName { try write(" ") }
            try print(type)
        default: throw Refusal()
        }
    }

    mutating func printList(_ nodes: [Node], separator: String = ", ") throws(Refusal) {
        for (index, node) in nodes.enumerated() {
            if index > 0 { try write(separator) }
            try print(node)
        }
    }

    private mutating func printInParentheses(_ node: Node) throws(Refusal) {
        let isNeeded = !node.isSelfContained
        if isNeeded { try write("(") }
        try print(node)
        if isNeeded { try write(")") }
    }

    private mutating func printMember(_ base: Node, _ name: String, _ ofProtocol: Node?) throws(Refusal) {
        try print(base)
        try write(".")
        if let ofProtocol {
            try print(ofProtocol)
            try write(".")
        }
        try write(name)
    }

    private mutating func printBoundGeneric(_ type: Node, _ arguments: [Node]) throws(Refusal) {
        if hasSugar, case .nominal(let kind, .module("Swift"), .identifier(let name)) = type {
            switch (kind, name, arguments.count) {
            case (.enumeration, "Optional", 1):
                try printInParentheses(arguments[0])
                return try write("?")
            case (.structure, "Array", 1):
                try write("[")
                try print(arguments[0])
                return try write("]")
            case (.structure, "Dictionary", 2):
                try write("[")
                try print(arguments[0])
                try write(" : ")
                try print(arguments[1])
                return try write("]")
            default: break
            }
        }
        try print(type)
        try write("<")
        try printList(arguments)
        try write(">")
    }

    private mutating func printMetatype(
        _ type: Node,
        _ representation: String,
        _ isExistential: Bool
    ) throws(Refusal) {
        try write(representation)
        if isExistential {
            try print(type)
            return try write(".Type")
        }
        try printInParentheses(type)
        switch type {
        case .composition, .constrainedExistential, .metatype(_, _, isExistential: true): try write(".Protocol")
        default: try write(".Type")
        }
    }

    private mutating func printComposition(
        _ protocols: [Node],
        _ superclass: Node?,
        _ isClassBound: Bool
    ) throws(Refusal) {
        if let superclass {
            try print(superclass)
            if !protocols.isEmpty { try write(" & ") }
        } else if protocols.isEmpty {
            return try write(isClassBound ? "Swift.AnyObject" : "Any")
        }
        try printList(protocols, separator: " & ")
        if isClassBound { try write(" & Swift.AnyObject") }
    }

    // MARK: - Functions

    private mutating func printElements(_ elements: [Node.TupleElement], labels: [String?] = []) throws(Refusal) {
        try write("(")
        for (index, element) in elements.enumerated() {
            if index > 0 { try write(", ") }
            if index < labels.count { try write((labels[index] ?? "_") + ": ") }
            if let label = element.label { try write(label + ": ") }
            try print(element.type)
            if element.isVariadic { try write("...") }
        }
        try write(")")
    }

    /// - Parameter labels: as many as it has parameters, or none.
    mutating func print(_ function: DemangledFunctionType, labels: [String?] = []) throws(Refusal) {
        try write(function.convention.rawValue)
        switch function.isolation {
        case nil: break
        case .any: try write("@isolated(any) ")
        case .nonisolatedNonsending: try write("nonisolated(nonsending) ")
        case .globalActor(let actor):
            try write("@")
            try print(actor)
            try write(" ")
        }
        if function.isSendable { try write("@Sendable ") }
        if case .tuple(let elements) = function.parameters {
            try printElements(elements, labels: labels)
        } else {
            try write("(")
            try print(function.parameters)
            try write(")")
        }
        if function.isAsynchronous { try write(" async") }
        switch function.throwing {
        case .never: break
        case .any: try write(" throws")
        case .typed(let type):
            try write(" throws(")
            try print(type)
            try write(")")
        }
        try write(function.isResultSending ? " -> sending " : " -> ")
        try print(function.result)
    }

    mutating func print(_ function: DemangledImplementationType) throws(Refusal) {
        try write(function.attributes)
        if let signature = function.signature {
            try print(signature)
            try write(" ")
        }
        if let signature = function.pattern?.signature {
            try write("@substituted ")
            try print(signature)
            try write(" ")
        }
        try printValues(function.parameters)
        try write(function.isResultSending ? " -> sending " : " -> ")
        try printValues(function.results)
        for substitution in [function.pattern, function.invocation] {
            guard let substitution else { continue }
            try write(" for <")
            try printList(substitution.types, separator: "")
            try write(">")
        }
    }

    private mutating func printValues(_ values: [DemangledImplementationType.Value]) throws(Refusal) {
        try write("(")
        for (index, value) in values.enumerated() {
            if index > 0 { try write(", ") }
            try write(value.attributes)
            try print(value.type)
        }
        try write(")")
    }
}
