import CShims
import LinuxKVM
import SystemPackage

/// What limits one call, and who else knows of it.
struct CallOptions: Sendable {
    /// By the clock.
    var timeLimit: Duration?
    /// In CPU time of the virtual CPU's thread.
    var cpuTimeLimit: Duration?
    /// The call as it was named before it began.
    var pending: PendingCall?
    /// Whether it goes on with a call that a snapshot was taken in the middle of.
    var resumes = false
}

/// Carries guest calls out: enters the guest, answers its exits, and ends the call one way or the other.
///
/// Used on the virtual CPU's thread only, once it has been made. A call is: ``beginCall(_:)``, arguments through
/// ``argumentWriter()``, ``run(function:arguments:)``, the result through ``resultReader()``, ``endCall()``.
final class RunLoop {
    /// What an import is answered with.
    enum Import {
        case hostFunction(HostFunction)
        case library(LibraryFunction)
        /// Code in the trampoline, which needs no answer.
        case threadLocalAddress
        /// A weak import that nobody provides is a null pointer in the guest, so only a forged call gets here.
        case absent

        /// Where it leads to in the guest.
        var target: GuestImage.ImportTarget {
            switch self {
            case .hostFunction, .library: .thunk
            case .threadLocalAddress: .threadLocalAddress
            case .absent: .absent
            }
        }
    }

    /// How a call ended half way. In words only when somebody asks.
    private enum Poison {
        case call(SandboxError.Code)
        case hostError
        case restore

        var ending: String {
            switch self {
            case .call(let code): code.ending ?? "ended"
            case .hostError: "ended in an error of the host"
            case .restore: "failed half way"
            }
        }
    }

    let machine: GuestMachine
    let module: GuestModule
    /// The module's image that the memory was made from, or that of the snapshot.
    let image: GuestImage
    let imports: [Import]
    let configuration: SandboxConfiguration
    let interruptHandle: LinuxInterruptHandle
    let thread: VirtualCPUThread
    /// What host functions are given to get back here.
    unowned let reference: RunLoopReference

    /// Why the memory may be inconsistent, once a call has ended half way.
    private var poison: Poison?
    private(set) var isInCall = false
    /// Whether the call is over when the function that is running returns.
    private var isLastFunction = true
    private var callNumber: UInt64 = 0
    private var pendingCall: PendingCall?
    var meter = CallMeter()
    var timer = LimitTimer(.timeLimit)
    private var cpuTimer = LimitTimer(.cpuTimeLimit)
    /// Whether guest code has run in this call: if not, ending it leaves nothing half done.
    private var hasEnteredGuest = false
    /// Why guest code of this call was left for good, half way: what the call ends with, whatever else comes.
    private var firstCause: (any Error)?
    /// Whether the last exit was one that KVM completes at the next entry, so that registers must not be read before.
    private var isExitPending = false
    private(set) var calledFunction: UInt64 = 0
    private(set) var arenaPosition: UInt64
    /// The call that a snapshot was taken in the middle of, and that nobody has gone on with yet.
    private(set) var suspendedCall: SuspendedCall?
    /// Whether the call is being held before its next entry.
    var isParked = false
    /// Whether the call is one of the module's initialisers.
    private(set) var isInitializing = false
    /// Whether the virtual CPU may not be as an ordinary exit leaves it.
    private(set) var isMachineBroken = false
    /// The import whose host function is at work.
    private(set) var currentImport: Int?
    /// The host calls that are under way, the innermost last: the numbers that their contexts carry.
    private var hostCalls: [UInt64] = []
    private var hostCallCount: UInt64 = 0
    /// Whom the host functions of a call keep waiting: this sandbox, if nobody waits for the call.
    private let chain: HostCallChain
    private var isChainBound = false
    /// How many of the calls under way were made from inside a host call.
    private(set) var depth = 0

    init(
        machine: GuestMachine,
        module: GuestModule,
        image: GuestImage,
        imports: [Import],
        suspendedCall: SuspendedCall?,
        configuration: SandboxConfiguration,
        reference: RunLoopReference
    ) {
        self.machine = machine
        self.module = module
        self.image = image
        self.suspendedCall = suspendedCall
        self.imports = imports
        self.configuration = configuration
        self.reference = reference
        chain = HostCallChain(reference, outer: nil)
        interruptHandle = reference.interruptHandle
        thread = reference.thread
        arenaPosition = machine.memory.addressSpace.arena.lowerBound
        hostCalls.reserveCapacity(configuration.maximumCallDepth + 1)
        unsafe interruptHandle.setImmediateExit(machine.virtualCPU.immediateExit)
        if machine.memory.served.contains(where: { $0 != nil }) { knowServedMemory() }
    }

    deinit {
        // After this nobody touches the mapping of the virtual CPU any more, so it may go.
        timer.delete()
        cpuTimer.delete()
        interruptHandle.close()
    }

    /// Traps on any thread but the virtual CPU's: signals would be sent to the wrong one.
    func assertOnThread() { thread.checkIsolated() }

    // MARK: - One call

    func beginCall(_ options: CallOptions) throws(SandboxError) {
        guard !isInCall else {
            throw SandboxError(
                .busy,
                "A guest call of this sandbox is under way; a host function makes nested ones through its context."
            )
        }
        try checkPoison("so this sandbox runs no more calls until it is restored to a snapshot")
        guard options.resumes == (suspendedCall != nil) else {
            throw options.resumes
                ? SandboxError(.invalidArgument, "There is no call to go on with.")
                : SandboxError(.busy, "The sandbox is in the middle of a call, to go on with or to restore it from.")
        }
        let timeLimit = options.timeLimit ?? configuration.timeLimit
        let cpuTimeLimit = options.cpuTimeLimit ?? configuration.cpuTimeLimit
        if timeLimit != nil { try timer.make(interruptHandle) }
        if cpuTimeLimit != nil { try cpuTimer.make(interruptHandle) }
        callNumber = interruptHandle.beginCall()
        isInCall = true
        isLastFunction = true
        hasEnteredGuest = false
        firstCause = nil
        arenaPosition = machine.memory.addressSpace.arena.lowerBound
        meter = CallMeter(
            measuringCPUTime: configuration.measuresCPUTime || cpuTimeLimit != nil || options.pending != nil
        )
        if let pending = options.pending {
            pendingCall = pending
            if let reason = pending.begin(callNumber) {
                _ = try? interruptHandle.terminate(call: callNumber, reason)
            }
        }
        if let timeLimit { timer.arm(interruptHandle, nanoseconds: timeLimit.nanosecondsClamped) }
        if let cpuTimeLimit { cpuTimer.arm(interruptHandle, nanoseconds: cpuTimeLimit.nanosecondsClamped) }
        // A cancellation from before this beginning found nothing to end; one from now on does.
        if Task.isCancelled { interruptHandle.cancelForTask() }
    }

    /// Whether a call or a restore has ended half way.
    var isPoisoned: Bool { poison != nil }

    func checkPoison(_ consequence: String) throws(SandboxError) {
        guard let poison else { return }
        let message =
            "An earlier call or restore \(poison.ending). The guest's memory may be inconsistent, \(consequence)."
        throw SandboxError(.poisoned, message)
    }

    /// From here on the sandbox is neither what it was nor what it shall be.
    func willRestore() { poison = .restore }

    /// The sandbox is what a snapshot is of.
    func didRestore(_ call: SuspendedCall?) {
        poison = nil
        suspendedCall = call
        isExitPending = false
        isMachineBroken = false
        interruptHandle.clearInternalStop()
    }

    func endCall() {
        timer.disarm(interruptHandle)
        cpuTimer.disarm(interruptHandle)
        isInCall = false
        currentImport = nil
        firstCause = nil
        meter.end()
        if let pendingCall {
            pendingCall.statistics.withLock { $0 = meter.statistics }
            self.pendingCall = nil
        }
        interruptHandle.endCall()
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
        give(function, arguments)
        try runToEnd()
    }

    /// Goes on with a call whose registers have been set, and whose memory is as it was.
    func run(suspended call: SuspendedCall) throws {
        suspendedCall = nil
        // It was there before, and must not be taken for a sandbox without a call when it ends now.
        hasEnteredGuest = true
        calledFunction = call.function
        arenaPosition = call.arenaPosition
        try runToEnd()
    }

    private func runToEnd() throws {
        let reason: CallState.Reason?
        do {
            reason = try runToReturn()
        } catch {
            // Settled before it is known what for: a request from before is the cause, a later one is too late.
            throw cause(of: error, interruptHandle.decide())
        }
        if let reason { throw cause(of: nil, reason) }
    }

    /// What a call ends with whose arguments could not be passed: whoever was told before that it would end was told
    /// the truth.
    func refusal(of function: UInt64, for error: any Error) -> any Error {
        calledFunction = function
        return interruptHandle.decide().map { interrupted($0, underlyingError: error) } ?? error
    }

    /// Calls a guest function from inside a host call: it runs on the guest's stack above the import's caller.
    ///
    /// - Throws: as ``run(function:arguments:)``. Once guest code has been left half way, the guest is not entered
    ///   again in this call: its outer part ends as well, when the host function does.
    func runNested(function: UInt64, arguments: GuestValueWriter) throws {
        let outer = (currentImport, arenaPosition)
        depth += 1
        meter.nestedCalls += 1
        defer {
            depth -= 1
            (currentImport, arenaPosition) = outer
            // The host function goes on, maybe for long.
            interruptHandle.wakeSleepers()
        }
        machine.mailbox.setCommand(.callFunction)
        give(function, arguments)
        let reason: CallState.Reason?
        do {
            reason = try runToReturn()
        } catch {
            throw cause(of: error, interruptHandle.pendingReason)
        }
        if let reason { throw cause(of: nil, reason) }
    }

    private func give(_ function: UInt64, _ arguments: GuestValueWriter) {
        arenaPosition = arguments.arenaPosition
        machine.mailbox.setStackArgumentCount(UInt32(arguments.stackArgumentCount))
        machine.mailbox.setFunction(function)
        machine.mailbox.giveToGuest()
    }

    /// Runs the module's initialisers, all under one limit, as the dynamic loader would: with no arguments to speak of.
    func runInitializers(_ addresses: [UInt64]) throws {
        try beginCall(
            CallOptions(
                timeLimit: configuration.initializerTimeLimit,
                cpuTimeLimit: configuration.initializerCPUTimeLimit
            )
        )
        isInitializing = true
        defer {
            isInitializing = false
            endCall()
        }
        for (index, address) in addresses.enumerated() {
            var writer = argumentWriter()
            // argc, argv, envp.
            for _ in 0..<3 { try writer.appendInteger(0) }
            isLastFunction = index == addresses.count - 1
            try run(function: address, arguments: writer)
        }
    }

    /// Enters the guest until the function has returned, or the call is to be ended from outside for the reason that
    /// is returned.
    private func runToReturn() throws -> CallState.Reason? {
        if let firstCause { throw firstCause }
        let isNested = depth > 0
        let settles = !isNested && isLastFunction
        while true {
            switch interruptHandle.enter() {
            case .enter: break
            case .end(let reason):
                guard interruptHandle.isHeldAgainstKills else { return reason }
                park()
                continue
            case .stop:
                park()
                continue
            case .debugInterrupt:
                meter.debugInterrupts += 1
                interruptHandle.clearDebugInterrupt()
                continue
            }
            // Not before: a request that came during a host call is found here, and the call was there when it came.
            currentImport = nil
            hasEnteredGuest = true
            meter.exits += 1
            machine.memory.returnLentCopies()
            let exit: Exit
            do throws(Errno) {
                exit = try machine.virtualCPU.run()
            } catch {
                let reason = interruptHandle.leave(settling: !isNested).reason
                let served = machine.memory.takeServedFailure()
                // A kill did not wait for a page.
                if let reason, served?.wasAbandoned == true { return reason }
                throw served?.0 ?? failure(of: error)
            }
            switch exit {
            // Wider or repeated ones reach the neighbouring ports as well, which the bitmap forbids.
            case .ioOut(UInt16(SHIM_PORT_HOST_CALL), 1, 1, _):
                let before = interruptHandle.leave(settling: false)
                isExitPending = true
                interruptHandle.wakeSleepers()
                // A call that shall end ends before a host function is begun for it.
                if let reason = before.reason { return reason }
                guard isChainBound else { return try runToReturnWithinChain() }
                try answerHostCall()
                machine.mailbox.giveToGuest()
            case .ioOut(UInt16(SHIM_PORT_RETURN), 1, 1, _) where !isNested,
                .ioOut(UInt16(SHIM_PORT_NESTED_RETURN), 1, 1, _) where isNested:
                isExitPending = true
                // Whoever has asked for the end before this has been promised it.
                return interruptHandle.leave(settling: settles).reason
            case .interrupted:
                let before = interruptHandle.leave(settling: false)
                isExitPending = false
                if let reason = before.reason { return reason }
                interruptHandle.wakeSleepers()
                if !before.has(CallState.requests) { interruptHandle.countSpuriousKick() }
            default:
                // The first of several functions ends the call too when it faults.
                _ = interruptHandle.leave(settling: !isNested)
                throw misbehaviour(exit)
            }
        }
    }

    /// Goes on from a call's first host call, with the task knowing whom its host functions keep waiting: the tasks
    /// they start inherit that. Once for all host calls, and not for calls that make none.
    private func runToReturnWithinChain() throws -> CallState.Reason? {
        isChainBound = true
        defer { isChainBound = false }
        return try HostCallChain.$current.withValue(.extended(by: chain)) {
            try answerHostCall()
            machine.mailbox.giveToGuest()
            return try runToReturn()
        }
    }

    /// KVM_RUN has failed: as a rule because memory could not be had that the guest has touched.
    private func failure(of error: Errno) -> any Error {
        if error == .badAddress {
            let place = machine.findAccess { interruptHandle.clearImmediateExit() }
            return machine.memory.explain(place?.address, place?.access)
        }
        isMachineBroken = true
        return SandboxError(.systemCallFailed, "KVM_RUN failed in the guest.", underlyingError: error)
    }

    private func misbehaviour(_ exit: Exit) -> Misbehaviour {
        guard case .ioOut(let port, let size, let count, _) = exit else {
            isMachineBroken = true
            return unexpectedExit(exit)
        }
        isExitPending = true
        guard size == 1, count == 1 else {
            isMachineBroken = true
            return Misbehaviour(.portAccess, port: port)
        }
        // Where it is expected it has not got here. The other port is a nested call's alone.
        if port == UInt16(SHIM_PORT_RETURN) {
            return Misbehaviour(.invalidHostCall, message: "The guest returned past a host function that is at work.")
        }
        return portFault(port)
    }

    // MARK: - Host calls

    private func answerHostCall() throws {
        let index = machine.mailbox.importIndex
        guard index < UInt64(imports.count) else {
            throw Misbehaviour(.invalidHostCall, message: "There is no import \(index).", isInHostCall: true)
        }
        currentImport = Int(index)
        meter.hostCalls += 1
        var reader = GuestValueReader.arguments(mailbox: machine.mailbox, memory: machine.memory)
        var writer = GuestValueWriter.result(
            mailbox: machine.mailbox,
            memory: machine.memory,
            arenaPosition: arenaPosition
        )
        do {
            switch imports[Int(index)] {
            case .hostFunction(let function):
                interruptHandle.points.reach(.enteringHostFunction)
                defer { interruptHandle.points.reach(.leftHostFunction) }
                hostCallCount &+= 1
                hostCalls.append(hostCallCount)
                defer { hostCalls.removeLast() }
                try function.call(self, context, &reader, &writer)
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
        // A host function that has caught the failure of its own nested call cannot undo it.
        if let firstCause { throw firstCause }
        machine.mailbox.setCommand(.returnResult)
    }

    private var context: HostCallContext {
        HostCallContext(
            reference: reference,
            memory: machine.memory,
            callNumber: callNumber,
            hostCallNumber: hostCallCount
        )
    }

    /// The writer for a nested call's arguments, which lie behind those of the calls it is nested in.
    func nestedArgumentWriter() throws(SandboxError) -> GuestValueWriter {
        guard depth < configuration.maximumCallDepth else {
            throw SandboxError(
                .callTooDeep,
                "\(depth) nested calls are under way, and maximumCallDepth allows no more."
            )
        }
        return argumentWriter()
    }

    /// The address of an exported function.
    func address(of name: String) throws(SandboxError) -> UInt64 {
        try machine.memory.addressSpace.imageBase + module.exportedFunction(named: name).address
    }

    /// Takes a result that the guest has left.
    func loadResult<Result>(
        _ load: (inout GuestValueReader) throws(SandboxError) -> Result
    ) throws(SandboxError) -> Result {
        var reader = resultReader()
        do throws(SandboxError) {
            return try load(&reader)
        } catch {
            var error = error
            // What a guest returns is its result, also when that is a pointer that is not its own.
            error.code = .invalidResult
            throw error
        }
    }

    /// Whether a host call is under way, so that its context may be used.
    func isUnderWay(hostCall number: UInt64) -> Bool { hostCalls.contains(number) }

    // MARK: - Ends

    /// What the call ends with, now that guest code has been left for good.
    ///
    /// - Parameters:
    ///   - error: what was thrown, if anything was.
    ///   - reason: why the call was to end before that, if it was.
    private func cause(of error: (any Error)?, _ reason: CallState.Reason?) -> any Error {
        if let firstCause { return firstCause }
        let cause: any Error
        if let misbehaviour = error as? Misbehaviour {
            let fault = fault(misbehaviour)
            poison = .call(.guestFault)
            cause = SandboxError(
                .guestFault,
                fault.description + ".",
                SandboxError.Details(fault: fault, statistics: meter.statistics),
                underlyingError: misbehaviour.underlyingError
            )
        } else if let reason {
            cause = interrupted(reason, underlyingError: error)
        } else {
            if hasEnteredGuest { poison = .hostError }
            cause = error ?? SandboxError(.systemCallFailed, "The call ended for no reason.")
        }
        firstCause = cause
        return cause
    }

    private func interrupted(_ reason: CallState.Reason, underlyingError: (any Error)?) -> SandboxError {
        // Pages that only this call was waiting for.
        for served in machine.memory.served { served?.abandonFaults(sandbox: 0) }
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
            duration: meter.duration,
            registers: registers
        )
        if hasEnteredGuest { poison = .call(reason.code) }
        return SandboxError(
            reason.code,
            nil,
            SandboxError.Details(interruption: interruption, statistics: meter.statistics),
            underlyingError: underlyingError
        )
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
