import CShims
import LinuxKVM
import SystemPackage

/// Carries guest calls out: enters the guest, answers its exits, and ends the call one way or the other.
///
/// Used on the virtual CPU's thread only, once it has been made. A call is: ``beginCall(timeLimit:)``, arguments
/// through ``argumentWriter()``, ``run(function:arguments:)``, the result through ``resultReader()``, ``endCall()``.
final class RunLoop {
    /// What an import is answered with.
    enum Import {
        case hostFunction(HostFunction)
        case library(LibraryFunction)
        /// Code in the trampoline, which needs no answer.
        case threadLocalAddress
        /// A weak import that nobody provides is a null pointer in the guest, so only a forged call gets here.
        case absent
    }

    /// How a call ended half way. In words only when somebody asks.
    private enum Poison {
        case call(SandboxError.Code)
        case hostError

        var ending: String {
            switch self {
            case .call(let code): code.ending ?? "ended"
            case .hostError: "ended in an error of the host"
            }
        }
    }

    let machine: GuestMachine
    let module: GuestModule
    let interruptHandle: LinuxInterruptHandle
    let output: SandboxConfiguration.Output
    private let imports: [Import]
    private let thread: VirtualCPUThread

    /// Why the memory may be inconsistent, once a call has ended half way.
    private var poison: Poison?
    private var isInCall = false
    private var callBegan = MonotonicTime.zero
    private var timer: Int32?
    private var isTimerArmed = false
    /// Whether guest code has run in this call: if not, ending it leaves nothing half done.
    private var hasEnteredGuest = false
    /// Whether the last exit was one that KVM completes at the next entry, so that registers must not be read before.
    private var isExitPending = false
    private var calledFunction: UInt64 = 0
    private var arenaPosition: UInt64
    /// The import whose host function is at work.
    private(set) var currentImport: Int?

    init(
        machine: GuestMachine,
        module: GuestModule,
        imports: [Import],
        interruptHandle: LinuxInterruptHandle,
        thread: VirtualCPUThread,
        output: SandboxConfiguration.Output
    ) {
        self.machine = machine
        self.module = module
        self.imports = imports
        self.interruptHandle = interruptHandle
        self.thread = thread
        self.output = output
        arenaPosition = machine.memory.addressSpace.arena.lowerBound
        unsafe interruptHandle.setImmediateExit(machine.virtualCPU.immediateExit)
    }

    deinit {
        // After this nobody touches the mapping of the virtual CPU any more, so it may go.
        if let timer { shim_timer_delete(timer) }
        interruptHandle.close()
    }

    /// Traps on any thread but the virtual CPU's: signals would be sent to the wrong one.
    func assertOnThread() { thread.checkIsolated() }

    // MARK: - One call

    func beginCall(timeLimit: Duration?) throws(SandboxError) {
        guard !isInCall else {
            throw SandboxError(
                .busy,
                "A guest call of this sandbox is under way; a host function cannot begin another one."
            )
        }
        if let poison {
            throw SandboxError(
                .poisoned,
                """
                An earlier call \(poison.ending). The guest's memory may be inconsistent, so this sandbox runs no more \
                calls; make a new one.
                """
            )
        }
        let timer = timeLimit == nil ? nil : try existingTimer()
        interruptHandle.beginCall()
        isInCall = true
        hasEnteredGuest = false
        arenaPosition = machine.memory.addressSpace.arena.lowerBound
        callBegan = .now
        if let timeLimit, let timer {
            interruptHandle.armDeadline(timeLimit, timer: timer)
            isTimerArmed = true
        }
        // A cancellation from before this beginning found nothing to end; one from now on does.
        if Task.isCancelled { interruptHandle.cancelForTask() }
    }

    func endCall() {
        if isTimerArmed, let timer {
            interruptHandle.disarmDeadline(timer: timer)
            isTimerArmed = false
        }
        isInCall = false
        currentImport = nil
        interruptHandle.endCall()
    }

    private func existingTimer() throws(SandboxError) -> Int32 {
        if let timer { return timer }
        switch interruptHandle.makeTimer() {
        case .success(let made):
            timer = made
            return made
        case .failure(let failure):
            throw SandboxError(
                .systemCallFailed,
                "Could not make a timer for the time limit.",
                underlyingError: Errno(rawValue: failure.code)
            )
        }
    }

    func argumentWriter() -> GuestValueWriter {
        .arguments(mailbox: machine.mailbox, memory: machine.memory, arenaPosition: arenaPosition)
    }

    func resultReader() -> GuestValueReader { .result(mailbox: machine.mailbox, memory: machine.memory) }

    /// Calls a guest function whose arguments have been written, and comes back when it has returned.
    ///
    /// - Throws: ``SandboxError`` or what a host function threw; in both cases the call has ended, and the sandbox is
    ///   poisoned if guest code had run.
    func run(function: UInt64, arguments: GuestValueWriter) throws {
        calledFunction = function
        arenaPosition = arguments.arenaPosition
        machine.mailbox.setStackArgumentCount(UInt32(arguments.stackArgumentCount))
        machine.mailbox.setFunction(function)
        machine.mailbox.giveToGuest()
        let interruption: LinuxInterruptHandle.Reason?
        do {
            interruption = try runToReturn()
        } catch let misbehaviour as Misbehaviour {
            let fault = fault(misbehaviour)
            poison = .call(.guestFault)
            throw SandboxError(.guestFault, fault.description + ".", fault: fault)
        } catch {
            if hasEnteredGuest { poison = .hostError }
            throw error
        }
        if let interruption { throw interrupted(interruption) }
    }

    /// Runs the module's initialisers, all under one limit, as the dynamic loader would: with no arguments to speak of.
    func runInitializers(_ addresses: [UInt64], timeLimit: Duration?) throws {
        try beginCall(timeLimit: timeLimit)
        defer { endCall() }
        for address in addresses {
            var writer = argumentWriter()
            // argc, argv, envp.
            for _ in 0..<3 { try writer.appendInteger(0) }
            try run(function: address, arguments: writer)
        }
    }

    /// Enters the guest until the function has returned, or the call is to be ended from outside for the reason that
    /// is returned.
    private func runToReturn() throws -> LinuxInterruptHandle.Reason? {
        while true {
            switch interruptHandle.enter() {
            case .enter: break
            case .end(let reason): return reason
            }
            // Not before: a request that came during a host call is found here, and the call was there when it came.
            currentImport = nil
            hasEnteredGuest = true
            let exit: Exit
            do throws(Errno) {
                exit = try machine.virtualCPU.run()
            } catch {
                interruptHandle.leave()
                throw SandboxError(.systemCallFailed, "KVM_RUN failed in the guest.", underlyingError: error)
            }
            interruptHandle.leave()
            switch exit {
            case .ioOut(let port, let size, let count, _):
                isExitPending = true
                // Wider or repeated ones reach the neighbouring ports as well, which the bitmap forbids.
                guard size == 1, count == 1 else { throw Misbehaviour(.portAccess, port: port) }
                if port == UInt16(SHIM_PORT_RETURN) { return nil }
                guard port == UInt16(SHIM_PORT_HOST_CALL) else { throw portFault(port) }
                interruptHandle.wakeSleepers()
                // A call that shall end ends before a host function is begun for it.
                if let reason = interruptHandle.pendingReason { return reason }
                try answerHostCall()
                machine.mailbox.giveToGuest()
            case .interrupted:
                isExitPending = false
                if let reason = interruptHandle.pendingReason { return reason }
                interruptHandle.wakeSleepers()
                interruptHandle.countSpuriousKick()
            default:
                throw unexpectedExit(exit)
            }
        }
    }

    // MARK: - Host calls

    private func answerHostCall() throws {
        let index = machine.mailbox.importIndex
        guard index < UInt64(imports.count) else {
            throw Misbehaviour(.invalidHostCall, message: "There is no import \(index).", isInHostCall: true)
        }
        currentImport = Int(index)
        var reader = GuestValueReader.arguments(mailbox: machine.mailbox, memory: machine.memory)
        var writer = GuestValueWriter.result(
            mailbox: machine.mailbox,
            memory: machine.memory,
            arenaPosition: arenaPosition
        )
        do {
            switch imports[Int(index)] {
            case .hostFunction(let function):
                try function.body(HostCallContext(memory: machine.memory), &reader, &writer)
            case .library(let function):
                try function.call(self, &reader, &writer)
            case .absent, .threadLocalAddress:
                throw Misbehaviour(.invalidHostCall, message: "Import \(index) is not provided.", isInHostCall: true)
            }
        } catch let invalid as InvalidHostCallArgument {
            let violation = invalid.error.underlyingError as? GuestPointerViolation
            throw Misbehaviour(
                violation == nil ? .invalidHostCall : .invalidPointer,
                address: violation?.address,
                access: violation?.access,
                message: invalid.error.message,
                isInHostCall: true
            )
        }
        machine.mailbox.setCommand(.returnResult)
    }

    // MARK: - Ends

    private func interrupted(_ reason: LinuxInterruptHandle.Reason) -> SandboxError {
        let hostFunction = currentImport.map { module.imports[$0].name }
        var registers = GuestRegisters()
        var place = calledFunction
        if hasEnteredGuest {
            registers = currentRegisters()
            place = guestCodeAddress(registers)
        }
        let interruption = GuestInterruption(
            instructionPointer: place,
            symbol: symbol(at: place),
            hostFunction: hostFunction,
            duration: callBegan.duration(to: .now),
            registers: registers
        )
        let code: SandboxError.Code =
            switch reason {
            case .killed: .killed
            case .taskCancelled: .taskCancelled
            case .timeLimit: .timeLimitExceeded
            }
        if hasEnteredGuest { poison = .call(code) }
        return SandboxError(code, interruption: interruption)
    }

    /// The registers as they are between two guest instructions.
    func currentRegisters() -> GuestRegisters {
        (try? completedRegisters()).map(GuestRegisters.init) ?? GuestRegisters()
    }

    /// Registers, after whatever the last exit left for the next entry to complete.
    func completedRegisters() throws(Errno) -> Registers {
        if isExitPending {
            try machine.virtualCPU.completePendingIO()
            isExitPending = false
        }
        return try machine.registers()
    }

    /// The address of the guest's own code: where the library's trampoline or a thunk is at work, its caller.
    ///
    /// Before the function that was called has been entered there is no caller, nor when it has ended in a jump to an
    /// import, which then returns to the trampoline: in both cases it is that function.
    func guestCodeAddress(_ registers: GuestRegisters) -> UInt64 {
        let addressSpace = machine.memory.addressSpace
        guard (UInt64(SHIM_TRAMPOLINE)..<addressSpace.imageBase).contains(registers.rip) else { return registers.rip }
        guard let word = unsafe try? machine.memory.guestBytes(at: registers.rsp, count: 8, for: .read),
            case let caller = unsafe word.loadUnaligned(as: UInt64.self),
            addressSpace.permits(.execute, address: caller, count: 1)
        else { return calledFunction }
        return caller
    }

    func symbol(at address: UInt64) -> GuestSymbol? {
        let addressSpace = machine.memory.addressSpace
        guard address >= addressSpace.imageBase, address - addressSpace.imageBase < addressSpace.imageSize else {
            return nil
        }
        return module.symbol(at: address - addressSpace.imageBase)
    }

    func loadSpecialRegisters() -> SpecialRegisters? { try? machine.virtualCPU.specialRegisters() }
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
