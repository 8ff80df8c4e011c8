internal import CShims

/// Something that a KVM may or may not be able to do; ask with ``KVM/check(_:)`` or ``VirtualMachine/check(_:)``.
///
/// The constants are the ones this library has a use for; any other number of `linux/kvm.h` can be made.
public struct Capability: RawRepresentable, Hashable, Sendable {
    /// The number the kernel knows it by.
    public var rawValue: Int

    /// The capability with the kernel's number `rawValue`.
    public init(rawValue: Int) {
        self.rawValue = rawValue
    }

    private init(_ constant: CInt) {
        self.rawValue = Int(constant)
    }

    /// Guest memory is memory of the process.
    public static let userMemory = Capability(KVM_CAP_USER_MEMORY)  // KVM_CAP_USER_MEMORY
    /// The task state segment that real mode needs on Intel processors can be placed.
    public static let taskStateSegmentAddress = Capability(KVM_CAP_SET_TSS_ADDR)  // KVM_CAP_SET_TSS_ADDR
    /// CPUID entries with an index.
    public static let extendedCPUID = Capability(KVM_CAP_EXT_CPUID)  // KVM_CAP_EXT_CPUID
    /// How many memory slots a virtual machine can have.
    public static let memorySlots = Capability(KVM_CAP_NR_MEMSLOTS)  // KVM_CAP_NR_MEMSLOTS
    /// How many address spaces a virtual machine has; more than one on x86 where there is system management mode.
    public static let multiAddressSpace = Capability(KVM_CAP_MULTI_ADDRESS_SPACE)  // KVM_CAP_MULTI_ADDRESS_SPACE
    /// Memory slots that the guest cannot write.
    public static let readOnlyMemory = Capability(KVM_CAP_READONLY_MEM)  // KVM_CAP_READONLY_MEM
    /// How many virtual CPUs a virtual machine should have at most.
    public static let recommendedVirtualCPUs = Capability(KVM_CAP_NR_VCPUS)  // KVM_CAP_NR_VCPUS
    /// How many virtual CPUs a virtual machine can have.
    public static let maxVirtualCPUs = Capability(KVM_CAP_MAX_VCPUS)  // KVM_CAP_MAX_VCPUS
    /// Whether a virtual CPU runs or waits can be read and set.
    public static let multiprocessingState = Capability(KVM_CAP_MP_STATE)  // KVM_CAP_MP_STATE
    /// Single stepping and breakpoints from outside.
    public static let guestDebug = Capability(KVM_CAP_SET_GUEST_DEBUG)  // KVM_CAP_SET_GUEST_DEBUG
    /// Which of the options of guest debugging there are, as a bit set of ``GuestDebugOptions``.
    public static let guestDebugOptions = Capability(KVM_CAP_SET_GUEST_DEBUG2)  // KVM_CAP_SET_GUEST_DEBUG2
    /// Pending exceptions, interrupts and NMIs can be read and set.
    public static let vCPUEvents = Capability(KVM_CAP_VCPU_EVENTS)  // KVM_CAP_VCPU_EVENTS
    /// The guest's debug registers can be read and set.
    public static let debugRegisters = Capability(KVM_CAP_DEBUGREGS)  // KVM_CAP_DEBUGREGS
    /// The processor's extended state can be read and set.
    public static let xsave = Capability(KVM_CAP_XSAVE)  // KVM_CAP_XSAVE
    /// The size of the extended state in bytes; to be asked of a virtual machine.
    public static let xsave2 = Capability(KVM_CAP_XSAVE2)  // KVM_CAP_XSAVE2
    /// The extended control registers can be read and set.
    public static let xcrs = Capability(KVM_CAP_XCRS)  // KVM_CAP_XCRS
    /// Register sets that can be shared through memory, as a bit set of ``SharedRegisterSet``.
    public static let syncRegisters = Capability(KVM_CAP_SYNC_REGS)  // KVM_CAP_SYNC_REGS
    /// A byte in shared memory makes a run return at once.
    public static let immediateExit = Capability(KVM_CAP_IMMEDIATE_EXIT)  // KVM_CAP_IMMEDIATE_EXIT
    /// Exits for model-specific registers that KVM does not know or that the filter denies.
    public static let userSpaceMSR = Capability(KVM_CAP_X86_USER_SPACE_MSR)  // KVM_CAP_X86_USER_SPACE_MSR
    /// A filter of the model-specific registers that the guest can use.
    public static let msrFilter = Capability(KVM_CAP_X86_MSR_FILTER)  // KVM_CAP_X86_MSR_FILTER
    /// A triple fault is one of the events that can be read and set.
    public static let tripleFaultEvent = Capability(KVM_CAP_X86_TRIPLE_FAULT_EVENT)  // KVM_CAP_X86_TRIPLE_FAULT_EVENT
    /// Internal errors say more than their number.
    public static let internalErrorDetails = Capability(KVM_CAP_INTERNAL_ERROR_DATA)  // KVM_CAP_INTERNAL_ERROR_DATA
    /// A run that fails for a guest address whose memory cannot be had says which address.
    public static let memoryFaultInfo = Capability(KVM_CAP_MEMORY_FAULT_INFO)  // KVM_CAP_MEMORY_FAULT_INFO
}
