/// Why a virtual CPU stopped running (KVM API, 5).
///
/// The payloads that are ``ExitBytes`` lie in the virtual CPU's shared memory until it runs again.
public enum Exit {
    /// The guest wrote to an I/O port: `count` items of `size` bytes (1, 2 or 4) each.
    ///
    /// Whether the instruction pointer is already past the instruction differs from one processor to another, until
    /// ``VirtualCPU/completePendingIO()``.
    case ioOut(port: UInt16, size: UInt8, count: UInt32, bytes: ExitBytes)  // KVM_EXIT_IO
    /// The guest reads from an I/O port: it gets what is stored in `bytes` when it runs again.
    case ioIn(port: UInt16, size: UInt8, count: UInt32, bytes: ExitBytes)  // KVM_EXIT_IO
    /// The guest reads 1 to 8 bytes at a guest physical address where there is no memory: it gets what is stored in
    /// `bytes` when it runs again.
    case mmioRead(address: UInt64, bytes: ExitBytes)  // KVM_EXIT_MMIO
    /// The guest wrote 1 to 8 bytes to a guest physical address where there is no memory, or where it is read-only.
    case mmioWrite(address: UInt64, bytes: ExitBytes)  // KVM_EXIT_MMIO
    /// The guest executed HLT.
    case hlt  // KVM_EXIT_HLT
    /// The guest shut down, by a triple fault for one. What is left of its registers differs between processors.
    case shutdown  // KVM_EXIT_SHUTDOWN
    /// The processor refused to enter the guest, mostly because of its registers' values; the reason is the
    /// processor's own.
    case failEntry(hardwareReason: UInt64, cpu: UInt32)  // KVM_EXIT_FAIL_ENTRY
    /// KVM cannot go on. `suberror` 1 is an instruction it could not emulate; `details` are up to 16 words of eight
    /// bytes that say more, for people to read.
    case internalError(suberror: UInt32, details: ExitBytes)  // KVM_EXIT_INTERNAL_ERROR
    /// A signal came, or ``VirtualCPU/immediateExit`` was set: the guest can be run again.
    case interrupted  // EINTR
    /// A debug event that ``VirtualCPU/setGuestDebug(_:debugRegisters:)`` asked for: the exception's vector, the
    /// address of the instruction, and the debug registers 6 and 7.
    case debug(exception: UInt32, instructionPointer: UInt64, dr6: UInt64, dr7: UInt64)  // KVM_EXIT_DEBUG
    /// The process's memory behind a guest physical address cannot be had; only where ``Capability/memoryFaultInfo``
    /// is there, otherwise the run throws `Errno.badAddress`.
    case memoryFault(flags: UInt64, guestPhysicalAddress: UInt64, size: UInt64)  // KVM_EXIT_MEMORY_FAULT
    /// The guest asked for a shutdown (1) or reset (2) or crashed (3); `details` are up to 16 words of eight bytes.
    case systemEvent(type: UInt32, details: ExitBytes)  // KVM_EXIT_SYSTEM_EVENT
    /// Any other exit, by its number; also one whose contents contradict themselves.
    case unsupported(reason: UInt32)  // KVM_EXIT_*
}
