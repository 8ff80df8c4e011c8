import CShims
import Glibc
import LinuxKVM
public import SystemPackage

extension Sandbox {
    /// Writes the guest's registers and memory to a file that debuggers open: `gdb plugin.so plugin.core`.
    ///
    /// The sandbox is stopped while this writes, if it is not stopped already; a synchronous host function is waited
    /// for. A call that is under way goes on afterwards as if nothing had happened. After a fault or a kill, and until
    /// the sandbox is restored or closed, the file shows where the call ended.
    ///
    /// Pages of zeros are holes in the file, so that it takes about as much of the disk as the guest has written,
    /// however large it looks. It has all of the guest's memory in it, with whatever secrets that holds, and only its
    /// owner may read it.
    ///
    /// - Parameters:
    ///   - path: a file that is not there yet.
    ///   - maximumSize: the bytes that the file may take of the disk; as many as it takes unless given. What does not
    ///     fit is left out, the stack last.
    /// - Throws: ``SandboxError``: `.systemCallFailed` when the file cannot be written, which then is not left behind;
    ///   `.closed`; `.reentrantCall` from a host function of the same sandbox.
    public nonisolated func coreDump(to path: FilePath, maximumSize: UInt64 = .max) async throws(SandboxError) {
        try await observe { runLoop throws(SandboxError) in
            try runLoop.writeCoreDump(to: CoreDumpFile(path), maximumSize: maximumSize)
        }
    }
}

extension RunLoop {
    /// The core dump of a call that has just ended half way, where the configuration wants one.
    ///
    /// - Parameter fault: what the guest did; nothing for a call that was ended from outside.
    func coreDump(_ fault: GuestFault?) -> SandboxError.CoreDumpResult? {
        lastFault = fault
        guard let policy = configuration.coreDumps, fault != nil || policy.includesKills, hasEnteredGuest else {
            return nil
        }
        do throws(SandboxError) {
            let file = try policy.createFile(module: module.name)
            let path = file.path
            try writeCoreDump(to: file, maximumSize: policy.maximumSize)
            return .success(path)
        } catch {
            return .failure(error)
        }
    }

    func writeCoreDump(to file: CoreDumpFile, maximumSize: UInt64) throws(SandboxError) {
        let registers: GuestRegisters
        let special: SpecialRegisters
        let extendedState: [UInt8]
        do throws(Errno) {
            let general = try completedRegisters()
            special = try machine.specialRegisters()
            registers = userRegisters(GuestRegisters(general), special)
            extendedState = try readExtendedState()
        } catch {
            throw SandboxError(.systemCallFailed, "KVM does not give the registers.", underlyingError: error)
        }
        let notes = coreDumpNotes(registers, CoreDumpNotes.Segments(special), extendedState)
        var dump = try CoreDump(machine.memory, notes: notes, stackPointer: registers.rsp)
        try dump.write(to: file, maximumSize: maximumSize)
        try file.complete()
    }

    /// The registers as ring 3 had them, also where a stub of ring 0 is about to report an exception.
    private func userRegisters(_ registers: GuestRegisters, _ special: SpecialRegisters) -> GuestRegisters {
        if let lastFault, lastFault.registers != GuestRegisters() { return lastFault.registers }
        guard !Supervisor.isUserMode(special),
            let frame = Supervisor.exceptionFrame(of: registers, memory: machine.memory)
        else { return registers }
        var registers = registers
        (registers.rip, registers.rsp, registers.rflags) = (frame.rip, frame.rsp, frame.rflags)
        return registers
    }

    private func readExtendedState() throws(Errno) -> [UInt8] {
        // By the guest's own processor, because KVM may not tell all; where that does not run any more, as KVM tells.
        if !isMachineBroken,
            let registers = try? machine.callRegisters(clearInterrupt: { interruptHandle.clearImmediateExit() })
        {
            return registers.extendedState
        }
        return try machine.virtualCPU.xsave()
    }

    private func coreDumpNotes(
        _ registers: GuestRegisters,
        _ segments: CoreDumpNotes.Segments,
        _ extendedState: [UInt8]
    ) -> CoreDumpNotes {
        let signal: CoreDumpNotes.Signal =
            if let lastFault { lastFault.signal } else if hasEndedCall { .init(number: SIGKILL) } else { .init() }
        var notes = CoreDumpNotes()
        notes.appendRegisters(registers, segments, signal)
        notes.appendExtendedState(extendedState, components: machine.extendedStateComponents)
        notes.appendSignal(signal)
        let path = module.path ?? module.name
        let name = FilePath(path).lastComponent?.string ?? module.name
        notes.appendProcess(name: name, arguments: path)
        notes.appendAuxiliaryVector(auxiliaryVector)
        if let path = module.path { notes.appendFile(path, fileMappings) }
        return notes
    }

    /// What the dynamic loader would have been told: debuggers find out from it where the module lies.
    private var auxiliaryVector: [(type: Int32, value: UInt64)] {
        let slide = machine.memory.addressSpace.imageBase &- module.fileBase
        let file = ELFReader(bytes: module.bytes)
        var entries: [(type: Int32, value: UInt64)] = [
            (AT_PAGESZ, AddressSpace.pageSize), (AT_ENTRY, file.load(UInt64.self, at: 24) &+ slide),
        ]
        let headers = file.load(UInt64.self, at: 32)
        let count = UInt64(file.load(UInt16.self, at: 56))
        let size = count * ELF.programHeaderSize
        // Only where they are in memory as well.
        let segment = module.segments.first {
            headers >= $0.fileOffset && headers - $0.fileOffset <= $0.fileSize
                && size <= $0.fileSize - (headers - $0.fileOffset)
        }
        if let segment {
            let address = machine.memory.addressSpace.imageBase + segment.address + (headers - segment.fileOffset)
            entries += [(AT_PHDR, address), (AT_PHENT, ELF.programHeaderSize), (AT_PHNUM, count)]
        }
        return entries
    }

    private var fileMappings: [(addresses: Range<UInt64>, fileOffset: UInt64)] {
        let base = machine.memory.addressSpace.imageBase
        return module.segments.prefix(1000).filter { $0.fileSize > 0 }.map { segment in
            let start = segment.address & ~(AddressSpace.pageSize - 1)
            let end = (segment.address + segment.fileSize).roundedUp(to: AddressSpace.pageSize)
            // Address and offset are the same within a page, or the module would have been refused.
            return (base + start..<base + end, segment.fileOffset & ~(AddressSpace.pageSize - 1))
        }
    }
}

extension GuestFault {
    /// What Linux would have sent a process for this.
    var signal: CoreDumpNotes.Signal {
        switch kind {
        case .memoryAccess, .outOfBounds, .stackOverflow:
            // SEGV_ACCERR where something is there (bit 0 of the error code), SEGV_MAPERR where nothing is.
            .init(number: SIGSEGV, code: (errorCode ?? 0) & 1 != 0 ? 2 : 1, address: address ?? 0)
        case .memoryUnavailable: .init(number: SIGBUS, code: 2, address: address ?? 0)  // BUS_ADRERR
        case .alignmentCheck: .init(number: SIGBUS, code: 1, address: address ?? 0)  // BUS_ADRALN
        case .stackSegment: .init(number: SIGBUS, code: 0x80)  // SI_KERNEL
        case .divideError: .init(number: SIGFPE, code: 1, address: instructionPointer)  // FPE_INTDIV
        case .floatingPoint, .vectorFloatingPoint: .init(number: SIGFPE, code: 7, address: instructionPointer)
        case .debugTrap: .init(number: SIGTRAP, code: 2, address: instructionPointer)  // TRAP_TRACE
        case .breakpoint: .init(number: SIGTRAP, code: 0x80)
        case .invalidInstruction: .init(number: SIGILL, code: 2, address: instructionPointer)  // ILL_ILLOPN
        case .systemCall: .init(number: SIGSYS, code: 1, address: instructionPointer)
        case .generalProtection, .portAccess, .overflow, .boundRange, .processorException, .invalidPointer:
            .init(number: SIGSEGV, code: 0x80, address: address ?? 0)
        case .abort, .stackCorruption, .invalidHostCall: .init(number: SIGABRT, code: -6)  // SI_TKILL
        case .halted, .shutdown, .hypervisor: .init(number: SIGKILL)
        }
    }
}
