internal import CShims

/// Registers in the memory that is shared with the kernel: to read and set them without a system call.
///
/// Which sets a KVM can share is what ``Capability/syncRegisters`` says; a run with any other throws
/// `Errno.invalidArgument`. See `KVM_CAP_SYNC_REGS` in the KVM API.
extension VirtualCPU {
    /// The sets that the kernel stores at every exit; those only are up to date after a run.
    public var validShared: SharedRegisterSet {
        // Safe, as in all of these: the mapping lives as long as this virtual CPU.
        get { unsafe SharedRegisterSet(rawValue: shim_kvm_valid_regs(mapping.run)) }
        nonmutating set { unsafe shim_kvm_set_valid_regs(mapping.run, newValue.rawValue) }
    }

    /// The sets that the kernel loads at the next run, which clears them here.
    public var dirtyShared: SharedRegisterSet {
        get { unsafe SharedRegisterSet(rawValue: shim_kvm_dirty_regs(mapping.run)) }
        nonmutating set { unsafe shim_kvm_set_dirty_regs(mapping.run, newValue.rawValue) }
    }

    /// The general registers in the shared memory.
    public var sharedRegisters: Registers {
        get { unsafe Registers(shim_kvm_shared(mapping.run).pointee.regs) }
        nonmutating set { unsafe shim_kvm_shared(mapping.run).pointee.regs = newValue.kernelRegisters }
    }

    /// The segment, table and control registers in the shared memory.
    public var sharedSpecialRegisters: SpecialRegisters {
        get { unsafe SpecialRegisters(shim_kvm_shared(mapping.run).pointee.sregs) }
        nonmutating set { unsafe shim_kvm_shared(mapping.run).pointee.sregs = newValue.kernelRegisters }
    }

    /// The pending events in the shared memory.
    public var sharedEvents: VirtualCPUEvents {
        get { unsafe VirtualCPUEvents(shim_kvm_shared(mapping.run).pointee.events) }
        nonmutating set { unsafe shim_kvm_shared(mapping.run).pointee.events = newValue.kernelEvents }
    }
}
