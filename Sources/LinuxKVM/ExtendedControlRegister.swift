/// An extended control register and its value.
public struct ExtendedControlRegister: Hashable, Sendable {
    /// The register's number: ECX for XGETBV. 0 is XCR0, the state components that are enabled.
    public var index: UInt32
    /// Its value.
    public var value: UInt64

    /// The register number `index` with a value.
    public init(index: UInt32, value: UInt64) {
        self.index = index
        self.value = value
    }
}
