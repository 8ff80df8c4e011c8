/// Sets of registers that can be shared through memory (`KVM_CAP_SYNC_REGS` in the KVM API).
public struct SharedRegisterSet: OptionSet, Hashable, Sendable {
    /// The kernel's bits.
    public var rawValue: UInt64

    /// The sets with the kernel's bits `rawValue`.
    public init(rawValue: UInt64) {
        self.rawValue = rawValue
    }

    /// ``Registers``.
    public static let registers = SharedRegisterSet(rawValue: 1 << 0)  // KVM_SYNC_X86_REGS
    /// ``SpecialRegisters``.
    public static let specialRegisters = SharedRegisterSet(rawValue: 1 << 1)  // KVM_SYNC_X86_SREGS
    /// ``VirtualCPUEvents``.
    public static let events = SharedRegisterSet(rawValue: 1 << 2)  // KVM_SYNC_X86_EVENTS
}
