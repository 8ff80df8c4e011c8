/// The number by which a supervisor knows a call, never given twice.
public struct CallID: RawRepresentable, Sendable, Hashable, Comparable, CustomStringConvertible {
    /// The number, from 1 on.
    public var rawValue: UInt64

    /// Makes the number of a call.
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// Earlier calls come first.
    public static func < (left: CallID, right: CallID) -> Bool { left.rawValue < right.rawValue }

    /// The number in decimal.
    public var description: String { String(rawValue) }
}
