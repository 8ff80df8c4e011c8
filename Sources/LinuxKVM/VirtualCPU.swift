internal import CShims
public import Synchronization
public import SystemPackage

/// A virtual CPU.
///
/// All of it is for one thread at a time, and better always for the same one: moving it makes the kernel wait. Only
/// ``immediateExit`` is for others. The handle owns its file descriptor and its shared memory, and releases both when
/// it goes.
public struct VirtualCPU: ~Copyable {
    // Destroyed in this order: unmapped, then closed.
    let mapping: RunMapping
    let fileDescriptor: OwnedFileDescriptor
    /// Bytes; 0 where only the older request is there.
    let extendedStateSize: Int32

    init(
        fileDescriptor: consuming OwnedFileDescriptor,
        mappingSize: Int,
        mappingHint: UnsafeMutableRawPointer?,
        extendedStateSize: Int32
    ) throws(Errno) {
        // Safe: nothing is done there unless the kernel maps it.
        self.mapping = unsafe try RunMapping(virtualCPU: fileDescriptor, size: mappingSize, hint: mappingHint)
        self.fileDescriptor = fileDescriptor
        self.extendedStateSize = extendedStateSize
    }

    /// Runs the guest until it exits.
    ///
    /// One system call, no allocation. A run that was broken off by a signal or by ``immediateExit`` is the exit
    /// ``Exit/interrupted``; it is never begun again here.
    ///
    /// - Throws: `Errno.badAddress` when guest memory could not be had and the kernel does not say where, with the
    ///   guest still at the access; `Errno.resourceTemporarilyUnavailable` when the virtual CPU waits to be started
    ///   by another (``MultiprocessingState/uninitialized``); `Errno.invalidArgument` when the shared register sets
    ///   are not all known to the kernel, or their values are impossible.
    ///
    /// The C equivalent is `KVM_RUN` (KVM API, 4.10).
    public borrowing func run() throws(Errno) -> Exit {
        let result = shim_kvm_run(fileDescriptor.rawValue)
        // Safe, here and below: the mapping lives as long as this virtual CPU.
        let reason = unsafe CInt(bitPattern: shim_kvm_exit_reason(mapping.run))
        guard result >= 0 else {
            if result == -Errno.interrupted.rawValue { return .interrupted }
            // The kernel leaves this reason with the error; others are left from before.
            if reason == KVM_EXIT_MEMORY_FAULT { return memoryFault() }
            throw Errno(rawValue: -result)
        }
        switch reason {
        case KVM_EXIT_IO: return portAccess()
        case KVM_EXIT_MMIO: return memoryAccess()
        case KVM_EXIT_HLT: return .hlt
        case KVM_EXIT_SHUTDOWN: return .shutdown
        case KVM_EXIT_INTR: return .interrupted
        case KVM_EXIT_FAIL_ENTRY:
            let failure = unsafe shim_kvm_exit_fail_entry(mapping.run)
            return .failEntry(hardwareReason: failure.reason, cpu: failure.cpu)
        case KVM_EXIT_INTERNAL_ERROR:
            let report = unsafe shim_kvm_exit_internal_error(mapping.run)
            guard let details = details(of: report) else { break }
            return .internalError(suberror: report.type, details: details)
        case KVM_EXIT_DEBUG:
            let event = unsafe shim_kvm_exit_debug(mapping.run)
            return .debug(
                exception: event.exception,
                instructionPointer: event.pc,
                dr6: event.dr6,
                dr7: event.dr7
            )
        case KVM_EXIT_SYSTEM_EVENT:
            let report = unsafe shim_kvm_exit_system_event(mapping.run)
            guard let details = details(of: report) else { break }
            return .systemEvent(type: report.type, details: details)
        case KVM_EXIT_MEMORY_FAULT: return memoryFault()
        default: break
        }
        return .unsupported(reason: UInt32(bitPattern: reason))
    }

    @inline(__always)
    private borrowing func portAccess() -> Exit {
        let io = unsafe shim_kvm_exit_io(mapping.run)
        // Neither factor can be large enough for the product to overflow.
        guard let bytes = mapping.bytes(at: io.data_offset, count: UInt64(io.size) * UInt64(io.count)) else {
            return .unsupported(reason: UInt32(KVM_EXIT_IO))
        }
        if io.direction == KVM_EXIT_IO_OUT {
            return .ioOut(port: io.port, size: io.size, count: io.count, bytes: bytes)
        }
        return .ioIn(port: io.port, size: io.size, count: io.count, bytes: bytes)
    }

    private borrowing func memoryAccess() -> Exit {
        let mmio = unsafe shim_kvm_exit_mmio(mapping.run)
        guard mmio.length <= 8,
            let bytes = mapping.bytes(at: UInt64(shim_kvm_mmio_data_offset), count: UInt64(mmio.length))
        else {
            return .unsupported(reason: UInt32(KVM_EXIT_MMIO))
        }
        return mmio.is_write != 0
            ? .mmioWrite(address: mmio.address, bytes: bytes) : .mmioRead(address: mmio.address, bytes: bytes)
    }

    private borrowing func memoryFault() -> Exit {
        let fault = unsafe shim_kvm_exit_memory_fault(mapping.run)
        return .memoryFault(flags: fault.flags, guestPhysicalAddress: fault.address, size: fault.size)
    }

    /// The words of a report, of which there are 16 at most whatever it says.
    private borrowing func details(of report: shim_kvm_report) -> ExitBytes? {
        mapping.bytes(at: UInt64(shim_kvm_report_words_offset), count: UInt64(min(report.count, 16)) * 8)
    }

    /// A byte that, when it is not 0, makes the present or the next ``run()`` return ``Exit/interrupted`` before the
    /// guest executes anything.
    ///
    /// The kernel looks at it once, on the way into the guest: a virtual CPU that is already in the guest leaves only
    /// for a signal, whose handler can set the byte for the case that the guest was not yet entered. It is not
    /// cleared by anybody but its users.
    ///
    /// The address is the same as long as this virtual CPU lives and may be used from any thread and from signal
    /// handlers, also through other atomic types of one byte; never after the virtual CPU is gone.
    ///
    /// The C equivalent is `kvm_run.immediate_exit` (KVM API, 5).
    public var immediateExit: UnsafePointer<Atomic<UInt8>> {
        // Safe: the offset is asserted in C, the byte is mapped, and an atomic byte has a byte's layout.
        unsafe UnsafeRawPointer(mapping.run)
            .advanced(by: shim_kvm_immediate_exit_offset)
            .assumingMemoryBound(to: Atomic<UInt8>.self)
    }

    /// Ends the instruction that the last exit was for, without executing another: registers may be read after it.
    ///
    /// What the guest reads must be in the exit's bytes by now. ``immediateExit`` is set, and is 0 afterwards: a
    /// request to leave the guest that comes in meanwhile must have left a mark somewhere else too.
    ///
    /// - Returns: ``Exit/interrupted`` when the instruction is complete; otherwise its next part, to be handled, and
    ///   completed, as the exit it is.
    /// - Throws: as ``run()``.
    ///
    /// The C equivalent is `KVM_RUN` with `kvm_run.immediate_exit` set (KVM API, 5).
    @discardableResult
    public borrowing func completePendingIO() throws(Errno) -> Exit {
        // Safe: the address is valid while self is. Relaxed: it is this thread that enters the kernel.
        unsafe immediateExit.pointee.store(1, ordering: .relaxed)
        defer { unsafe immediateExit.pointee.store(0, ordering: .relaxed) }
        return try run()
    }
}
