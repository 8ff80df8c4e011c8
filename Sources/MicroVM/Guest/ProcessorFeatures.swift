import LinuxKVM

/// The CPUID leaves a guest gets, and what they say the library may switch on.
struct ProcessorFeatures: Sendable {
    /// What KVM supports, without what a sandbox has no use for. A KVM that does not filter CPUID in ring 3 shows the
    /// real processor's leaves all the same, so nothing relies on this for isolation.
    let entries: [CPUIDEntry]
    /// XSAVE and with it XCR0.
    let hasXSave: Bool
    /// x87, SSE and, where the processor has it, AVX: what XCR0 is set to.
    let extendedState: UInt64
    let hasUserModeInstructionPrevention: Bool
    let hasSupervisorExecutionPrevention: Bool
    let hasSupervisorAccessPrevention: Bool

    var hasAVX: Bool { extendedState & 1 << 2 != 0 }

    init(supported: [CPUIDEntry]) {
        var entries: [CPUIDEntry] = []
        for var entry in supported {
            switch (entry.function, entry.index) {
            case (0x1, _):
                // VMX, SMX, PDCM, x2APIC, TSC deadline, and the bit that says there is a hypervisor.
                entry.ecx &= ~(1 << 5 | 1 << 6 | 1 << 15 | 1 << 21 | 1 << 24 | 1 << 31)
            case (0x7, 0):
                // CET: shadow stacks, indirect branch tracking.
                entry.ecx &= ~(1 << 7)
                entry.edx &= ~(1 << 20)
            case (0xa, _), (0x14, _), (0x1c, _), (0x23, _), (0x8000_0022, _):
                // Performance monitoring, processor trace, last branch records.
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0)
            case (0x8000_0001, _):
                // SVM, performance counters.
                entry.ecx &= ~(1 << 2 | 1 << 23 | 1 << 24 | 1 << 28)
            case (0x8000_000a, _), (0x4000_0000...0x4fff_ffff, _):
                continue
            default:
                break
            }
            // A leaf that is absent reads as zeros, and each one that is there costs time with every virtual CPU.
            if entry.eax | entry.ebx | entry.ecx | entry.edx != 0 { entries.append(entry) }
        }
        func leaf(_ function: UInt32, _ index: UInt32 = 0) -> CPUIDEntry? {
            entries.first { $0.function == function && $0.index == index }
        }
        self.entries = entries
        hasXSave = (leaf(1)?.ecx ?? 0) & 1 << 26 != 0
        let states = leaf(0xd).map { UInt64($0.eax) | UInt64($0.edx) << 32 } ?? 0
        extendedState = hasXSave ? states & 0b111 | 1 : 0
        let structured = leaf(7)
        hasUserModeInstructionPrevention = (structured?.ecx ?? 0) & 1 << 2 != 0
        hasSupervisorExecutionPrevention = (structured?.ebx ?? 0) & 1 << 7 != 0
        hasSupervisorAccessPrevention = (structured?.ebx ?? 0) & 1 << 20 != 0
    }
}
