internal import CShims
public import SystemPackage

/// A virtual CPU's state, one request for each kind.
///
/// After an exit for an instruction, complete it first (``completePendingIO()``).
extension VirtualCPU {
    /// The general registers.
    ///
    /// The C equivalent is `KVM_GET_REGS` (KVM API, 4.11).
    public func registers() throws(Errno) -> Registers {
        var registers = kvm_regs()
        // Safe, as in all of these: the kernel fills or reads the struct during the call, and its size is asserted.
        try nothingOrErrno(unsafe shim_kvm_get_regs(fileDescriptor.rawValue, &registers))
        return Registers(registers)
    }

    /// Sets the general registers.
    ///
    /// The C equivalent is `KVM_SET_REGS` (KVM API, 4.12).
    public func setRegisters(_ registers: Registers) throws(Errno) {
        var registers = registers.kernelRegisters
        try nothingOrErrno(unsafe shim_kvm_set_regs(fileDescriptor.rawValue, &registers))
    }

    /// The segment, table and control registers.
    ///
    /// The C equivalent is `KVM_GET_SREGS` (KVM API, 4.13).
    public func specialRegisters() throws(Errno) -> SpecialRegisters {
        var registers = kvm_sregs()
        try nothingOrErrno(unsafe shim_kvm_get_sregs(fileDescriptor.rawValue, &registers))
        return SpecialRegisters(registers)
    }

    /// Sets the segment, table and control registers.
    ///
    /// - Throws: `Errno.invalidArgument` for a combination that no processor can be in.
    ///
    /// The C equivalent is `KVM_SET_SREGS` (KVM API, 4.14).
    public func setSpecialRegisters(_ registers: SpecialRegisters) throws(Errno) {
        var registers = registers.kernelRegisters
        try nothingOrErrno(unsafe shim_kvm_set_sregs(fileDescriptor.rawValue, &registers))
    }

    /// The size of ``xsave()``, in bytes: 4,096, or more where the process was given more state by `arch_prctl`.
    public var xsaveSize: Int {
        max(MemoryLayout<kvm_xsave>.size, Int(extendedStateSize))
    }

    /// The floating-point, vector and other extended state, in the layout of XSAVE that CPUID leaf 0xD describes.
    ///
    /// The C equivalents are `KVM_GET_XSAVE2` and, where there is no ``Capability/xsave2``, `KVM_GET_XSAVE` (KVM API,
    /// 4.42).
    public func xsave() throws(Errno) -> [UInt8] {
        var result: CInt = 0
        // Safe: there is as much room as the kernel said that it writes.
        let state = unsafe [UInt8](unsafeUninitializedCapacity: xsaveSize) { bytes, count in
            unsafe bytes.initialize(repeating: 0)
            count = bytes.count
            let start = UnsafeMutableRawPointer(bytes.baseAddress!)
            result =
                extendedStateSize > 0
                ? unsafe shim_kvm_get_xsave2(fileDescriptor.rawValue, start)
                : unsafe shim_kvm_get_xsave(fileDescriptor.rawValue, start)
        }
        try nothingOrErrno(result)
        return state
    }

    /// Sets the extended state.
    ///
    /// - Parameter state: as ``xsave()`` returns it, ``xsaveSize`` bytes.
    /// - Throws: `Errno.invalidArgument` for another size, or components that the guest cannot have.
    ///
    /// The C equivalent is `KVM_SET_XSAVE` (KVM API, 4.43).
    public func setXSave(_ state: [UInt8]) throws(Errno) {
        guard state.count == xsaveSize else { throw Errno.invalidArgument }
        // Safe: there are as many bytes as the kernel reads, and it reads them during the call.
        let result = unsafe state.withUnsafeBytes { bytes in
            unsafe shim_kvm_set_xsave(fileDescriptor.rawValue, bytes.baseAddress!)
        }
        try nothingOrErrno(result)
    }

    /// The extended control registers: XCR0, so far.
    ///
    /// The C equivalent is `KVM_GET_XCRS` (KVM API, 4.44).
    public func extendedControlRegisters() throws(Errno) -> [ExtendedControlRegister] {
        var registers = kvm_xcrs()
        try nothingOrErrno(unsafe shim_kvm_get_xcrs(fileDescriptor.rawValue, &registers))
        let count = Int(registers.nr_xcrs)
        // Safe: the array is a tuple in Swift and contiguous in C; no more is read than it has.
        return unsafe withUnsafeBytes(of: &registers.xcrs) { bytes in
            unsafe bytes.bindMemory(to: kvm_xcr.self).prefix(count)
                .map { register in ExtendedControlRegister(index: register.xcr, value: register.value) }
        }
    }

    /// Sets extended control registers.
    ///
    /// - Throws: `Errno.invalidArgument` for more than 16, or a value that the guest's CPUID does not allow.
    ///
    /// The C equivalent is `KVM_SET_XCRS` (KVM API, 4.45).
    public func setExtendedControlRegisters(_ registers: [ExtendedControlRegister]) throws(Errno) {
        guard registers.count <= Int(KVM_MAX_XCRS) else { throw Errno.invalidArgument }
        var kernelRegisters = kvm_xcrs()
        kernelRegisters.nr_xcrs = UInt32(registers.count)
        // Safe: the array is a tuple in Swift and contiguous in C; the number of registers was checked.
        unsafe withUnsafeMutableBytes(of: &kernelRegisters.xcrs) { bytes in
            let slots = unsafe bytes.bindMemory(to: kvm_xcr.self)
            for (index, register) in registers.enumerated() {
                unsafe slots[index] = kvm_xcr(xcr: register.index, reserved: 0, value: register.value)
            }
        }
        try nothingOrErrno(unsafe shim_kvm_set_xcrs(fileDescriptor.rawValue, &kernelRegisters))
    }

    /// Model-specific registers, in the order asked for, up to the first that cannot be read: with fewer than were
    /// asked for, the one after the last is the culprit.
    ///
    /// - Parameter indices: the registers' numbers, at most 255.
    /// - Throws: `Errno.argListTooLong` for more.
    ///
    /// The C equivalent is `KVM_GET_MSRS` (KVM API, 4.18).
    public func modelSpecificRegisters(_ indices: [UInt32]) throws(Errno) -> [ModelSpecificRegister] {
        guard indices.count <= ModelSpecificRegister.maximumCount else { throw Errno.argListTooLong }
        var registers: [ModelSpecificRegister] = []
        // Safe: the buffer has room for all; no more are read than the kernel says it has filled.
        let result = unsafe TrailingArray<kvm_msrs, kvm_msr_entry>.withZeroed(capacity: indices.count) {
            header,
            entries in
            unsafe header.pointee.nmsrs = UInt32(indices.count)
            for (position, index) in indices.enumerated() {
                unsafe entries[position].index = index
            }
            let result = unsafe shim_kvm_get_msrs(fileDescriptor.rawValue, header)
            unsafe registers = entries.prefix(max(0, Int(result)))
                .map { entry in ModelSpecificRegister(index: entry.index, value: entry.data) }
            return result
        }
        try nothingOrErrno(result)
        return registers
    }

    /// Sets model-specific registers, in order, up to the first that cannot be set.
    ///
    /// - Parameter registers: at most 255.
    /// - Returns: how many were set.
    /// - Throws: `Errno.argListTooLong` for more.
    ///
    /// The C equivalent is `KVM_SET_MSRS` (KVM API, 4.19).
    public func setModelSpecificRegisters(_ registers: [ModelSpecificRegister]) throws(Errno) -> Int {
        guard registers.count <= ModelSpecificRegister.maximumCount else { throw Errno.argListTooLong }
        // Safe: the buffer has room for all.
        let result = unsafe TrailingArray<kvm_msrs, kvm_msr_entry>.withZeroed(capacity: registers.count) {
            header,
            entries in
            unsafe header.pointee.nmsrs = UInt32(registers.count)
            for (position, register) in registers.enumerated() {
                unsafe entries[position] = kvm_msr_entry(index: register.index, reserved: 0, data: register.value)
            }
            return unsafe shim_kvm_set_msrs(fileDescriptor.rawValue, header)
        }
        return Int(try valueOrErrno(result))
    }

    /// The guest's debug registers.
    ///
    /// The C equivalent is `KVM_GET_DEBUGREGS` (KVM API, 4.33).
    public func debugRegisters() throws(Errno) -> DebugRegisters {
        var registers = kvm_debugregs()
        try nothingOrErrno(unsafe shim_kvm_get_debugregs(fileDescriptor.rawValue, &registers))
        return DebugRegisters(registers)
    }

    /// Sets the guest's debug registers.
    ///
    /// - Throws: `Errno.invalidArgument` for bits in `dr6` or `dr7` that no processor has.
    ///
    /// The C equivalent is `KVM_SET_DEBUGREGS` (KVM API, 4.34).
    public func setDebugRegisters(_ registers: DebugRegisters) throws(Errno) {
        var registers = registers.kernelRegisters
        try nothingOrErrno(unsafe shim_kvm_set_debugregs(fileDescriptor.rawValue, &registers))
    }

    /// What CPUID answers in the guest, as it was set.
    ///
    /// The C equivalent is `KVM_GET_CPUID2`.
    public func cpuid() throws(Errno) -> [CPUIDEntry] {
        try unsafe CPUIDEntry.read(firstCapacity: CPUIDEntry.firstCapacity) { entries in
            // Safe: the buffer has room for as many entries as its header says.
            unsafe shim_kvm_get_cpuid(fileDescriptor.rawValue, entries)
        }
    }

    /// Sets what CPUID answers in the guest; once, before the first run. A KVM that does not virtualise CPUID in
    /// ring 3 answers as the processor does there.
    ///
    /// - Throws: `Errno.argListTooLong` for more entries than the kernel takes (256 at present),
    ///   `Errno.invalidArgument` for entries that contradict each other or come too late.
    ///
    /// The C equivalent is `KVM_SET_CPUID2` (KVM API, 4.20).
    public func setCPUID(_ entries: [CPUIDEntry]) throws(Errno) {
        try unsafe CPUIDEntry.write(entries) { entries in
            // Safe: as many entries as its header says.
            unsafe shim_kvm_set_cpuid(fileDescriptor.rawValue, entries)
        }
    }

    /// Sets what makes ``Exit/debug(exception:instructionPointer:dr6:dr7:)`` exits.
    ///
    /// - Parameters:
    ///   - options: what to watch for; empty ends debugging.
    ///   - debugRegisters: the breakpoints, for ``GuestDebugOptions/useHardwareBreakpoints``: addresses in `address`,
    ///     conditions in `dr7`. They replace the guest's own while debugging lasts.
    ///
    /// The C equivalent is `KVM_SET_GUEST_DEBUG` (KVM API, 4.87).
    public func setGuestDebug(
        _ options: GuestDebugOptions,
        debugRegisters: DebugRegisters = DebugRegisters()
    ) throws(Errno) {
        let address = debugRegisters.address
        var debug = kvm_guest_debug()
        debug.control = options.rawValue
        debug.arch.debugreg = (
            address[0], address[1], address[2], address[3], 0, 0, debugRegisters.dr6, debugRegisters.dr7
        )
        try nothingOrErrno(unsafe shim_kvm_set_guest_debug(fileDescriptor.rawValue, &debug))
    }

    /// Whether the virtual CPU runs or waits.
    ///
    /// The C equivalent is `KVM_GET_MP_STATE` (KVM API, 4.38).
    public func multiprocessingState() throws(Errno) -> MultiprocessingState {
        var state = kvm_mp_state()
        try nothingOrErrno(unsafe shim_kvm_get_mp_state(fileDescriptor.rawValue, &state))
        return MultiprocessingState(rawValue: state.mp_state)
    }

    /// Sets whether the virtual CPU runs or waits.
    ///
    /// - Throws: `Errno.invalidArgument` for a state that needs an interrupt controller in the kernel.
    ///
    /// The C equivalent is `KVM_SET_MP_STATE` (KVM API, 4.39).
    public func setMultiprocessingState(_ state: MultiprocessingState) throws(Errno) {
        var state = kvm_mp_state(mp_state: state.rawValue)
        try nothingOrErrno(unsafe shim_kvm_set_mp_state(fileDescriptor.rawValue, &state))
    }

    /// Exceptions and interrupts that are pending or being delivered.
    ///
    /// The C equivalent is `KVM_GET_VCPU_EVENTS` (KVM API, 4.31).
    public func events() throws(Errno) -> VirtualCPUEvents {
        var events = kvm_vcpu_events()
        try nothingOrErrno(unsafe shim_kvm_get_vcpu_events(fileDescriptor.rawValue, &events))
        return VirtualCPUEvents(events)
    }

    /// Sets the exceptions and interrupts that are pending or being delivered.
    ///
    /// The C equivalent is `KVM_SET_VCPU_EVENTS` (KVM API, 4.32).
    public func setEvents(_ events: VirtualCPUEvents) throws(Errno) {
        var events = events.kernelEvents
        try nothingOrErrno(unsafe shim_kvm_set_vcpu_events(fileDescriptor.rawValue, &events))
    }
}
