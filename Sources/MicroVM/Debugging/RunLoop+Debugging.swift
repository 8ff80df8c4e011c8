import CShims
import LinuxKVM
import SystemPackage

/// What has been done to a guest for its debugger.
struct DebuggingState {
    /// Whether the trace flag was set at the last entry, and so is none of the guest's.
    var isTracing = false
    /// Whether the guest goes on from a breakpoint, which is not to be met again before the next instruction.
    var isSteppingOff = false
    /// The bytes of the instruction that is being stepped.
    var steppedInstruction: [UInt8] = []
    /// What is watched, as it was before the last entry.
    var watched: [Debugger.Watchpoint] = []
    /// The breakpoints in the guest's memory, while it runs, with what they have replaced.
    var planted: [(address: UInt64, original: UInt8)] = []
    /// Those that were there when it last ran.
    var lastPlanted: [UInt64] = []
}

/// What the virtual CPU's thread does for a debugger. Breakpoints are in the guest's memory only while the guest runs:
/// whoever else looks there, a snapshot, a restore or a host function, never sees one.
extension RunLoop {
    private static let breakpointInstruction: UInt8 = 0xcc

    // MARK: - Around an entry

    /// Makes the guest ready to run as a debugger wants it to.
    func arm(_ debugger: Debugger) throws {
        debugging.lastPlanted.removeAll(keepingCapacity: true)
        let plan = debugger.plan
        let mustStep = plan.stepsInstructions || debugging.isSteppingOff
        // Most entries have no register to be looked at.
        guard mustStep || debugging.isTracing || !plan.breakpoints.isEmpty else { return }
        do throws(Errno) {
            var place: UInt64?
            if mustStep || debugging.isTracing {
                var registers = try completedRegisters()
                debugging.isTracing = mustStep
                if mustStep {
                    debugging.steppedInstruction = instruction(at: registers.rip)
                    debugging.watched = plan.watchpoints.map {
                        Debugger.Watchpoint(addresses: $0, contents: contents(of: $0))
                    }
                    registers.rflags |= Supervisor.traceFlag
                    try machine.setRegisters(registers)
                }
                if debugging.isSteppingOff { place = registers.rip }
            }
            for address in plan.breakpoints where address != place { plant(at: address) }
        } catch {
            disarm()
            throw SandboxError(.systemCallFailed, "KVM does not take the registers.", underlyingError: error)
        }
    }

    private func plant(at address: UInt64) {
        let memory = machine.memory
        // There the guest gets no further by itself, and nothing of its data need be changed.
        guard !isStack(address), let original = memory.inspect(at: address, count: 1).first,
            memory.patch([Self.breakpointInstruction], at: address)
        else { return }
        debugging.planted.append((address, original))
    }

    private func isStack(_ address: UInt64) -> Bool { machine.memory.addressSpace.stack.contains(address) }

    /// The guest has been left: its memory is its own again.
    func disarm() {
        guard !debugging.planted.isEmpty else { return }
        for breakpoint in debugging.planted {
            _ = machine.memory.patch([breakpoint.original], at: breakpoint.address)
            debugging.lastPlanted.append(breakpoint.address)
        }
        debugging.planted.removeAll(keepingCapacity: true)
    }

    // MARK: - Holding

    /// Somebody has called for attention in a debugger's name.
    func heedDebugger() throws {
        // Before anything is looked at: who changes something later calls again.
        interruptHandle.clearDebugInterrupt()
        guard let debugger = debuggerSlot.withLock({ $0 }), debugger.isEngaged else {
            meter.debugInterrupts += 1
            return try forgetDebugger()
        }
        self.debugger = debugger
        guard debugger.heed() else { return }
        try finishException()
        hold(for: debugger)
    }

    /// A debugger has left, maybe in the middle of a step: nobody else would know what to make of what it has caused.
    private func forgetDebugger() throws {
        guard debugger != nil else { return }
        try finishException()
        if debugging.isTracing {
            do throws(Errno) {
                // Takes the flag away.
                _ = try completedRegisters()
            } catch {
                throw SandboxError(.systemCallFailed, "KVM does not take the registers.", underlyingError: error)
            }
        }
        debugging = DebuggingState()
        debugger = nil
    }

    private func hold(for debugger: Debugger) {
        hold(stoppingClock: true) { debugger.isHolding }
        debugger.holdDidEnd()
        noteResumption(debugger)
    }

    /// A breakpoint at the place that the guest goes on from is for the next time it gets there.
    private func noteResumption(_ debugger: Debugger) {
        guard let registers = try? completedRegisters() else { return }
        debugging.isSteppingOff = debugger.plan.breakpoints.contains(registers.rip)
    }

    /// The guest may have been left between an exception and its report. Where it is held is always its own code, and
    /// what the exception tells a debugger is not lost.
    func finishException() throws {
        guard debugger != nil, (try? isExceptionUnderWay) == true else { return }
        let exit: Exit
        do throws(Errno) {
            exit = try machine.runStub { interruptHandle.clearImmediateExit() }
        } catch {
            throw SandboxError(.systemCallFailed, "KVM_RUN failed in the guest.", underlyingError: error)
        }
        if try !isForDebugger(exit), let error = examined(misbehaviour(exit)) { throw error }
    }

    private var isExceptionUnderWay: Bool {
        get throws(Errno) {
            // Before the registers are looked at without the trace flag, and what that has caused is forgotten.
            try completeExit()
            return try machine.isExceptionUnderWay(tracing: debugging.isTracing)
        }
    }

    // MARK: - Exceptions

    /// Whether the guest has got to a breakpoint or the end of a step, and goes on when the debugger lets it.
    func isForDebugger(_ exit: Exit) throws -> Bool {
        guard let debugger, case .ioOut(let port, 1, 1, _) = exit, let vector = portFault(port).vector,
            [1, 3, 14].contains(vector)
        else { return false }
        isExitPending = true
        do throws(Errno) {
            let registers = try completedRegisters()
            guard let frame = exceptionFrame(vector: vector, registers: registers) else { return false }
            if vector != 1 {
                let place = vector == 3 ? frame.rip &- 1 : frame.rip
                let isBreakpoint =
                    vector == 3
                    ? debugging.lastPlanted.contains(place)
                    : isStack(place) && debugger.plan.breakpoints.contains(place)
                guard isBreakpoint else { return false }
                try machine.returnFromException(frame, to: place)
                if debugger.hold(.breakpoint) { hold(for: debugger) }
            } else {
                guard debugging.isTracing else { return false }
                try machine.returnFromException(frame, to: frame.rip)
                hidePushedTraceFlag(stackPointer: frame.rsp)
                debugging.isSteppingOff = false
                if let event = event(at: frame.rip, debugger.plan), debugger.hold(event) { hold(for: debugger) }
            }
            return true
        } catch {
            throw SandboxError(.systemCallFailed, "KVM does not take the registers.", underlyingError: error)
        }
    }

    /// What the end of a step is, to the debugger; nothing where it wants to go further.
    private func event(at place: UInt64, _ plan: Debugger.Plan) -> Debugger.Event? {
        for watchpoint in debugging.watched where contents(of: watchpoint.addresses) != watchpoint.contents {
            return .watchpoint(watchpoint.addresses.lowerBound)
        }
        switch plan.step {
        case nil: return nil
        case .instruction: return .step
        case .range(let range): return range.contains(place) ? nil : .step
        }
    }

    /// `pushf` has shown the guest a flag that is none of its own.
    private func hidePushedTraceFlag(stackPointer: UInt64) {
        let opcode = debugging.steppedInstruction.first(where: { $0 != 0x66 && !(0x40...0x4f).contains($0) })
        guard opcode == 0x9c, let byte = machine.memory.inspect(at: stackPointer &+ 1, count: 1).first
        else { return }
        _ = machine.memory.patch([byte & ~1], at: stackPointer &+ 1)
    }

    private func instruction(at address: UInt64) -> [UInt8] { machine.memory.inspect(at: address, count: 4) }

    private func contents(of addresses: Range<UInt64>) -> [UInt8] {
        machine.memory.inspect(at: addresses.lowerBound, count: addresses.count)
    }

    // MARK: - Faults

    /// Shows a debugger what a call is about to end in, and waits until it has seen enough.
    ///
    /// - Parameter isFinal: whether the guest cannot go on from there, whatever the debugger says.
    /// - Returns: what the call ends in; nothing when the guest is to go on.
    func examined(_ error: any Error, isFinal: Bool = false) -> (any Error)? {
        guard var misbehaviour = error as? Misbehaviour, misbehaviour.fault == nil,
            let debugger = debuggerSlot.withLock({ $0 }), debugger.isEngaged
        else { return error }
        self.debugger = debugger
        let fault = fault(misbehaviour)
        misbehaviour.fault = fault
        var canGoOn = !isFinal && !isMachineBroken
        if let vector = misbehaviour.vector, let registers = try? completedRegisters(),
            let frame = exceptionFrame(vector: vector, registers: registers)
        {
            // What the fault says of the place is better than the frame where the two differ.
            let place = fault.registers.rip
            canGoOn = canGoOn && (try? machine.returnFromException(frame, to: place)) != nil
        }
        guard debugger.hold(.fault(fault)) else { return misbehaviour }
        hold(for: debugger)
        return debugger.takeForgetsFault() && canGoOn ? nil : misbehaviour
    }
}
