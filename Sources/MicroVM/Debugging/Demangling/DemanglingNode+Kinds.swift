/// What operations ask of the parts that they build on.
extension DemanglingNode {
    var isType: Bool {
        switch self {
        case .nominal, .simpleType, .opaqueResult, .opaqueType, .member, .boundGeneric, .tuple, .pack, .function,
            .implementation, .attributed, .expansion, .metatype, .composition, .constrainedExistential, .generic:
            true
        default: false
        }
    }

    var isNominal: Bool {
        if case .nominal = self { true } else { false }
    }

    var isProtocol: Bool {
        if case .nominal(.protocol, _, _) = self { true } else { false }
    }

    var isClass: Bool {
        if case .nominal(.class, _, _) = self { true } else { false }
    }

    var isContext: Bool {
        switch self {
        case .module, .nominal, .extensionContext, .entity, .accessor, .staticMember, .opaqueResultOf: true
        default: false
        }
    }

    var isDeclarationName: Bool {
        switch self {
        case .identifier, .operatorName, .localName, .privateName, .relatedName: true
        default: false
        }
    }

    /// Whether a symbol can be about it: all but what only has a meaning to the operations behind it.
    var isSubject: Bool {
        if case .phrase = self { return true }
        return isType || isContext
    }

    var isLocalName: Bool {
        if case .localName = self { true } else { false }
    }

    /// Whether it is the file of a declaration that has no name.
    var isDiscriminator: Bool {
        if case .privateName(nil, _) = self { true } else { false }
    }

    var isAttribute: Bool {
        if case .attribute = self { true } else { false }
    }

    var isEmptyList: Bool {
        if case .emptyList = self { true } else { false }
    }

    var isFirstElement: Bool {
        if case .firstElement = self { true } else { false }
    }

    var isRequirement: Bool {
        if case .requirement = self { true } else { false }
    }

    var isConformance: Bool {
        if case .conformance = self { true } else { false }
    }

    var isRetroactiveConformance: Bool {
        if case .retroactiveConformance = self { true } else { false }
    }

    var isOpaqueDeclaration: Bool {
        if case .opaqueResultOf = self { true } else { false }
    }

    var isComposition: Bool {
        if case .composition = self { true } else { false }
    }

    /// What a generic type's list of arguments belongs to, if it has one.
    var takesArguments: Bool {
        guard case .entity(let entity) = self else {
            if case .staticMember = self { return false }
            return true
        }
        switch entity.kind {
        case .variable, .subscript, .closure, .implicitClosure, .defaultArgument, .initialValue, .propertyWrapper:
            return false
        default: return true
        }
    }

    /// Whether `?` and `.Type` can stand behind it without parentheses.
    var isSelfContained: Bool {
        switch self {
        case .composition(let protocols, let superclass, let isClassBound):
            superclass == nil && protocols.count <= (isClassBound ? 0 : 1)
        case .function, .implementation, .attributed, .expansion, .opaqueResult, .opaqueType, .generic,
            .constrainedExistential:
            false
        default: true
        }
    }

    /// Whether it begins with a parenthesis or an angle bracket, which go without a space behind a function's name.
    var isAttachedToName: Bool {
        switch self {
        case .function(let function): function.convention == .plain
        case .generic: true
        default: false
        }
    }
}
