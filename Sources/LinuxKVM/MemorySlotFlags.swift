/// How a guest can use a memory slot.
public struct MemorySlotFlags: OptionSet, Hashable, Sendable {
    /// The kernel's bits.
    public var rawValue: UInt32

    /// The flags with the kernel's bits `rawValue`.
    public init(rawValue: UInt32) {
        self.rawValue = rawValue
    }

    /// The kernel keeps account of the pages that are written.
    public static let logDirtyPages = MemorySlotFlags(rawValue: 1 << 0)  // KVM_MEM_LOG_DIRTY_PAGES
    /// The guest's writes become MMIO exits; needs ``Capability/readOnlyMemory``.
    public static let readOnly = MemorySlotFlags(rawValue: 1 << 1)  // KVM_MEM_READONLY
}
