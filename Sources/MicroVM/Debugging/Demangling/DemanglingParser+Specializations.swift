/// Functions that the optimizer has made from others, for what it knew of their callers.
extension DemanglingParser {
    mutating func specialization(_ kind: Unicode.Scalar) throws(Refusal) -> Node {
        var kind = kind
        // Arguments that are not there any more.
        while kind == "t" {
            if reader.isAtDigit { _ = try reader.natural() }
            kind = try reader.next()
            guard ["B", "G", "g", "t"].contains(kind) else { throw Refusal() }
        }
        switch kind {
        case "B", "g": return try genericSpecialization("generic specialization")
        case "G": return try genericSpecialization("generic not re-abstracted specialization")
        case "P":
            return try partialSpecialization("generic not-reabstracted partial specialization")
        case "f": return try signatureSpecialization()
        case "i": return try genericSpecialization("inlined generic function")
        case "p": return try partialSpecialization("generic partial specialization")
        case "s": return try genericSpecialization("generic pre-specialization")
        default: throw Refusal()
        }
    }

    /// `SPEC-INFO`: whether the function is serialized. Which pass of the compiler it comes from is not printed.
    private mutating func specializationInfo(mayBeDemoted: Bool) throws(Refusal) -> [Part] {
        let isSerialized = reader.skip("q")
        if mayBeDemoted { _ = reader.skip("a") }
        guard reader.isAtDigit else { throw Refusal() }
        _ = try reader.next()
        return isSerialized ? ["serialized"] : []
    }

    private mutating func genericSpecialization(_ what: String) throws(Refusal) -> Node {
        let info = try specializationInfo(mayBeDemoted: true)
        let types = try popTypes().map { Part.node($0) }
        return .attribute([.text(what + " <")] + Self.joined(info + types) + ["> of "])
    }

    private mutating func partialSpecialization(_ what: String) throws(Refusal) -> Node {
        let info = try specializationInfo(mayBeDemoted: true)
        return .attribute(
            [.text(what + " <")] + info + [info.isEmpty ? "" : ", ", "Signature = ", .node(try popType()), "> of "]
        )
    }

    private static func joined(_ parts: [Part]) -> [Part] {
        Array(parts.map { [$0] }.joined(separator: [", "]))
    }

    // MARK: - By arguments

    /// What has become of an argument.
    private enum Argument {
        case unchanged
        case changed(String)
        /// An argument that is a closure, with what it has captured.
        case closure
        /// A constant whose value is the text of an identifier, between these.
        case constant(String, String)
        case function
        case keyPath
    }

    private mutating func signatureSpecialization() throws(Refusal) -> Node {
        let info = try specializationInfo(mayBeDemoted: false)
        var arguments: [Argument] = []
        while !reader.skip("_") { arguments.append(try argument()) }
        let result = try argument()

        // Values are in front of it, in the order of the arguments.
        var descriptions: [[Part]] = []
        switch result {
        case .unchanged: break
        case .changed(let change): descriptions.append([.text("Return = " + change)])
        default: throw Refusal()
        }
        for (index, argument) in arguments.enumerated().reversed() {
            if let description = try describe(argument) {
                descriptions.append([.text("Arg[\(index)] = ")] + description)
            }
        }
        descriptions.reverse()
        return .attribute(
            ["function signature specialization <"]
                + Array((info.isEmpty ? descriptions : [info] + descriptions).joined(separator: [", "])) + ["> of "]
        )
    }

    private mutating func argument() throws(Refusal) -> Argument {
        switch try reader.next() {
        case "C": return .changed("[Same As Argument \(try reader.natural())]")
        case "c": return .closure
        case "d": return .changed("Dead" + moreChanges())
        case "e":
            return .changed(
                "Existential To Protocol Constrained Generic" + (reader.skip("D") ? " and Dead" : "") + moreChanges()
            )
        case "g": return .changed("Owned To Guaranteed" + (reader.skip("X") ? " and Exploded" : ""))
        case "i": return .changed("Value Promoted from Box")
        case "n": return .unchanged
        case "o": return .changed("Guaranteed To Owned" + (reader.skip("X") ? " and Exploded" : ""))
        case "p": return try constant()
        case "r": return .changed("InOut Converted to Out")
        case "s": return .changed("Stack Promoted from Box")
        case "x": return .changed("Exploded")
        default: throw Refusal()
        }
    }

    private mutating func moreChanges() -> String {
        (reader.skip("G") ? " and Owned To Guaranteed" : "") + (reader.skip("O") ? " and Guaranteed To Owned" : "")
            + (reader.skip("X") ? " and Exploded" : "")
    }

    private mutating func constant() throws(Refusal) -> Argument {
        switch try reader.next() {
        case "d": return .changed("[Constant Propagated Float : \(reader.digits())]")
        case "f": return .function
        case "g": return .constant("[Constant Propagated Global : ", "]")
        case "i": return .changed("[Constant Propagated Integer : \(reader.digits())]")
        case "k": return .keyPath
        case "s":
            switch try reader.next() {
            case "b": return .constant("[Constant Propagated String : u8'", "']")
            case "c": return .constant("[Constant Propagated String : objc'", "']")
            case "w": return .constant("[Constant Propagated String : u16'", "']")
            default: throw Refusal()
            }
        default: throw Refusal()
        }
    }

    private mutating func describe(_ argument: Argument) throws(Refusal) -> [Part]? {
        switch argument {
        case .unchanged: return nil
        case .changed(let change): return [.text(change)]
        case .closure:
            var types: [Part] = []
            while let type = pop(where: \.isType) { types.append(.node(type)) }
            types.reverse()
            return [.text("[Closure Propagated : \(try symbolName()), Argument Types : [")] + types + ["]"]
        case .constant(let before, let after):
            var text = try symbolName()
            if before.hasSuffix("'"), text.hasPrefix("_") { text.removeFirst() }
            return [.text(before + text + after)]
        case .function:
            let name = try symbolName()
            let text = Demangling.demangle(name, nesting: nesting + 1)
            // A name that should have a text, and has none, is better not in a text.
            guard text != nil || !Demangling.isMangled(name) else { throw Refusal() }
            return [.text("[Constant Propagated Function : \(text ?? name)]")]
        case .keyPath:
            let value = try popType()
            let root = try popType()
            return [
                .text("[Constant Propagated KeyPath : \(try symbolName())<"), .node(root), ",", .node(value), ">]",
            ]
        }
    }

    private mutating func symbolName() throws(Refusal) -> String {
        guard let name = popIdentifier() else { throw Refusal() }
        return name
    }
}
