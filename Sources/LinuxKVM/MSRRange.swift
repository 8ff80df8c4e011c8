/// Model-specific registers in a row, for ``VirtualMachine/setMSRFilter(denyingAllBut:)``.
public struct MSRRange: Hashable, Sendable {
    /// What a guest can do with a register.
    public struct Access: OptionSet, Hashable, Sendable {
        /// The kernel's bits.
        public var rawValue: UInt32

        /// The access with the kernel's bits `rawValue`.
        public init(rawValue: UInt32) {
            self.rawValue = rawValue
        }

        /// RDMSR.
        public static let read = Access(rawValue: 1 << 0)  // KVM_MSR_FILTER_READ
        /// WRMSR.
        public static let write = Access(rawValue: 1 << 1)  // KVM_MSR_FILTER_WRITE
    }

    /// The number of the first register.
    public var first: UInt32
    /// How many registers, 1 to 12,288.
    public var count: UInt32
    /// What is allowed; for a register in several ranges the first of them that speaks of the access decides.
    public var access: Access

    /// `count` registers from number `first` on.
    public init(first: UInt32, count: UInt32 = 1, access: Access = [.read, .write]) {
        self.first = first
        self.count = count
        self.access = access
    }

    static let maximumRangeCount = 16  // KVM_MSR_FILTER_MAX_RANGES
    static let registerCounts: ClosedRange<UInt32> = 1...0x600 * 8  // KVM_MSR_FILTER_MAX_BITMAP_SIZE
}
