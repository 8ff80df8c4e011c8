/// Text, or what is to be printed in its place.
enum DemanglingPart: Sendable, ExpressibleByStringInterpolation {
    case text(String)
    case node(DemanglingNode)

    init(stringLiteral value: String) { self = .text(value) }
}
