/// A function, a variable, or something like them.
struct DemangledEntity: Sendable {
    enum Kind: Sendable {
        case function, variable, `subscript`
        case allocator, constructor, destructor, deallocator, isolatedDeallocator
        case variableInitializer, variableDestroyer
        case closure, implicitClosure, defaultArgument
        /// The expression that gives a variable its first value.
        case initialValue
        case propertyWrapper(String)
    }

    var kind: Kind
    var context: DemanglingNode
    var name: DemanglingNode?
    /// The file of one without a name.
    var discriminator: DemanglingNode?
    /// The parameters' labels, if it has any, and nil for each parameter without.
    var labels: [String?]?
    var type: DemanglingNode?
    /// What its generic parameters stand for, where that is known.
    var arguments: [DemanglingNode] = []
    /// Which of its kind it is in its context, from 0.
    var index = 0

    /// What it is called, if not by a name.
    var title: String? {
        switch kind {
        case .function, .variable: nil
        case .subscript: "subscript"
        case .allocator: context.isClass ? "__allocating_init" : "init"
        case .constructor: "init"
        case .destructor: "deinit"
        case .deallocator: context.isClass ? "__deallocating_deinit" : "deinit"
        case .isolatedDeallocator: context.isClass ? "__isolated_deallocating_deinit" : "deinit"
        case .variableInitializer: "__ivar_initializer"
        case .variableDestroyer: "__ivar_destroyer"
        case .closure: "closure #\(index + 1)"
        case .implicitClosure: "implicit closure #\(index + 1)"
        case .defaultArgument: "default argument \(index)"
        case .initialValue: "variable initialization expression"
        case .propertyWrapper(let title): title
        }
    }

    /// Whether its type is behind a colon, rather than a function's.
    var isVariable: Bool {
        if case .variable = kind { true } else { false }
    }

    /// What leads from it to its context.
    var preposition: String {
        switch kind {
        case .defaultArgument, .initialValue, .propertyWrapper: " of "
        default: " in "
        }
    }
}
