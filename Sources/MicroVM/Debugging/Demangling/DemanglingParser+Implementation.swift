/// `I`: types of functions as the compiler implements them, which reabstraction thunks have in their names.
extension DemanglingParser {
    mutating func implementationType() throws(Refusal) -> Node {
        var pattern: DemangledImplementationType.Substitution?
        if reader.skip("s") {
            let types = try popOneList()
            guard let signature = popSignature() else { throw Refusal() }
            pattern = DemangledImplementationType.Substitution(signature: signature, types: types)
        }
        var invocation: DemangledImplementationType.Substitution?
        if reader.skip("I") {
            invocation = DemangledImplementationType.Substitution(signature: nil, types: try popOneList())
        }
        let signature = popSignature()
        if signature != nil { _ = reader.skip("P") }

        let attributes = try functionAttributes()
        let isResultSending = reader.skip("T")
        var parameters: [String] = []
        while let convention = parameterConvention() {
            let derivative = reader.skip("w") ? "@noDerivative " : ""
            var others: [String] = []
            if reader.skip("T") { others.append("sending ") }
            if reader.skip("I") { others.append("isolated ") }
            if reader.skip("L") { others.append("sil_implicit_leading_param ") }
            // Not more is written of one parameter.
            parameters.append(convention + (others.count > 1 ? "" : derivative + others.joined()))
        }
        var results: [String] = []
        while let convention = resultConvention() {
            results.append(convention + (reader.skip("w") ? "@noDerivative " : ""))
        }
        while reader.skip("Y") {
            guard let convention = parameterConvention() else { throw Refusal() }
            results.append("@yields " + convention)
        }
        if reader.skip("z") {
            guard let convention = resultConvention() else { throw Refusal() }
            results.append("@error " + convention)
        }
        guard reader.skip("_") else { throw Refusal() }

        var values: [DemangledImplementationType.Value] = []
        for attributes in (parameters + results).reversed() {
            values.append(DemangledImplementationType.Value(attributes: attributes, type: try popType()))
        }
        values.reverse()
        return .implementation(
            DemangledImplementationType(
                attributes: attributes,
                signature: signature,
                pattern: pattern,
                invocation: invocation,
                parameters: Array(values.prefix(parameters.count)),
                results: Array(values.dropFirst(parameters.count)),
                isResultSending: isResultSending
            )
        )
    }

    private mutating func popOneList() throws(Refusal) -> [Node] {
        let lists = try popArguments()
        guard lists.count == 1 else { throw Refusal() }
        return lists[0]
    }

    private mutating func functionAttributes() throws(Refusal) -> String {
        var attributes = ""
        if reader.skip("e") { attributes += "@escaping " }
        if reader.skip("A") { attributes += "@isolated(any) " }
        switch try reader.next() {
        case "g": attributes += "@callee_guaranteed "
        case "t": attributes += "@convention(thin) "
        case "x": attributes += "@callee_owned "
        case "y": attributes += "@callee_unowned "
        default: throw Refusal()
        }
        let conventions: [(Unicode.Scalar, String)] = [
            ("B", "block"), ("C", "c"), ("M", "method"), ("K", "closure"), ("W", "witness_method"),
        ]
        if let (_, name) = conventions.first(where: { reader.skip($0.0) }) { attributes += "@convention(\(name)) " }
        let coroutines: [(Unicode.Scalar, String)] = [
            ("A", "@yield_once "), ("I", "@yield_once_2 "), ("G", "@yield_many "),
        ]
        if let (_, name) = coroutines.first(where: { reader.skip($0.0) }) { attributes += name }
        if reader.skip("h") { attributes += "@Sendable " }
        if reader.skip("H") { attributes += "@async " }
        return attributes
    }

    private mutating func parameterConvention() -> String? {
        let conventions: [(Unicode.Scalar, String)] = [
            ("i", "@in "), ("c", "@in_constant "), ("l", "@inout "), ("b", "@inout_aliasable "),
            ("n", "@in_guaranteed "), ("X", "@in_cxx "), ("x", "@owned "), ("g", "@guaranteed "),
            ("e", "@deallocating "), ("y", "@unowned "), ("v", "@pack_owned "), ("p", "@pack_guaranteed "),
            ("m", "@pack_inout "),
        ]
        return conventions.first { reader.skip($0.0) }?.1
    }

    private mutating func resultConvention() -> String? {
        let conventions: [(Unicode.Scalar, String)] = [
            ("r", "@out "), ("o", "@owned "), ("d", "@unowned "), ("u", "@unowned_inner_pointer "),
            ("a", "@autoreleased "), ("k", "@pack_out "), ("l", "@guaranteed_address "), ("g", "@guaranteed "),
            ("m", "@inout "),
        ]
        return conventions.first { reader.skip($0.0) }?.1
    }
}
