/// A part of a mangled name, as operations of the mangling build it from parts before it.
indirect enum DemanglingNode: Sendable {
    // What has no text, and tells the operation behind it what it is about.
    case emptyList
    case firstElement
    case mark(Mark)
    case typedThrows(DemanglingNode)
    case globalActor(DemanglingNode)
    /// How a type conforms to a protocol, where it is part of a generic type's arguments.
    case conformance
    case retroactiveConformance

    // Names.
    case identifier(String)
    case operatorName(String)
    case localName(DemanglingNode, index: Int)
    case privateName(DemanglingNode?, discriminator: String)
    case relatedName(String, DemanglingNode)

    // What names are declared in, and what can be there.
    case module(String)
    case nominal(Nominal, context: DemanglingNode, name: DemanglingNode)
    case extensionContext(module: String, type: DemanglingNode, signature: DemangledSignature?)
    case entity(DemangledEntity)
    case accessor(String, of: DemangledEntity)
    case staticMember(DemanglingNode)

    // Types.
    /// One that its name tells all about.
    case simpleType(String)
    /// The result of a function that returns `some` type, for those that know the function.
    case opaqueResult
    case opaqueResultOf(DemanglingNode)
    case opaqueType(DemanglingNode, index: Int)
    case member(of: DemanglingNode, name: String, ofProtocol: DemanglingNode?)
    case boundGeneric(DemanglingNode, arguments: [DemanglingNode])
    case tuple([TupleElement])
    case pack(String, [DemanglingNode])
    case function(DemangledFunctionType)
    case implementation(DemangledImplementationType)
    /// A type behind an attribute, like `inout`.
    case attributed(String, DemanglingNode)
    /// A pattern that repeats for each element of a pack.
    case expansion(DemanglingNode)
    case metatype(DemanglingNode, representation: String, isExistential: Bool)
    case composition([DemanglingNode], superclass: DemanglingNode?, isClassBound: Bool)
    case constrainedExistential(DemanglingNode, requirements: [DemanglingNode])
    case generic(DemangledSignature, DemanglingNode)

    // Generics.
    case signature(DemangledSignature)
    case requirement([DemanglingPart])
    /// `each `, or `let ` for an integer, before a parameter's name.
    case parameterMarker(String, GenericParameter)

    // Symbols.
    /// What says what a symbol is, around what it belongs to.
    case phrase([DemanglingPart])
    /// What is said of the whole name before it.
    case attribute([DemanglingPart])

    enum Mark: Sendable {
        case variadic, asynchronous, throwing, sendable, isolatedAny, nonisolatedNonsending, sendingResult
    }

    enum Nominal: Sendable {
        case structure, `class`, enumeration, `protocol`, other, alias
    }

    struct GenericParameter: Equatable, Sendable {
        var depth: Int
        var index: Int

        /// `A`, `B`, …, with the depth behind it if it is not 0: the compiler knows the source's names, not the symbol.
        var name: String {
            var letters = ""
            var rest = index
            repeat {
                letters.unicodeScalars.append(Unicode.Scalar(UInt8(ascii: "A") + UInt8(rest % 26)))
                rest /= 26
            } while rest > 0
            return depth == 0 ? letters : letters + String(depth)
        }
    }

    struct TupleElement: Sendable {
        var label: String?
        var type: DemanglingNode
        var isVariadic: Bool
    }
}
