/// What ``VirtualCPU/setGuestDebug(_:debugRegisters:)`` watches for.
public struct GuestDebugOptions: OptionSet, Hashable, Sendable {
    /// The kernel's bits.
    public var rawValue: UInt32

    /// The options with the kernel's bits `rawValue`.
    public init(rawValue: UInt32) {
        self.rawValue = rawValue
    }

    /// Debugging is on; the others do nothing without it.
    public static let enable = GuestDebugOptions(rawValue: 1 << 0)  // KVM_GUESTDBG_ENABLE
    /// An exit after every instruction.
    public static let singleStep = GuestDebugOptions(rawValue: 1 << 1)  // KVM_GUESTDBG_SINGLESTEP
    /// An exit at INT3, which the guest then does not see.
    public static let useSoftwareBreakpoints = GuestDebugOptions(rawValue: 1 << 16)  // KVM_GUESTDBG_USE_SW_BP
    /// An exit at the breakpoints in the debug registers given.
    public static let useHardwareBreakpoints = GuestDebugOptions(rawValue: 1 << 17)  // KVM_GUESTDBG_USE_HW_BP
    /// Raises #DB in the guest.
    public static let injectDebugException = GuestDebugOptions(rawValue: 1 << 18)  // KVM_GUESTDBG_INJECT_DB
    /// Raises #BP in the guest.
    public static let injectBreakpointException = GuestDebugOptions(rawValue: 1 << 19)  // KVM_GUESTDBG_INJECT_BP
    /// No interrupts while single stepping.
    public static let blockInterrupts = GuestDebugOptions(rawValue: 1 << 20)  // KVM_GUESTDBG_BLOCKIRQ
}
