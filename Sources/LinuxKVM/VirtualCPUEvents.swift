internal import CShims

/// Exceptions and interrupts that are pending or being delivered (KVM API, 4.31).
public struct VirtualCPUEvents: Hashable, Sendable {
    /// An exception.
    public struct Exception: Hashable, Sendable {
        /// It is being delivered.
        public var injected = false
        /// It waits to be delivered; needs the exception payload capability to be enabled.
        public var pending = false
        /// Its number, 0 to 31.
        public var vector: UInt8 = 0
        /// The error code, for the exceptions that have one.
        public var errorCode: UInt32?

        /// None.
        public init() {}
    }

    /// A maskable interrupt.
    public struct Interrupt: Hashable, Sendable {
        /// It is being delivered.
        public var injected = false
        /// Its number.
        public var vector: UInt8 = 0
        /// An instruction raised it.
        public var isSoftware = false
        /// What blocks interrupts for one instruction: bit 0 MOV SS, bit 1 STI.
        public var shadow: UInt8 = 0

        /// None.
        public init() {}
    }

    /// The interrupt that cannot be masked, but for by another of its kind.
    public struct NonMaskableInterrupt: Hashable, Sendable {
        /// It is being delivered.
        public var injected = false
        /// How many wait.
        public var pending: UInt8 = 0
        /// One is being handled.
        public var masked = false

        /// None.
        public init() {}
    }

    /// System management mode.
    public struct SystemManagement: Hashable, Sendable {
        /// The processor is in it.
        public var active = false
        /// An interrupt into it waits.
        public var pending = false
        /// It was entered from a non-maskable interrupt's handler.
        public var insideNonMaskableInterrupt = false
        /// An INIT waits until it is left.
        public var latchedInit = false

        /// None.
        public init() {}
    }

    /// Which of the parts are meant, to read and to set.
    public struct ValidParts: OptionSet, Hashable, Sendable {
        /// The kernel's bits.
        public var rawValue: UInt32

        /// The parts with the kernel's bits `rawValue`.
        public init(rawValue: UInt32) {
            self.rawValue = rawValue
        }

        /// ``NonMaskableInterrupt/pending``.
        public static let nonMaskableInterruptPending = ValidParts(rawValue: 1 << 0)  // KVM_VCPUEVENT_VALID_NMI_PENDING
        /// ``VirtualCPUEvents/startUpVector``.
        public static let startUpVector = ValidParts(rawValue: 1 << 1)  // KVM_VCPUEVENT_VALID_SIPI_VECTOR
        /// ``Interrupt/shadow``.
        public static let shadow = ValidParts(rawValue: 1 << 2)  // KVM_VCPUEVENT_VALID_SHADOW
        /// ``VirtualCPUEvents/systemManagement``.
        public static let systemManagement = ValidParts(rawValue: 1 << 3)  // KVM_VCPUEVENT_VALID_SMM
        /// ``Exception/pending`` and ``VirtualCPUEvents/exceptionPayload``.
        public static let payload = ValidParts(rawValue: 1 << 4)  // KVM_VCPUEVENT_VALID_PAYLOAD
        /// ``VirtualCPUEvents/tripleFaultPending``.
        public static let tripleFault = ValidParts(rawValue: 1 << 5)  // KVM_VCPUEVENT_VALID_TRIPLE_FAULT
    }

    /// The exception.
    public var exception = Exception()
    /// The maskable interrupt.
    public var interrupt = Interrupt()
    /// The non-maskable interrupt.
    public var nonMaskableInterrupt = NonMaskableInterrupt()
    /// The page another processor's start-up interrupt named.
    public var startUpVector: UInt32 = 0
    /// System management mode.
    public var systemManagement = SystemManagement()
    /// A triple fault waits.
    public var tripleFaultPending = false
    /// What a pending exception brings with it, such as the address of a page fault.
    public var exceptionPayload: UInt64?
    /// Which of these are meant.
    public var validParts: ValidParts = []

    /// Nothing pending, and only the parts that are always meant.
    public init() {}
}

extension VirtualCPUEvents {
    init(_ events: kvm_vcpu_events) {
        exception.injected = events.exception.injected != 0
        exception.pending = events.exception.pending != 0
        exception.vector = events.exception.nr
        exception.errorCode = events.exception.has_error_code != 0 ? events.exception.error_code : nil
        interrupt.injected = events.interrupt.injected != 0
        interrupt.vector = events.interrupt.nr
        interrupt.isSoftware = events.interrupt.soft != 0
        interrupt.shadow = events.interrupt.shadow
        nonMaskableInterrupt.injected = events.nmi.injected != 0
        nonMaskableInterrupt.pending = events.nmi.pending
        nonMaskableInterrupt.masked = events.nmi.masked != 0
        startUpVector = events.sipi_vector
        systemManagement.active = events.smi.smm != 0
        systemManagement.pending = events.smi.pending != 0
        systemManagement.insideNonMaskableInterrupt = events.smi.smm_inside_nmi != 0
        systemManagement.latchedInit = events.smi.latched_init != 0
        tripleFaultPending = events.triple_fault.pending != 0
        exceptionPayload = events.exception_has_payload != 0 ? events.exception_payload : nil
        validParts = ValidParts(rawValue: events.flags)
    }

    var kernelEvents: kvm_vcpu_events {
        var events = kvm_vcpu_events()
        events.exception.injected = exception.injected ? 1 : 0
        events.exception.pending = exception.pending ? 1 : 0
        events.exception.nr = exception.vector
        events.exception.has_error_code = exception.errorCode != nil ? 1 : 0
        events.exception.error_code = exception.errorCode ?? 0
        events.interrupt.injected = interrupt.injected ? 1 : 0
        events.interrupt.nr = interrupt.vector
        events.interrupt.soft = interrupt.isSoftware ? 1 : 0
        events.interrupt.shadow = interrupt.shadow
        events.nmi.injected = nonMaskableInterrupt.injected ? 1 : 0
        events.nmi.pending = nonMaskableInterrupt.pending
        events.nmi.masked = nonMaskableInterrupt.masked ? 1 : 0
        events.sipi_vector = startUpVector
        events.smi.smm = systemManagement.active ? 1 : 0
        events.smi.pending = systemManagement.pending ? 1 : 0
        events.smi.smm_inside_nmi = systemManagement.insideNonMaskableInterrupt ? 1 : 0
        events.smi.latched_init = systemManagement.latchedInit ? 1 : 0
        events.triple_fault.pending = tripleFaultPending ? 1 : 0
        events.exception_has_payload = exceptionPayload != nil ? 1 : 0
        events.exception_payload = exceptionPayload ?? 0
        events.flags = validParts.rawValue
        return events
    }
}
