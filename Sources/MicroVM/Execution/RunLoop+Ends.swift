import CShims
import LinuxKVM
import SystemPackage

/// What a call ends with, and where it was then.
extension RunLoop {
    /// What the call ends with, now that guest code has been left for good.
    ///
    /// - Parameters:
    ///   - error: what was thrown, if anything was.
    ///   - reason: why the call was to end before that, if it was.
    func cause(of error: (any Error)?, _ reason: CallState.Reason?) -> any Error {
        if let firstCause { return firstCause }
        let cause: any Error
        if let misbehaviour = error as? Misbehaviour {
            let fault = fault(misbehaviour)
            poison = .call(.guestFault)
            cause = SandboxError(
                .guestFault,
                fault.description + ".",
                SandboxError.Details(fault: fault, coreDump: coreDump(fault), meter: meter.endingNow()),
                underlyingError: misbehaviour.underlyingError
            )
            observer?.callEnds(.faulted(fault), cause)
        } else if let reason {
            cause = interrupted(reason, underlyingError: error)
        } else {
            if hasEnteredGuest { poison = .hostError }
            cause = error ?? SandboxError(.systemCallFailed, "The call ended for no reason.")
            observer?.callFails(currentImport.map { module.imports[$0].name }, cause, call: callNumber)
        }
        firstCause = cause
        debuggerSlot.withLock { $0 }?.callDidEnd(cause)
        return cause
    }

    func interrupted(_ reason: CallState.Reason, underlyingError: (any Error)?) -> SandboxError {
        // Before anything else is attempted.
        let violation = reason == .confinement ? ConfinementViolation.take() : nil
        // Pages that only this call was waiting for.
        for served in machine.memory.served { served?.abandonFaults(sandbox: 0) }
        let meter = meter.endingNow()
        var registers = GuestRegisters()
        var place = calledFunction
        if hasEnteredGuest {
            registers = currentRegisters()
            place = guestCodeAddress(registers)
        }
        let interruption = GuestInterruption(
            instructionPointer: place,
            module: module,
            imageBase: machine.memory.addressSpace.imageBase,
            hostFunction: currentImport.map { module.imports[$0].name },
            callDepth: depth,
            nanoseconds: meter.nanoseconds,
            registers: registers,
            backtrace: lastBacktrace(hasEnteredGuest ? registers : nil)
        )
        if hasEnteredGuest { poison = .call(reason.code) }
        let error = SandboxError(
            reason.code,
            violation?.description,
            SandboxError.Details(
                interruption: interruption,
                coreDump: coreDump(nil),
                meter: meter
            ),
            underlyingError: violation ?? underlyingError
        )
        observer?.callEnds(.interrupted(reason), error)
        return error
    }

    /// The registers as they are between two guest instructions.
    func currentRegisters() -> GuestRegisters {
        (try? completedRegisters()).map(GuestRegisters.init) ?? GuestRegisters()
    }

    /// Registers, after whatever the last exit left for the next entry to complete.
    func completedRegisters() throws(Errno) -> Registers {
        try completeExit()
        return debugging.isTracing ? try machine.registersWithoutTrace() : try machine.registers()
    }

    /// Has KVM finish the instruction of the last exit, where it has not.
    func completeExit() throws(Errno) {
        guard isExitPending else { return }
        try machine.virtualCPU.completePendingIO()
        isExitPending = false
    }

    /// The address of the guest's own code: where the library's trampoline or a thunk is at work, its caller.
    ///
    /// Before the function that was called has been entered there is no caller, nor when it has ended in a jump to an
    /// import, which then returns to the trampoline: in both cases it is that function.
    func guestCodeAddress(_ registers: GuestRegisters) -> UInt64 {
        let addressSpace = machine.memory.addressSpace
        guard (UInt64(SHIM_TRAMPOLINE)..<addressSpace.imageBase).contains(registers.rip) else { return registers.rip }
        guard addressSpace.permits(.read, address: registers.rsp, count: 8) else { return calledFunction }
        // Not lent: a host function may be at work.
        let word = machine.memory.inspect(at: registers.rsp, count: 8)
        let caller = word.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        return addressSpace.permits(.execute, address: caller, count: 1) ? caller : calledFunction
    }

    func symbol(at address: UInt64) -> GuestSymbol? {
        module.symbol(at: address, imageBase: machine.memory.addressSpace.imageBase)
    }

    func loadSpecialRegisters() -> SpecialRegisters? { try? machine.specialRegisters() }
}

extension GuestRegisters {
    init() {
        (rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp) = (0, 0, 0, 0, 0, 0, 0, 0)
        (r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags) = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    }

    init(_ registers: Registers) {
        (rax, rbx, rcx, rdx) = (registers.rax, registers.rbx, registers.rcx, registers.rdx)
        (rsi, rdi, rbp, rsp) = (registers.rsi, registers.rdi, registers.rbp, registers.rsp)
        (r8, r9, r10, r11) = (registers.r8, registers.r9, registers.r10, registers.r11)
        (r12, r13, r14, r15) = (registers.r12, registers.r13, registers.r14, registers.r15)
        (rip, rflags) = (registers.rip, registers.rflags)
    }
}
