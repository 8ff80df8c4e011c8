internal import CShims
public import SystemPackage

/// A virtual machine: guest physical memory and virtual CPUs, and no devices; not even an interrupt controller.
///
/// The handle owns its file descriptor and closes it when it goes. The kernel keeps the machine, with the memory that
/// was given to it, until the last of its virtual CPUs is closed too.
public struct VirtualMachine: ~Copyable, Sendable {
    let fileDescriptor: OwnedFileDescriptor

    /// What this machine says of a capability, which for some is more than what the system says.
    ///
    /// The C equivalent is `KVM_CHECK_EXTENSION` (KVM API, 4.4).
    public func check(_ capability: Capability) -> Int32 {
        max(0, shim_kvm_check_extension(fileDescriptor.rawValue, capability.rawValue))
    }

    /// Puts memory of this process into the guest's physical address space, or moves a slot, or changes its flags.
    ///
    /// - Parameters:
    ///   - slot: which of the machine's slots, below what ``Capability/memorySlots`` says.
    ///   - flags: how the guest can use it.
    ///   - guestPhysicalAddress: where the guest finds it; a multiple of 4,096.
    ///   - memory: the memory, whole pages on page boundaries, at least one. It must stay mapped until the slot is
    ///     removed or the machine and all its virtual CPUs are gone: the guest writes it, at any time while it runs.
    /// - Throws: `Errno.invalidArgument` for what is not page aligned, empty, or not allowed by the flags;
    ///   `Errno.fileExists` when it overlaps another slot.
    ///
    /// The C equivalent is `KVM_SET_USER_MEMORY_REGION` (KVM API, 4.35).
    public func setMemory(
        slot: UInt32,
        flags: MemorySlotFlags = [],
        guestPhysicalAddress: UInt64,
        memory: UnsafeMutableRawBufferPointer
    ) throws(Errno) {
        // A size of zero would remove the slot.
        guard let start = memory.baseAddress, memory.count > 0 else { throw Errno.invalidArgument }
        try setRegion(
            kvm_userspace_memory_region(
                slot: slot,
                flags: flags.rawValue,
                guest_phys_addr: guestPhysicalAddress,
                memory_size: UInt64(memory.count),
                userspace_addr: UInt64(UInt(bitPattern: start))
            )
        )
    }

    /// Takes a slot's memory away from the guest, whose accesses then become MMIO exits.
    ///
    /// - Throws: `Errno.invalidArgument` when there is no such slot.
    ///
    /// The C equivalent is `KVM_SET_USER_MEMORY_REGION` with size 0 (KVM API, 4.35).
    public func removeMemory(slot: UInt32) throws(Errno) {
        try setRegion(
            kvm_userspace_memory_region(slot: slot, flags: 0, guest_phys_addr: 0, memory_size: 0, userspace_addr: 0)
        )
    }

    private func setRegion(_ region: kvm_userspace_memory_region) throws(Errno) {
        var region = region
        // Safe: the struct is read during the call only; what the memory is used for is the caller's promise.
        try nothingOrErrno(unsafe shim_kvm_set_user_memory_region(fileDescriptor.rawValue, &region))
    }

    /// Places the three pages that real mode needs on Intel processors without unrestricted guest mode, before the
    /// first virtual CPU runs. They may not be in a memory slot. Other machines accept the call and ignore it.
    ///
    /// - Parameter address: a guest physical address below 4 GiB.
    ///
    /// The C equivalent is `KVM_SET_TSS_ADDR` (KVM API, 4.36).
    public func setTaskStateSegmentAddress(_ address: UInt32) throws(Errno) {
        try nothingOrErrno(shim_kvm_set_tss_addr(fileDescriptor.rawValue, UInt(address)))
    }

    /// Denies all model-specific registers to the guest, but for the ranges given: an access to any other raises #GP
    /// in the guest.
    ///
    /// The x2APIC's registers, 0x800 to 0x8FF, are never filtered, and neither are ``VirtualCPU``'s own methods.
    ///
    /// - Parameter allowed: at most 16 ranges of at most 12,288 registers each.
    /// - Throws: `Errno.invalidArgument` for too many or too large ranges, or where ``Capability/msrFilter`` is
    ///   absent (some kernels say `Errno.inappropriateIOCTLForDevice` then).
    ///
    /// The C equivalent is `KVM_X86_SET_MSR_FILTER` with `KVM_MSR_FILTER_DEFAULT_DENY` (KVM API, 4.97).
    public func setMSRFilter(denyingAllBut allowed: [MSRRange]) throws(Errno) {
        // The kernel takes a filter without ranges for no filter at all: an empty list is one register, denied.
        let ranges = allowed.isEmpty ? [MSRRange(first: 0, count: 1, access: [])] : allowed
        guard ranges.count <= MSRRange.maximumRangeCount else { throw Errno.invalidArgument }
        for range in ranges where !MSRRange.registerCounts.contains(range.count) { throw Errno.invalidArgument }

        // One bit a register, in whole words of eight bytes.
        let words = ranges.map { range in (Int(range.count) + 63) / 64 }
        // A range without access is one whose registers are denied for both kinds.
        var bits = zip(ranges, words).flatMap { range, words in
            [UInt64](repeating: range.access.isEmpty ? 0 : .max, count: words)
        }
        // Safe: the bitmaps lie one after another in the array, in the ranges' order, each as long as its range says;
        // the filter has room for the number of ranges checked above; the kernel copies all of it during the call.
        let result = unsafe bits.withUnsafeMutableBytes { bits in
            var filter = kvm_msr_filter()
            filter.flags = UInt32(KVM_MSR_FILTER_DEFAULT_DENY)
            var start = 0
            unsafe withUnsafeMutableBytes(of: &filter.ranges) { slots in
                let slots = unsafe slots.bindMemory(to: kvm_msr_filter_range.self)
                for (index, range) in ranges.enumerated() {
                    unsafe slots[index] = kvm_msr_filter_range(
                        flags: (range.access.isEmpty ? [.read, .write] : range.access).rawValue,
                        nmsrs: range.count,
                        base: range.first,
                        bitmap: (bits.baseAddress! + start).assumingMemoryBound(to: UInt8.self)
                    )
                    start += words[index] * 8
                }
            }
            return unsafe shim_kvm_set_msr_filter(fileDescriptor.rawValue, &filter)
        }
        try nothingOrErrno(result)
    }

    /// Makes a virtual CPU, in real mode, at its reset vector.
    ///
    /// - Parameters:
    ///   - identifier: its number, unique in the machine, and its APIC's.
    ///   - mappingSize: what ``KVM/virtualCPUMappingSize()`` says, in bytes.
    /// - Throws: `Errno.fileExists` when there is one of this number; `Errno.invalidArgument` when the number or the
    ///   size is out of range; `Errno.noMemory`, `Errno.tooManyOpenFiles`.
    ///
    /// The C equivalents are `KVM_CREATE_VCPU` and `mmap` (KVM API, 4.7 and 5).
    public func createVirtualCPU(identifier: UInt32 = 0, mappingSize: Int) throws(Errno) -> VirtualCPU {
        // Safe: there is no address.
        unsafe try createVirtualCPU(identifier: identifier, mappingSize: mappingSize, mappingHint: nil)
    }

    /// Makes a virtual CPU as ``createVirtualCPU(identifier:mappingSize:)`` does.
    ///
    /// - Parameters:
    ///   - identifier: its number, unique in the machine, and its APIC's.
    ///   - mappingSize: what ``KVM/virtualCPUMappingSize()`` says, in bytes.
    ///   - mappingHint: where its shared memory is to be mapped if nothing is there; wherever the kernel likes where it
    ///     is nil.
    /// - Throws: as that does.
    public func createVirtualCPU(
        identifier: UInt32 = 0,
        mappingSize: Int,
        mappingHint: UnsafeMutableRawPointer?
    ) throws(Errno) -> VirtualCPU {
        let result = shim_kvm_create_vcpu(fileDescriptor.rawValue, UInt(identifier))
        // Safe: a hint, no more.
        return unsafe try VirtualCPU(
            fileDescriptor: try OwnedFileDescriptor(result: result),
            mappingSize: mappingSize,
            mappingHint: mappingHint,
            extendedStateSize: check(.xsave2)
        )
    }
}
