/// A function's type as the compiler implements it: with a convention for each value that goes in or out.
struct DemangledImplementationType: Sendable {
    struct Value: Sendable {
        /// `@owned `, with a space behind each.
        var attributes: String
        var type: DemanglingNode
    }

    /// What its generic parameters stand for.
    struct Substitution: Sendable {
        var signature: DemangledSignature?
        var types: [DemanglingNode]
    }

    /// `@callee_guaranteed `, with a space behind each.
    var attributes: String
    var signature: DemangledSignature?
    var pattern: Substitution?
    var invocation: Substitution?
    var parameters: [Value]
    var results: [Value]
    var isResultSending: Bool
}
