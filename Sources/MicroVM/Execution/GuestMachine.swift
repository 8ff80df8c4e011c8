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
    private let sharesRegisters: Bool

    /// Makes the machine: supervisor pages, trampoline, thunks and page tables are in place, the registers are those of
    /// the trampoline's entry, and all the rest of the memory is zero.
    init(
        _ hypervisor: Hypervisor,
        addressSpace: AddressSpace,
        importCount: Int,
        portPermission: HostSupport.PortPermission,
        entry: UInt64 = Trampoline.entry
    ) throws(SandboxError) {
        sharesRegisters = hypervisor.sharesRegisters
        memory = try GuestMemory(addressSpace: addressSpace)
        mailbox = Mailbox(in: memory)
        Supervisor.install(in: memory)
        Trampoline.install(in: memory, importCount: importCount)
        PageTables.write(for: addressSpace, into: memory)
        do throws(Errno) {
            virtualMachine = try hypervisor.kvm.createVirtualMachine()
            unsafe try virtualMachine.setMemory(slot: 0, guestPhysicalAddress: 0, memory: memory.bytes)
            virtualCPU = try virtualMachine.createVirtualCPU(mappingSize: hypervisor.virtualCPUMappingSize)
            try virtualCPU.setCPUID(hypervisor.features.entries)
            let flags = portPermission.flags
            try Self.setRegisters(of: virtualCPU, hypervisor, addressSpace: addressSpace, entry: entry, flags: flags)
        } catch {
            throw SandboxError(
                .systemCallFailed,
                "KVM could not make a virtual machine; a limit on memory or open files may have been reached.",
                underlyingError: error
            )
        }
    }

    private static func setRegisters(
        of virtualCPU: borrowing VirtualCPU,
        _ hypervisor: Hypervisor,
        addressSpace: AddressSpace,
        entry: UInt64,
        flags: UInt64
    ) throws(Errno) {
        var special = try hypervisor.initialSpecialRegisters(of: virtualCPU)
        Supervisor.configure(
            &special,
            pageTableRoot: addressSpace.pageTables.lowerBound,
            threadPointer: addressSpace.threadPointer,
            features: hypervisor.features
        )
        var general = Registers()
        general.rip = entry
        general.rsp = addressSpace.stack.upperBound
        general.rflags = flags
        if hypervisor.features.hasXSave {
            // Before CR4.OSXSAVE is set with the other special registers, at the first entry.
            let state = ExtendedControlRegister(index: 0, value: hypervisor.features.extendedState)
            try virtualCPU.setExtendedControlRegisters([state])
        }
        if hypervisor.sharesRegisters {
            // Taken over by the first KVM_RUN, for the price of no system call.
            virtualCPU.sharedRegisters = general
            virtualCPU.sharedSpecialRegisters = special
            virtualCPU.dirtyShared = [.registers, .specialRegisters]
            // From then on every exit leaves the general registers there, for what a system call would cost only once.
            virtualCPU.validShared = [.registers]
        } else {
            try virtualCPU.setSpecialRegisters(special)
            try virtualCPU.setRegisters(general)
        }
    }

    /// The general registers as the last exit left them.
    func registers() throws(Errno) -> Registers {
        sharesRegisters ? virtualCPU.sharedRegisters : try virtualCPU.registers()
    }

    /// Runs the trampoline's `out` in ring 3 with the bitmap alone: either it reaches the host, or it takes the
    /// privilege level.
    static func probePortPermission(of hypervisor: Hypervisor) throws(SandboxError) -> HostSupport.PortPermission {
        let page = AddressSpace.pageSize
        let sizes = AddressSpace.Sizes(importCount: 0, stackSize: page, arenaSize: page, memoryLimit: 3 * page)
        let machine = try GuestMachine(
            hypervisor,
            addressSpace: try AddressSpace(sizes),
            importCount: 0,
            portPermission: .bitmap,
            entry: Trampoline.returnInstruction
        )
        while true {
            do throws(Errno) {
                switch try machine.virtualCPU.run() {
                case .ioOut(UInt16(SHIM_PORT_RETURN), _, _, _): return .bitmap
                case .interrupted: continue
                default: return .privilegeLevel
                }
            } catch {
                throw SandboxError(.kvmUnavailable, "KVM cannot run a guest in ring 3.", underlyingError: error)
            }
        }
    }
}
