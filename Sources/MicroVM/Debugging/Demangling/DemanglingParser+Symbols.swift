/// What a compiler makes for declarations: their metadata, tables and thunks.
extension DemanglingParser {
    func phrase(_ text: String, _ node: Node) -> Node { .phrase([.text(text), .node(node)]) }

    /// `M`.
    mutating func metadata() throws(Refusal) -> Node {
        switch try reader.next() {
        case "A": .phrase(["reflection metadata associated type descriptor "] + (try popConformance()))
        case "B": phrase("reflection metadata builtin descriptor ", try popType())
        case "C": phrase("reflection metadata superclass descriptor ", try demand(where: \.isNominal))
        case "D": phrase("demangling cache variable for type metadata for ", try popType())
        case "F": phrase("reflection metadata field descriptor ", try popType())
        case "I": phrase("type metadata instantiation cache for ", try popType())
        case "K": phrase("metadata instantiation cache for ", try demand(where: \.isSubject))
        case "L": phrase("lazy cache variable for type metadata for ", try popType())
        case "M": phrase("specialized generic metaclass for ", try popType())
        case "N": phrase("noncanonical specialized generic type metadata for ", try popType())
        case "P": phrase("generic type metadata pattern for ", try popType())
        case "Q": phrase("opaque type descriptor for ", try popEntity())
        case "S": phrase("protocol self-conformance descriptor for ", try popProtocol())
        case "U": phrase("ObjC metadata update function for ", try popType())
        case "V": phrase("property descriptor for ", try popEntity())
        case "X": try contextDescriptor()
        case "a": phrase("type metadata accessor for ", try popType())
        case "b": phrase("canonical specialized generic type metadata accessor for ", try popType())
        case "c": .phrase(["protocol conformance descriptor for "] + (try popConformance()))
        case "f": phrase("full type metadata for ", try popType())
        case "i": phrase("type metadata instantiation function for ", try popType())
        case "l": phrase("type metadata singleton initialization cache for ", try popType())
        case "m": phrase("metaclass for ", try popType())
        case "n": phrase("nominal type descriptor for ", try popType())
        case "o": phrase("class metadata base offset for ", try popType())
        case "p": phrase("protocol descriptor for ", try popProtocol())
        case "r": phrase("type metadata completion function for ", try popType())
        case "s": phrase("ObjC resilient class stub for ", try popType())
        case "t": phrase("full ObjC resilient class stub for ", try popType())
        case "u": phrase("method lookup function for ", try popType())
        case "z": phrase("flag for loading of canonical specialized generic type metadata for ", try popType())
        default: throw Refusal()
        }
    }

    private mutating func contextDescriptor() throws(Refusal) -> Node {
        switch try reader.next() {
        case "E": phrase("extension descriptor ", try popContext())
        case "M": phrase("module descriptor ", try popContext())
        case "X": phrase("anonymous descriptor ", try popContext())
        default: throw Refusal()
        }
    }

    /// `w`: a function of a type's that the runtime calls to handle values.
    mutating func valueWitness() throws(Refusal) -> Node {
        let names: [[Unicode.Scalar]: String] = [
            ["a", "l"]: "allocateBuffer", ["c", "a"]: "assignWithCopy", ["t", "a"]: "assignWithTake",
            ["d", "e"]: "deallocateBuffer", ["x", "x"]: "destroy", ["X", "X"]: "destroyBuffer",
            ["X", "x"]: "destroyArray", ["C", "P"]: "initializeBufferWithCopyOfBuffer",
            ["C", "p"]: "initializeBufferWithCopy", ["c", "p"]: "initializeWithCopy",
            ["T", "K"]: "initializeBufferWithTakeOfBuffer", ["T", "k"]: "initializeBufferWithTake",
            ["t", "k"]: "initializeWithTake", ["p", "r"]: "projectBuffer", ["x", "s"]: "storeExtraInhabitant",
            ["x", "g"]: "getExtraInhabitantIndex", ["C", "c"]: "initializeArrayWithCopy",
            ["T", "t"]: "initializeArrayWithTakeFrontToBack", ["t", "T"]: "initializeArrayWithTakeBackToFront",
            ["u", "g"]: "getEnumTag", ["u", "p"]: "destructiveProjectEnumData",
            ["u", "i"]: "destructiveInjectEnumTag", ["e", "t"]: "getEnumTagSinglePayload",
            ["s", "t"]: "storeEnumTagSinglePayload",
        ]
        guard let name = names[[try reader.next(), try reader.next()]] else { throw Refusal() }
        return phrase(name + " value witness for ", try popType())
    }

    /// `W`.
    mutating func witness() throws(Refusal) -> Node {
        switch try reader.next() {
        case "C": return phrase("enum case for ", try popEntity())
        case "G": return .phrase(["generic protocol witness table for "] + (try popConformance()))
        case "I":
            return .phrase(["instantiation function for generic protocol witness table for "] + (try popConformance()))
        case "L": return try lazyWitnessTable("cache variable")
        case "O": return try outlinedOperation()
        case "P": return .phrase(["protocol witness table for "] + (try popConformance()))
        case "S": return phrase("protocol self-conformance witness table for ", try popProtocol())
        case "T":
            let ofProtocol = try popProtocolType()
            let path = try popMemberPathParts()
            return .phrase(
                ["associated type witness table accessor for "] + path + [" : ", .node(ofProtocol), " in "]
                    + (try popConformance())
            )
        case "V": return phrase("value witness table for ", try popType())
        case "Z": return try initialization("function")
        case "a": return .phrase(["protocol witness table accessor for "] + (try popConformance()))
        case "b":
            let ofProtocol = try popProtocolType()
            return .phrase(
                ["base witness table accessor for ", .node(ofProtocol), " in "] + (try popConformance())
            )
        case "l": return try lazyWitnessTable("accessor")
        case "p": return .phrase(["protocol witness table pattern for "] + (try popConformance()))
        case "r": return .phrase(["resilient protocol witness table for "] + (try popConformance()))
        case "t":
            guard let name = popIdentifier() else { throw Refusal() }
            return .phrase([.text("associated type metadata accessor for \(name) in ")] + (try popConformance()))
        case "v":
            let directness: String
            switch try reader.next() {
            case "d": directness = "direct"
            case "i": directness = "indirect"
            default: throw Refusal()
            }
            return phrase(directness + " field offset for ", try popEntity())
        case "z": return try initialization("token")
        default: throw Refusal()
        }
    }

    private mutating func lazyWitnessTable(_ what: String) throws(Refusal) -> Node {
        let conformance = try popConformance()
        return .phrase(
            [.text("lazy protocol witness table \(what) for type "), .node(try popType()), " and conformance "]
                + conformance
        )
    }

    /// Of variables that have one initializer together.
    private mutating func initialization(_ what: String) throws(Refusal) -> Node {
        var names: [Part] = []
        while popFirstElement() { names.insert(contentsOf: [.node(try popDeclarationName()), ", "], at: 0) }
        names = Array(names.dropLast())
        _ = try popContext()
        guard !names.isEmpty else { throw Refusal() }
        let isOne = names.count == 1
        return .phrase(
            [.text("one-time initialization \(what) for "), isOne ? "" : "("] + names + [isOne ? "" : ")"]
        )
    }

    private mutating func outlinedOperation() throws(Refusal) -> Node {
        let what: String
        let operation = try reader.next()
        let isSigned = operation == "y" || operation == "e"
        switch operation {
        case "B", "b": what = "init with take of "
        case "C", "c": what = "init with copy of "
        case "D", "d": what = "assign with take of "
        case "F", "f": what = "assign with copy of "
        case "H", "h": what = "destroy of "
        case "e": what = "consume of "
        case "g": what = "enum get tag of "
        case "i":
            what = "enum tag store of "
            _ = try reader.index()
        case "j":
            what = "enum project data for load of "
            _ = try reader.index()
        case "r": what = "retain of "
        case "s": what = "release of "
        case "y": what = "copy of "
        default: throw Refusal()
        }
        let signature = popSignature()
        var parts: [Part] = [.text("outlined " + what), .node(try popType())]
        // The others have it too, but it is not written there.
        if let signature, isSigned { parts.append(.node(.signature(signature))) }
        return .phrase(parts)
    }

    // MARK: - Thunks

    /// `T`, but for specializations.
    mutating func thunkOrSpecialization() throws(Refusal) -> Node {
        let character = try reader.next()
        switch character {
        case "A": return .attribute(["partial apply forwarder for "])
        case "D": return .attribute(["dynamic "])
        case "E": return .attribute(["distributed thunk "])
        case "F": return .attribute(["distributed accessor for "])
        case "I": return .attribute(["dynamically replaceable thunk for "])
        case "K": return try keyPath("getter")
        case "L": return phrase("protocol requirements base descriptor for ", try popProtocol())
        case "N":
            let ofProtocol = try popProtocol()
            return .phrase(
                ["default associated conformance accessor for "] + (try associatedConformance()) + [
                    ": ", .node(ofProtocol),
                ]
            )
        case "O": return .attribute(["@nonobjc "])
        case "Q": return .attribute([.text("(\(try reader.index())) await resume partial function for ")])
        case "R": return try reabstractionThunk("thunk helper ")
        case "S": return phrase("protocol self-conformance witness for ", try popEntity())
        case "V":
            let base = try popEntity()
            let derived = try popEntity()
            return .phrase(["vtable thunk for ", .node(base), " dispatching to ", .node(derived)])
        case "W":
            let entity = try popEntity()
            return .phrase(["protocol witness for ", .node(entity), " in conformance "] + (try popConformance()))
        case "X": return .attribute(["dynamically replaceable variable for "])
        case "Y": return .attribute([.text("(\(try reader.index())) suspend resume partial function for ")])
        case "b":
            let ofProtocol = try popProtocol()
            return .phrase(["base conformance descriptor for ", .node(try popProtocolType()), ": ", .node(ofProtocol)])
        case "c": return phrase("curry thunk of ", try popEntity())
        case "d": return .attribute(["super "])
        case "j": return phrase("dispatch thunk of ", try popEntity())
        case "k": return try keyPath("setter")
        case "l":
            let (name, ofProtocol) = try popMemberName()
            guard let ofProtocol else { throw Refusal() }
            return .phrase(["associated type descriptor for ", .node(ofProtocol), .text("." + name)])
        case "m": return .attribute(["merged "])
        case "n":
            let ofProtocol = try popProtocol()
            return .phrase(
                ["associated conformance descriptor for "] + (try associatedConformance()) + [
                    ": ", .node(ofProtocol),
                ]
            )
        case "o": return .attribute(["@objc "])
        case "q": return phrase("method descriptor for ", try popEntity())
        case "r": return try reabstractionThunk("thunk ")
        case "u": return .attribute(["async function pointer to "])
        case "v":
            let index = try reader.index()
            return .attribute([.text("outlined \(reader.skip("r") ? "read-only object" : "variable") #\(index) of ")])
        case "w":
            switch try reader.next() {
            case "B": return .attribute(["back deployment fallback for "])
            case "S": return .attribute(["#_hasSymbol query for "])
            case "b": return .attribute(["back deployment thunk for "])
            case "c": return .attribute(["coro function pointer to "])
            case "d": return .attribute(["default override of "])
            default: throw Refusal()
            }
        case "x": return .attribute(["dynamically replaceable key for "])
        default: return try specialization(character)
        }
    }

    /// From one way to pass the same values to another.
    private mutating func reabstractionThunk(_ what: String) throws(Refusal) -> Node {
        let signature = popSignature()
        let target = try popType()
        let source = try popType()
        return .phrase(
            [.text("reabstraction " + what)] + (signature.map { [.node(.signature($0)), " "] } ?? []) + [
                "from ", .node(source), " to ", .node(target),
            ]
        )
    }

    /// How a key path gets at a property, with the type that it begins at.
    private mutating func keyPath(_ what: String) throws(Refusal) -> Node {
        let isSerialized = reader.skip("q")
        var types: [Part] = []
        while types.count < 2, let type = pop(where: { $0.isType }) { types.insert(.node(type), at: 0) }
        guard !types.isEmpty else { throw Refusal() }
        if let signature = popSignature() { types.insert(.node(.signature(signature)), at: 0) }
        return .phrase(
            [.text("key path \(what) for "), .node(try popEntity()), " : "] + types
                + (isSerialized ? [", serialized"] : [])
        )
    }

    /// Which associated type of a protocol's is meant, below the protocol on the stack.
    private mutating func associatedConformance() throws(Refusal) -> [Part] {
        let path = try popMemberPathParts()
        return [.node(try popProtocolType()), "."] + path
    }

    private mutating func popMemberPathParts() throws(Refusal) -> [Part] {
        let path = try popList { (parser) throws(Refusal) in try parser.popMemberName() }
        guard !path.isEmpty else { throw Refusal() }
        var parts: [Part] = []
        for (name, ofProtocol) in path {
            if !parts.isEmpty { parts.append(".") }
            if let ofProtocol { parts += [.node(ofProtocol), "."] }
            parts.append(.text(name))
        }
        return parts
    }
}
