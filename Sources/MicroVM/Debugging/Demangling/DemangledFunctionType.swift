/// A function's type in the language, `(A) async throws -> B`.
struct DemangledFunctionType: Sendable {
    enum Convention: String, Sendable {
        case plain = ""
        case autoclosure = "@autoclosure "
        case thin = "@convention(thin) "
        case block = "@convention(block) "
        case escapingBlock = "@escaping @convention(block) "
        case cFunction = "@convention(c) "
    }

    enum Isolation: Sendable {
        case any, nonisolatedNonsending
        case globalActor(DemanglingNode)
    }

    enum Throwing: Sendable {
        case never, any
        case typed(DemanglingNode)
    }

    var convention: Convention
    /// A tuple if there is not exactly one.
    var parameters: DemanglingNode
    var result: DemanglingNode
    var isolation: Isolation?
    var isSendable: Bool
    var isAsynchronous: Bool
    var throwing: Throwing
    var isResultSending: Bool

    /// Whether a declaration of this type is written like a function, without a colon.
    var isCallable: Bool {
        switch convention {
        case .plain, .thin, .cFunction: true
        case .autoclosure, .block, .escapingBlock: false
        }
    }

    var parameterCount: Int {
        if case .tuple(let elements) = parameters { elements.count } else { 1 }
    }
}
