/// Whether a virtual CPU runs or waits (KVM API, 4.38).
public struct MultiprocessingState: RawRepresentable, Hashable, Sendable {
    /// The kernel's number.
    public var rawValue: UInt32

    /// The state with the kernel's number `rawValue`.
    public init(rawValue: UInt32) {
        self.rawValue = rawValue
    }

    /// It runs.
    public static let runnable = MultiprocessingState(rawValue: 0)  // KVM_MP_STATE_RUNNABLE
    /// It waits for another processor's INIT.
    public static let uninitialized = MultiprocessingState(rawValue: 1)  // KVM_MP_STATE_UNINITIALIZED
    /// It had an INIT and waits for the start-up interrupt.
    public static let initReceived = MultiprocessingState(rawValue: 2)  // KVM_MP_STATE_INIT_RECEIVED
    /// It executed HLT and waits for an interrupt.
    public static let halted = MultiprocessingState(rawValue: 3)  // KVM_MP_STATE_HALTED
    /// It had the start-up interrupt.
    public static let startUpReceived = MultiprocessingState(rawValue: 4)  // KVM_MP_STATE_SIPI_RECEIVED
}
