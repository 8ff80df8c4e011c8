/// Types that are neither nominal nor belong to generic parameters.
extension DemanglingParser {
    /// `B`: types that the compiler knows and the language does not.
    mutating func builtin() throws(Refusal) -> Node {
        let name: String
        switch try reader.next() {
        case "A": name = "ImplicitActor"
        case "B": name = "UnsafeValueBuffer"
        case "D": name = "DefaultActorStorage"
        case "I": name = "IntLiteral"
        case "O": name = "UnknownObject"
        case "P": name = "PackIndex"
        case "T": name = "TheTupleType"
        case "V":
            let element = try popType()
            return .boundGeneric(.simpleType("Builtin.FixedArray"), arguments: [try popType(), element])
        case "b": name = "BridgeObject"
        case "c": name = "RawUnsafeContinuation"
        case "d": name = "NonDefaultDistributedActorStorage"
        case "e": name = "Executor"
        case "f": name = "FPIEEE\(try bits())"
        case "i": name = "Int\(try bits())"
        case "j": name = "Job"
        case "o": name = "NativeObject"
        case "p": name = "RawPointer"
        case "t": name = "SILToken"
        case "v":
            let count = try bits()
            guard case .simpleType(let element) = try popType(), element.hasPrefix("Builtin.") else { throw Refusal() }
            name = "Vec\(count)x" + element.dropFirst("Builtin.".count)
        case "w": name = "Word"
        default: throw Refusal()
        }
        return .simpleType("Builtin." + name)
    }

    private mutating func bits() throws(Refusal) -> Int {
        let count = try reader.index() - 1
        guard 1...4096 ~= count else { throw Refusal() }
        return count
    }

    /// `$`: an integer as a generic argument.
    mutating func integer() throws(Refusal) -> Node {
        let sign = reader.skip("n") ? "-" : ""
        return .simpleType(sign + String(try reader.index()))
    }

    /// `t`.
    mutating func popTuple() throws(Refusal) -> Node {
        .tuple(
            try popList { (parser) throws(Refusal) in
                let isVariadic = parser.popMark(.variadic)
                let label = parser.popIdentifier()
                return Node.TupleElement(label: label, type: try parser.popType(), isVariadic: isVariadic)
            }
        )
    }

    /// `X`.
    mutating func specialType() throws(Refusal) {
        switch try reader.next() {
        case "A", "K": try push(try functionType(.autoclosure))
        case "B": try push(try functionType(.block))
        case "C": try push(try functionType(.cFunction))
        case "D":
            _ = try popType()
            try push(.simpleType("Self"))
        case "E": try push(try functionType(.plain))
        case "L": try push(try functionType(.escapingBlock))
        case "M": try push(try metatype(isExistential: false))
        case "P": try push(try popConstrainedExistential())
        case "b": try push(.attributed("@box ", try popType()))
        case "c":
            let superclass = try popType()
            try push(.composition(try popProtocols(), superclass: superclass, isClassBound: false))
        case "e": try push(.simpleType("<ERROR TYPE>"))
        case "f": try push(try functionType(.thin))
        case "l": try push(.composition(try popProtocols(), superclass: nil, isClassBound: true))
        case "m": try push(try metatype(isExistential: true))
        case "o": try push(.attributed("unowned ", try popType()))
        case "p": try push(.metatype(try popType(), representation: "", isExistential: true))
        case "u": try push(.attributed("unowned(unsafe) ", try popType()))
        case "w": try push(.attributed("weak ", try popType()))
        case "Y": try pushNominal(.other)
        default: throw Refusal()
        }
    }

    private mutating func metatype(isExistential: Bool) throws(Refusal) -> Node {
        let representation: String
        switch try reader.next() {
        case "T": representation = "@thick "
        case "o": representation = "@objc_metatype "
        case "t": representation = "@thin "
        default: throw Refusal()
        }
        return .metatype(try popType(), representation: representation, isExistential: isExistential)
    }

    private mutating func popConstrainedExistential() throws(Refusal) -> Node {
        let requirements = try popList { (parser) throws(Refusal) in
            try parser.demand(where: \.isRequirement)
        }
        guard !requirements.isEmpty else { throw Refusal() }
        let type = try demand(where: \.isComposition)
        return .constrainedExistential(type, requirements: requirements)
    }

    /// `Y`: what a function's type, or a parameter, has besides.
    mutating func typeAnnotation() throws(Refusal) -> Node {
        switch try reader.next() {
        case "A": .mark(.isolatedAny)
        case "C": .mark(.nonisolatedNonsending)
        case "K": .typedThrows(try popType())
        case "T": .mark(.sendingResult)
        case "a": .mark(.asynchronous)
        case "b": .mark(.sendable)
        case "c": .globalActor(try popType())
        case "g": .attributed("@const ", try popType())
        case "i": .attributed("isolated ", try popType())
        case "k": .attributed("@noDerivative ", try popType())
        case "t": .attributed("_const ", try popType())
        case "u": .attributed("sending ", try popType())
        default: throw Refusal()
        }
    }

    // MARK: - Functions

    /// `function-signature`.
    mutating func functionType(_ convention: DemangledFunctionType.Convention) throws(Refusal) -> Node {
        let isResultSending = popMark(.sendingResult)
        var isolation: DemangledFunctionType.Isolation?
        if case .globalActor(let actor)? = pop(where: { if case .globalActor = $0 { true } else { false } }) {
            isolation = .globalActor(actor)
        } else if popMark(.isolatedAny) {
            isolation = .any
        } else if popMark(.nonisolatedNonsending) {
            isolation = .nonisolatedNonsending
        }
        var throwing = DemangledFunctionType.Throwing.never
        if case .typedThrows(let type)? = pop(where: { if case .typedThrows = $0 { true } else { false } }) {
            throwing = .typed(type)
        } else if popMark(.throwing) {
            throwing = .any
        }
        let isSendable = popMark(.sendable)
        let isAsynchronous = popMark(.asynchronous)
        let parameters = try popEmptyList() ? .tuple([]) : popType()
        return .function(
            DemangledFunctionType(
                convention: convention,
                parameters: parameters,
                result: try popEmptyList() ? .tuple([]) : popType(),
                isolation: isolation,
                isSendable: isSendable,
                isAsynchronous: isAsynchronous,
                throwing: throwing,
                isResultSending: isResultSending
            )
        )
    }

    /// `label-list`, for a declaration of this type; nil if it is not a function's.
    mutating func popLabels(for type: Node) throws(Refusal) -> [String?]? {
        var type = type
        if case .generic(_, let inner) = type { type = inner }
        guard case .function(let function) = type else { return nil }
        if popEmptyList() { return [] }
        guard function.convention == .plain, function.parameterCount > 0 else { return nil }
        var labels: [String?] = []
        for _ in 0..<function.parameterCount {
            if let label = popIdentifier() {
                labels.append(label)
            } else if popFirstElement() {
                labels.append(nil)
            } else {
                throw Refusal()
            }
        }
        labels.reverse()
        return labels.contains { $0 != nil } ? labels : []
    }
}
