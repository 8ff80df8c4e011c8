import CShims
import LinuxKVM
import SystemPackage

/// One virtual machine with one virtual CPU and its memory, ready to run ring-3 code.
///
/// Made and used on one thread only. Stored properties are in the order in which they must go: the virtual CPU before
/// the virtual machine, and both before the memory.
final class GuestMachine {
    let virtualCPU: VirtualCPU
    private let virtualMachine: VirtualMachine
    let memory: GuestMemory
    let mailbox: Mailbox
    private let hypervisor: Hypervisor
    /// What the registers are when a call begins in a guest that has never run.
    private let initialRegisters: Registers
    private let initialSpecialRegisters: SpecialRegisters
    private let extendedState: Trampoline.ExtendedState
    /// Whether the registers that are shared with the kernel are the initial special ones, and no events: it leaves
    /// there what was put there last.
    private var sharesInitialState = false
    /// Whether the guest's memory could not be given back to it after ``findAccess(clearInterrupt:)``.
    private var hasLostMemory = false

    /// Makes the machine around a memory that has the library's pages in it; the registers are those of `entry`.
    init(
        _ hypervisor: Hypervisor,
        memory: GuestMemory,
        platform: Hypervisor.Platform,
        entry: UInt64 = Trampoline.entry
    ) throws(SandboxError) {
        self.hypervisor = hypervisor
        self.memory = memory
        mailbox = Mailbox(in: memory)
        extendedState = platform.extendedState
        let addressSpace = memory.addressSpace
        var general = Registers()
        general.rip = entry
        general.rsp = addressSpace.stack.upperBound
        general.rflags = platform.portPermission.flags
        initialRegisters = general
        do throws(Errno) {
            virtualMachine = try hypervisor.kvm.createVirtualMachine()
            unsafe try virtualMachine.setMemory(slot: 0, guestPhysicalAddress: 0, memory: memory.bytes)
            // Where only this machine has anything, if there is such a place.
            virtualCPU = unsafe try virtualMachine.createVirtualCPU(
                mappingSize: hypervisor.virtualCPUMappingSize,
                mappingHint: memory.neighbour
            )
            try virtualCPU.setCPUID(hypervisor.features.entries)
            var special = try hypervisor.initialSpecialRegisters(of: virtualCPU)
            Supervisor.configure(
                &special,
                pageTableRoot: addressSpace.pageTables.lowerBound,
                threadPointer: addressSpace.threadPointer,
                features: hypervisor.features
            )
            initialSpecialRegisters = special
            if hypervisor.features.hasXSave {
                // Before CR4.OSXSAVE is set with the other special registers, at the first entry.
                let state = ExtendedControlRegister(index: 0, value: hypervisor.features.extendedState)
                try virtualCPU.setExtendedControlRegisters([state])
            }
            // From then on every exit leaves the general registers there, for what a system call would cost only once.
            if hypervisor.sharesRegisters { virtualCPU.validShared = [.registers] }
            try Self.setRegisters(of: virtualCPU, hypervisor, general, special, nil)
        } catch {
            throw SandboxError(
                .systemCallFailed,
                "KVM could not make a virtual machine; a limit on memory or open files may have been reached.",
                underlyingError: error
            )
        }
    }

    // MARK: - Registers

    func setRegisters(
        _ general: Registers,
        _ special: SpecialRegisters,
        _ events: VirtualCPUEvents?
    ) throws(Errno) {
        sharesInitialState = false
        try Self.setRegisters(of: virtualCPU, hypervisor, general, special, events)
    }

    private static func setRegisters(
        of virtualCPU: borrowing VirtualCPU,
        _ hypervisor: Hypervisor,
        _ general: Registers,
        _ special: SpecialRegisters,
        _ events: VirtualCPUEvents?
    ) throws(Errno) {
        if hypervisor.sharesRegisters {
            // Taken over by the next KVM_RUN, for the price of no system call.
            virtualCPU.sharedRegisters = general
            virtualCPU.sharedSpecialRegisters = special
            virtualCPU.dirtyShared.formUnion([.registers, .specialRegisters])
        } else {
            try virtualCPU.setSpecialRegisters(special)
            try virtualCPU.setRegisters(general)
        }
        guard let events else { return }
        if hypervisor.sharesEvents {
            virtualCPU.sharedEvents = events
            virtualCPU.dirtyShared.insert(.events)
        } else {
            try virtualCPU.setEvents(events)
        }
    }

    /// The general registers as the last exit left them.
    func registers() throws(Errno) -> Registers {
        hypervisor.sharesRegisters ? virtualCPU.sharedRegisters : try virtualCPU.registers()
    }

    /// The segment, table and control registers.
    func specialRegisters() throws(Errno) -> SpecialRegisters {
        // Those that have been set and not been taken over yet, or the kernel's.
        let isSet = virtualCPU.dirtyShared.contains(.specialRegisters)
        return isSet ? virtualCPU.sharedSpecialRegisters : try virtualCPU.specialRegisters()
    }

    /// What is about to be delivered.
    private func events() throws(Errno) -> VirtualCPUEvents {
        // The kernel still has an exception that has been forgotten since the last entry.
        let isSet = virtualCPU.dirtyShared.contains(.events)
        return isSet ? virtualCPU.sharedEvents : try virtualCPU.events()
    }

    /// Makes every register what it was before the guest first ran: at the next entry, and but for one case without a
    /// system call.
    ///
    /// General and segment registers with FS and GS base, the flags, and what was about to be delivered (an exception
    /// that the guest had just caused when it was killed) travel in the page that is shared with the kernel. The
    /// extended state is reset by the trampoline, where the guest begins, before any of its own code runs.
    /// Model-specific, control and debug registers are out of ring 3's reach. KVM finishes the instruction of its last
    /// exit at the next entry only when the instruction pointer is still the same, which it is not: no `out` is where
    /// the guest begins.
    ///
    /// - Parameter isBroken: whether the virtual CPU has shut down or failed, and so may not be as it was otherwise.
    /// - Throws: also where the guest has lost its memory, which is for good.
    func reset(isBroken: Bool) throws(Errno) {
        if hasLostMemory { throw .badAddress }
        var general = initialRegisters
        general.rip = extendedState.reset
        if isBroken {
            finishAccess()
            try virtualCPU.setMultiprocessingState(.runnable)
            try virtualCPU.setDebugRegisters(DebugRegisters())
            if hypervisor.features.hasXSave {
                let state = ExtendedControlRegister(index: 0, value: hypervisor.features.extendedState)
                try virtualCPU.setExtendedControlRegisters([state])
            }
        }
        if sharesInitialState {
            virtualCPU.sharedRegisters = general
            virtualCPU.dirtyShared = [.registers, .specialRegisters, .events]
            return
        }
        try setRegisters(general, initialSpecialRegisters, VirtualCPUEvents())
        sharesInitialState = hypervisor.sharesRegisters && hypervisor.sharesEvents
    }

    // MARK: - The state of a call that is held

    /// XCR0, as far as KVM has been told; a guest can have more.
    var extendedStateComponents: UInt64 { hypervisor.features.extendedState }

    /// All that a virtual CPU knows of a call it is in the middle of.
    struct CallRegisters: Sendable {
        var general: Registers
        var system: System
        /// What XSAVE, or FXSAVE, has stored.
        var extendedState: [UInt8]

        enum System: Sendable {
            /// As KVM told.
            case whole(SpecialRegisters, VirtualCPUEvents)
            /// As a file says, of a guest in ring 3: what ring 3 can change itself.
            case user(fsBase: UInt64, gsBase: UInt64, selectors: [UInt16])
        }
    }

    /// Reads the registers between two guest instructions, and leaves them as they are.
    ///
    /// The extended state is stored by the trampoline: what KVM tells of it is not all that a guest can have on every
    /// KVM. The page it is stored in is given back its old contents.
    ///
    /// - Parameter clearInterrupt: called before each entry, for requests to get out again that nobody is to see here.
    func callRegisters(clearInterrupt: () -> Void) throws(Errno) -> CallRegisters {
        let general = try registers()
        let special = try specialRegisters()
        let events = try events()
        // The library's own pages, inside the memory.
        let area = unsafe memory.hostBytes(
            at: AddressSpace.vectorState.lowerBound,
            count: AddressSpace.vectorState.count
        )
        let before = unsafe Array(area)
        memory.forgetWritten()
        // XSAVE leaves out what is initial, and believes the header.
        unsafe area.initializeMemory(as: UInt8.self, repeating: 0)
        let state: [UInt8]
        do throws(Errno) {
            try runStub(extendedState.save, clearInterrupt)
            unsafe state = Array(area)
            unsafe area.copyBytes(from: before)
        } catch {
            // The call goes on where it was, with or without a snapshot.
            unsafe area.copyBytes(from: before)
            try setRegisters(general, special, events)
            throw error
        }
        let used = state.lastIndex { $0 != 0 }.map { $0 + 1 } ?? 0
        try setRegisters(general, special, events)
        return CallRegisters(
            general: general,
            system: .whole(special, events),
            extendedState: Array(state[..<used])
        )
    }

    /// Sets all registers to those of a call, to go on with it at the next entry.
    func setCallRegisters(_ registers: CallRegisters, clearInterrupt: () -> Void) throws(Errno) {
        let area = unsafe memory.hostBytes(
            at: AddressSpace.vectorState.lowerBound,
            count: AddressSpace.vectorState.count
        )
        guard registers.extendedState.count <= area.count else { throw .invalidArgument }
        let before = unsafe Array(area)
        memory.forgetWritten()
        unsafe area.initializeMemory(as: UInt8.self, repeating: 0)
        unsafe area.copyBytes(from: registers.extendedState)
        defer { unsafe area.copyBytes(from: before) }
        try runStub(extendedState.load, clearInterrupt)
        switch registers.system {
        case .whole(let special, let events):
            try setRegisters(registers.general, special, events)
        case .user(let fsBase, let gsBase, let selectors):
            var special = initialSpecialRegisters
            Supervisor.setUserState(of: &special, fsBase: fsBase, gsBase: gsBase, selectors: selectors)
            var general = registers.general
            general.rflags = general.rflags & Supervisor.userFlags | initialRegisters.rflags
            try setRegisters(general, special, VirtualCPUEvents())
        }
    }

    /// Runs a few instructions of the trampoline that end in the port of a return, in a guest that is not to notice.
    private func runStub(_ address: UInt64, _ clearInterrupt: () -> Void) throws(Errno) {
        var general = initialRegisters
        general.rip = address
        try setRegisters(general, initialSpecialRegisters, VirtualCPUEvents())
        while true {
            clearInterrupt()
            switch try virtualCPU.run() {
            case .interrupted: continue
            case .ioOut(UInt16(SHIM_PORT_RETURN), 1, 1, _):
                try virtualCPU.completePendingIO()
                return
            default: throw .notSupported
            }
        }
    }

    // MARK: - Debugging

    /// Sets the general registers at the next entry.
    func setRegisters(_ general: Registers) throws(Errno) {
        if hypervisor.sharesRegisters {
            virtualCPU.sharedRegisters = general
            virtualCPU.dirtyShared.insert(.registers)
        } else {
            try virtualCPU.setRegisters(general)
        }
    }

    /// The general registers, with the trace flag cleared, and a debug exception forgotten that it may have caused in
    /// the meantime.
    func registersWithoutTrace() throws(Errno) -> Registers {
        var general = try registers()
        guard general.rflags & Supervisor.traceFlag != 0 else { return general }
        general.rflags &= ~Supervisor.traceFlag
        try setRegisters(general, try specialRegisters(), VirtualCPUEvents())
        return general
    }

    /// Whether the guest was left between an exception and its stub's report.
    ///
    /// - Parameter tracing: whether that can be one of the trace flag's that has not got to its stub. The flag itself
    ///   may be gone again: `popf` has taken it away by the time the exception comes.
    func isExceptionUnderWay(tracing: Bool) throws(Errno) -> Bool {
        let stubs = UInt64(SHIM_SUPERVISOR_CODE)..<UInt64(SHIM_SUPERVISOR_TABLES)
        if stubs.contains(try registers().rip) { return true }
        guard tracing else { return false }
        let exception = try events().exception
        return exception.vector == 1 && (exception.injected || exception.pending)
    }

    /// Puts the guest back to where an exception was raised, as if there had been none.
    ///
    /// - Parameter rip: the instruction it goes on with.
    func returnFromException(_ frame: Supervisor.ExceptionFrame, to rip: UInt64) throws(Errno) {
        var general = try registers()
        (general.rip, general.rsp, general.rflags) = (rip, frame.rsp, frame.rflags)
        var special = try specialRegisters()
        // The others are what they were: the processor changes no more when it enters the stub.
        (special.cs, special.ss) = (initialSpecialRegisters.cs, initialSpecialRegisters.ss)
        try setRegisters(general, special, VirtualCPUEvents())
    }

    /// Lets the stub of an exception do its work: one that has begun is always finished.
    func runStub(clearInterrupt: () -> Void) throws(Errno) -> Exit {
        while true {
            clearInterrupt()
            let exit = try virtualCPU.run()
            if case .interrupted = exit { continue }
            return exit
        }
    }

    // MARK: - Finding out what was touched

    /// Finds the address of an access that KVM could not carry out and does not tell, with the instruction pointer
    /// still at the instruction.
    ///
    /// For a moment the virtual machine has only the memory that can be had; there the same instruction makes an exit
    /// that says where. Should it succeed after all, single-stepping ends the guest behind it.
    func findAccess(clearInterrupt: () -> Void) -> (address: UInt64, access: GuestFault.Access)? {
        do throws(Errno) {
            let before = try registers()
            let special = try specialRegisters()
            var stepping = before
            stepping.rflags |= Supervisor.traceFlag
            let parts = memory.accessible
            var found: (address: UInt64, access: GuestFault.Access)?
            do throws(Errno) {
                try virtualMachine.removeMemory(slot: 0)
                for (slot, part) in parts.enumerated() {
                    let bytes = unsafe memory.hostBytes(at: part.lowerBound, count: part.count)
                    unsafe try virtualMachine.setMemory(
                        slot: UInt32(slot),
                        guestPhysicalAddress: part.lowerBound,
                        memory: bytes
                    )
                }
                try setRegisters(stepping, special, nil)
                found = runForAccess(clearInterrupt)
                // KVM has the access half done and would go on with it at the next entry, whatever the registers say
                // then: it is to finish here, each of its parts.
                if found != nil { finishAccess() }
            } catch {
                found = nil
            }
            // Those that were made; the guest has its memory back in any case, or is never entered again.
            for slot in parts.indices { try? virtualMachine.removeMemory(slot: UInt32(slot)) }
            do throws(Errno) {
                unsafe try virtualMachine.setMemory(slot: 0, guestPhysicalAddress: 0, memory: memory.bytes)
            } catch {
                hasLostMemory = true
            }
            try setRegisters(before, special, VirtualCPUEvents())
            return found
        } catch {
            return nil
        }
    }

    /// Has KVM finish an access of the guest's to a device or port that there is none of, with all of its parts.
    private func finishAccess() {
        for _ in 0..<8 {
            if case .interrupted? = try? virtualCPU.completePendingIO() { return }
        }
    }

    private func runForAccess(_ clearInterrupt: () -> Void) -> (address: UInt64, access: GuestFault.Access)? {
        while true {
            clearInterrupt()
            do throws(Errno) {
                switch try virtualCPU.run() {
                case .interrupted: continue
                case .mmioRead(let address, _): return (address, .read)
                case .mmioWrite(let address, _): return (address, .write)
                default: return nil
                }
            } catch {
                return nil
            }
        }
    }

    // MARK: - Trying KVM out

    /// Runs instructions of the trampoline in ring 3: whether its `out` reaches the host with the bitmap alone, or
    /// takes the privilege level; and whether there is XSAVE, whatever CPUID says.
    static func probePlatform(of hypervisor: Hypervisor) throws(SandboxError) -> Hypervisor.Platform {
        let page = AddressSpace.pageSize
        let sizes = AddressSpace.Sizes(importCount: 0, stackSize: page, arenaSize: page, memoryLimit: 3 * page)
        let image = try GuestImage(nil, sizes: sizes, imports: [])
        func succeeds(_ address: UInt64, _ platform: Hypervisor.Platform) throws(SandboxError) -> Bool {
            let memory = try GuestMemory(addressSpace: image.addressSpace, image: image.memory)
            let machine = try GuestMachine(hypervisor, memory: memory, platform: platform, entry: address)
            while true {
                do throws(Errno) {
                    switch try machine.virtualCPU.run() {
                    case .ioOut(UInt16(SHIM_PORT_RETURN), _, _, _): return true
                    case .interrupted: continue
                    default: return false
                    }
                } catch {
                    throw SandboxError(.kvmUnavailable, "KVM cannot run a guest in ring 3.", underlyingError: error)
                }
            }
        }
        var platform = Hypervisor.Platform(portPermission: .bitmap, extendedState: .legacy)
        if try !succeeds(Trampoline.returnInstruction, platform) { platform.portPermission = .privilegeLevel }
        if try succeeds(Trampoline.ExtendedState.xsave.load, platform) { platform.extendedState = .xsave }
        return platform
    }
}
