import CShims
import LinuxKVM

/// What a guest was found doing, on its way to becoming a ``GuestFault`` with all that can be found out about it.
struct Misbehaviour: Error {
    var kind: GuestFault.Kind
    var vector: UInt8?
    var port: UInt16?
    var address: UInt64?
    var access: GuestFault.Access?
    var message: String?
    var underlyingError: (any Error)?
    /// Whether the guest is waiting in an import, so that the caller of the import is where it happened.
    var isInHostCall = false
    /// All that was found out about it, where somebody has looked already.
    var fault: GuestFault?

    init(
        _ kind: GuestFault.Kind,
        vector: UInt8? = nil,
        port: UInt16? = nil,
        address: UInt64? = nil,
        access: GuestFault.Access? = nil,
        message: String? = nil,
        isInHostCall: Bool = false
    ) {
        self.kind = kind
        self.vector = vector
        self.port = port
        self.address = address
        self.access = access
        self.message = message
        self.isInHostCall = isInHostCall
    }
}

extension RunLoop {
    /// The guest used a port that is not one of the two for calls: a ring-0 stub reports an exception, or ring 3 tries
    /// its luck where the privilege level permits every port.
    func portFault(_ port: UInt16) -> Misbehaviour {
        let base = UInt16(SHIM_EXCEPTION_PORT_BASE)
        if (base..<base + 32).contains(port) { return Misbehaviour(.processorException, vector: UInt8(port - base)) }
        return Misbehaviour(.portAccess, port: port)
    }

    /// An exit that no guest of this library has a reason to cause.
    func unexpectedExit(_ exit: Exit) -> Misbehaviour {
        switch exit {
        case .ioIn(let port, _, _, _):
            return Misbehaviour(.portAccess, port: port)
        case .hlt:
            return Misbehaviour(.halted)
        case .shutdown:
            return Misbehaviour(.shutdown, message: "The processor shut down after a triple fault.")
        // What KVM emulates for a guest, it carries out in this way where there are no pages.
        case .mmioRead(let address, _):
            return machine.memory.takeServedFailure()?.0 ?? machine.memory.explain(address, .read)
        case .mmioWrite(let address, _):
            return machine.memory.takeServedFailure()?.0 ?? machine.memory.explain(address, .write)
        case .internalError(let suberror, _):
            return Misbehaviour(.hypervisor, message: "KVM had an internal error (suberror \(suberror)).")
        case .failEntry(let reason, _):
            let code = String(reason, radix: 16)
            return Misbehaviour(.hypervisor, message: "The processor refused to enter the guest (reason 0x\(code)).")
        case .memoryFault(_, let address, _):
            return machine.memory.explain(address, nil)
        case .systemEvent(let type, _):
            return Misbehaviour(.hypervisor, message: "The guest caused system event \(type).")
        case .unsupported(let reason):
            let message = "KVM stopped for reason \(reason), which no guest here may cause."
            return Misbehaviour(.hypervisor, message: message)
        case .debug, .interrupted, .ioOut:
            return Misbehaviour(.hypervisor, message: "KVM stopped without a reason.")
        }
    }

    /// Finds out all there is to know about what the guest did.
    func fault(_ misbehaviour: Misbehaviour) -> GuestFault {
        if let fault = misbehaviour.fault { return fault }
        guard let registers = try? completedRegisters() else {
            return makeFault(misbehaviour, registers: GuestRegisters(), place: 0)
        }
        if let vector = misbehaviour.vector {
            if let frame = exceptionFrame(vector: vector, registers: registers) {
                return exceptionFault(vector: vector, frame: frame, registers: GuestRegisters(registers))
            }
            // Ring 3 used the port of a stub.
            let forged = Misbehaviour(.portAccess, port: UInt16(SHIM_EXCEPTION_PORT_BASE) + UInt16(vector))
            return portAccessFault(forged, registers: GuestRegisters(registers))
        }
        let general = GuestRegisters(registers)
        if misbehaviour.kind == .portAccess { return portAccessFault(misbehaviour, registers: general) }
        let place = misbehaviour.isInHostCall ? guestCodeAddress(general) : general.rip
        return makeFault(misbehaviour, registers: general, place: place)
    }

    /// The frame of the exception whose stub is at work, if one is.
    func exceptionFrame(vector: UInt8, registers: Registers) -> Supervisor.ExceptionFrame? {
        var frame = Supervisor.exceptionFrame(vector: vector, registers: registers, memory: machine.memory)
        if debugging.isTracing { frame?.rflags &= ~Supervisor.traceFlag }
        return frame
    }

    private func makeFault(
        _ misbehaviour: Misbehaviour,
        registers: GuestRegisters,
        place: UInt64,
        errorCode: UInt64? = nil
    ) -> GuestFault {
        GuestFault(
            kind: misbehaviour.kind,
            vector: misbehaviour.vector,
            errorCode: errorCode,
            address: misbehaviour.address,
            access: misbehaviour.access,
            port: misbehaviour.port,
            message: misbehaviour.message,
            instructionPointer: place,
            symbol: symbol(at: place),
            registers: registers,
            backtrace: backtrace(registers)
        )
    }

    /// An `in` or `out` that KVM carried out instead of refusing it: the same fault as where it was refused, at the
    /// instruction, which the processor has left behind by now.
    private func portAccessFault(_ misbehaviour: Misbehaviour, registers: GuestRegisters) -> GuestFault {
        var registers = registers
        let shortForm: [UInt8] = [0xec, 0xed, 0xee, 0xef]
        if !isPortInstruction(at: registers.rip) {
            let last = instructionBytes(at: registers.rip &- 1, count: 1).first
            registers.rip &-= last.map(shortForm.contains) == true ? 1 : 2
        }
        var fault = makeFault(misbehaviour, registers: registers, place: registers.rip, errorCode: 0)
        fault.vector = 13
        return fault
    }

    private func exceptionFault(
        vector: UInt8,
        frame: Supervisor.ExceptionFrame,
        registers interrupted: GuestRegisters
    ) -> GuestFault {
        var registers = interrupted
        (registers.rip, registers.rsp, registers.rflags) = (frame.rip, frame.rsp, frame.rflags)
        var misbehaviour = Misbehaviour(Self.kinds[vector] ?? .processorException, vector: vector)
        switch vector {
        case 14:
            describePageFault(&misbehaviour, frame: frame, registers: &registers)
        case 13 where isPortInstruction(at: registers.rip):
            misbehaviour.kind = .portAccess
            misbehaviour.port = port(ofInstructionAt: registers.rip, registers: registers)
        case 6 where isSystemCallInstruction(at: registers.rip), 13 where isSystemCallInstruction(at: registers.rip):
            misbehaviour.kind = .systemCall
        case 13 where (frame.errorCode ?? 0) & 1 << 1 != 0:
            // The error code names a gate of the interrupt descriptor table: only `int` looks for one from ring 3.
            misbehaviour.kind = .systemCall
        default:
            break
        }
        // What has turned out to be no exception of the guest's has no error code either.
        let errorCode = misbehaviour.vector == nil ? nil : frame.errorCode
        return makeFault(misbehaviour, registers: registers, place: registers.rip, errorCode: errorCode)
    }

    private static let kinds: [UInt8: GuestFault.Kind] = [
        0: .divideError, 1: .debugTrap, 3: .breakpoint, 4: .overflow, 5: .boundRange, 6: .invalidInstruction,
        12: .stackSegment, 13: .generalProtection, 14: .memoryAccess, 16: .floatingPoint, 17: .alignmentCheck,
        19: .vectorFloatingPoint,
    ]

    /// Error code bits: Intel SDM volume 3A, 4.7.
    private func describePageFault(
        _ misbehaviour: inout Misbehaviour,
        frame: Supervisor.ExceptionFrame,
        registers: inout GuestRegisters
    ) {
        let errorCode = frame.errorCode ?? 0
        misbehaviour.access = errorCode & 1 << 4 != 0 ? .execute : errorCode & 1 << 1 != 0 ? .write : .read
        misbehaviour.address = loadSpecialRegisters()?.cr2
        // A KVM that does not virtualise the system call instruction sends it to the address in an MSR that nobody has
        // set: then the return address in %rcx lies just behind the instruction.
        if misbehaviour.access == .execute, registers.rip == 0,
            instructionBytes(at: registers.rcx &- 2, count: 2) == [0x0f, 0x05]
        {
            misbehaviour = Misbehaviour(.systemCall)
            registers.rip = registers.rcx &- 2
        } else if let address = misbehaviour.address, machine.memory.addressSpace.isStackGuard(address) {
            misbehaviour.kind = .stackOverflow
        }
    }

    private func instructionBytes(at address: UInt64, count: UInt64) -> [UInt8] {
        unsafe (try? machine.memory.guestBytes(at: address, count: count, for: .execute)).map { unsafe Array($0) } ?? []
    }

    /// `syscall`, `sysenter` or `int`.
    private func isSystemCallInstruction(at address: UInt64) -> Bool {
        let bytes = instructionBytes(at: address, count: 2)
        return bytes == [0x0f, 0x05] || bytes == [0x0f, 0x34] || bytes.first == 0xcd
    }

    /// `in` and `out` in all their forms: E4 to E7 with the port in the instruction, EC to EF and the string forms 6C
    /// to 6F with the port in %dx, after prefixes.
    private func isPortInstruction(at address: UInt64) -> Bool { portOpcode(at: address) != nil }

    private func portOpcode(at address: UInt64) -> (opcode: UInt8, address: UInt64)? {
        var address = address
        for _ in 0..<4 {
            guard let byte = instructionBytes(at: address, count: 1).first else { return nil }
            switch byte {
            case 0xe4...0xe7, 0xec...0xef, 0x6c...0x6f: return (byte, address)
            case 0x66, 0x67, 0xf2, 0xf3, 0x40...0x4f: address &+= 1
            default: return nil
            }
        }
        return nil
    }

    private func port(ofInstructionAt address: UInt64, registers: GuestRegisters) -> UInt16? {
        guard let (opcode, address) = portOpcode(at: address) else { return nil }
        guard (0xe4...0xe7).contains(opcode) else { return UInt16(truncatingIfNeeded: registers.rdx) }
        return instructionBytes(at: address &+ 1, count: 1).first.map(UInt16.init)
    }
}
