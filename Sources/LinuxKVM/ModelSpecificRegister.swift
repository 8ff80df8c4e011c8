/// A model-specific register and its value.
public struct ModelSpecificRegister: Hashable, Sendable {
    /// The register's number: ECX for RDMSR.
    public var index: UInt32
    /// Its value.
    public var value: UInt64

    /// The register number `index` with a value.
    public init(index: UInt32, value: UInt64) {
        self.index = index
        self.value = value
    }

    /// What the kernel takes in one request.
    static let maximumCount = 255  // MAX_IO_MSRS is 256, and not reached
}
