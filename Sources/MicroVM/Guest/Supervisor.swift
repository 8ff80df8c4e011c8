import CShims
import LinuxKVM

/// The ring-0 side of a guest: descriptor tables, exception stubs, and the registers that put it all to work.
///
/// Ring 0 runs nothing but a stub of two or three instructions for each exception, which tells the host. The selectors
/// are those of Linux, because a KVM that runs guests in the host's own ring 3 can offer no others. Formats: Intel SDM
/// volume 3A, 3.4.5 (segment descriptors), 6.14.1 (interrupt gates), 7.7 (task state segment).
enum Supervisor {
    private static let kernelCode: UInt16 = 0x10
    static let userData: UInt16 = 0x2b
    static let userCode: UInt16 = 0x33
    private static let taskState: UInt16 = 0x40

    private static let globalDescriptors = UInt64(SHIM_SUPERVISOR_TABLES)
    private static let interruptDescriptors = globalDescriptors + 0x100
    private static let taskStateSegment = globalDescriptors + 0x400
    private static let exceptionCount: UInt64 = 32
    private static let taskStateSize: UInt64 = 104
    /// The bitmap covers ports 0 to 63; a byte of ones ends it, and everything beyond the segment's limit is refused.
    private static let portBitmapSize: UInt64 = 8

    /// The exceptions that must not use the stack of another one: NMI, double fault, machine check.
    private static let separateStackVectors: Set<UInt64> = [2, 8, 18]

    static let exceptionStackTop = UInt64(SHIM_EXCEPTION_STACK) + AddressSpace.pageSize
    static let doubleFaultStackTop = UInt64(SHIM_DOUBLE_FAULT_STACK) + AddressSpace.pageSize

    /// Writes stubs and tables. They are never written again, by anybody.
    static func install(in memory: ImageWriter) {
        unsafe memory.store(shim_supervisor(), at: UInt64(SHIM_SUPERVISOR_CODE))

        func descriptor(_ selector: UInt16, _ value: UInt64) {
            memory.storeWord(value, at: globalDescriptors + UInt64(selector & ~7))
        }
        // Accessed bits are set, so the processor does not write them.
        descriptor(kernelCode, 0x00af_9b00_0000_ffff)
        descriptor(kernelCode + 8, 0x00cf_9300_0000_ffff)
        descriptor(userData, 0x00cf_f300_0000_ffff)
        descriptor(userCode, 0x00af_fb00_0000_ffff)
        let limit = taskStateLimit
        descriptor(
            taskState,
            UInt64(limit) | (taskStateSegment & 0xff_ffff) << 16 | 0x8b << 40 | (taskStateSegment >> 24 & 0xff) << 56
        )
        descriptor(taskState + 8, taskStateSegment >> 32)

        for vector in 0..<exceptionCount {
            let stub = UInt64(SHIM_SUPERVISOR_CODE) + vector * UInt64(SHIM_EXCEPTION_STUB_SIZE)
            // A present interrupt gate; breakpoints may be raised by the guest's own instruction (ring 3), the rest
            // only by the processor.
            let privilege: UInt64 = vector == 3 ? 3 : 0
            let interruptStack: UInt64 = separateStackVectors.contains(vector) ? 1 : 0
            let low =
                stub & 0xffff | UInt64(kernelCode) << 16 | interruptStack << 32 | 0x8e << 40 | privilege << 45
                | (stub >> 16 & 0xffff) << 48
            memory.storeWord(low, at: interruptDescriptors + vector * 16)
            memory.storeWord(stub >> 32, at: interruptDescriptors + vector * 16 + 8)
        }

        func storeUnaligned(_ value: UInt64, at offset: UInt64) {
            memory.storeWord(value, at: taskStateSegment + offset)
        }
        storeUnaligned(exceptionStackTop, at: 4)
        storeUnaligned(doubleFaultStackTop, at: 36)
        // The 16 bits at 102: where the bitmap begins. A clear bit permits its port.
        storeUnaligned(taskStateSize << 48, at: 96)
        var permitted = UInt64.max
        permitted &= ~(1 << UInt64(SHIM_PORT_RETURN))
        permitted &= ~(1 << UInt64(SHIM_PORT_HOST_CALL))
        permitted &= ~(1 << UInt64(SHIM_PORT_NESTED_RETURN))
        storeUnaligned(permitted, at: taskStateSize)
        storeUnaligned(.max, at: taskStateSize + portBitmapSize)
    }

    private static var taskStateLimit: UInt32 { UInt32(taskStateSize + portBitmapSize) }

    /// Changes special registers as a virtual CPU has them after its creation into those of 64-bit ring 3.
    static func configure(
        _ registers: inout SpecialRegisters,
        pageTableRoot: UInt64,
        threadPointer: UInt64,
        features: ProcessorFeatures
    ) {
        var code = Segment()
        code.selector = userCode
        code.limit = 0xffff_ffff
        code.type = 11
        code.present = true
        code.privilegeLevel = 3
        code.codeOrData = true
        code.long = true
        code.granularity = true
        var data = code
        data.selector = userData
        data.type = 3
        data.long = false
        data.defaultSize32 = true
        registers.cs = code
        registers.ss = data
        registers.ds = data
        registers.es = data
        registers.fs = data
        registers.gs = data
        registers.fs.base = threadPointer
        var task = Segment()
        task.selector = taskState
        task.base = taskStateSegment
        task.limit = taskStateLimit
        task.type = 11
        task.present = true
        registers.tr = task
        registers.gdt = DescriptorTable(base: globalDescriptors, limit: taskState + 15)
        registers.idt = DescriptorTable(base: interruptDescriptors, limit: UInt16(exceptionCount * 16 - 1))
        registers.cr3 = pageTableRoot
        // PE, MP, ET, NE, WP, AM, PG. No TS: there is one task, and its vector state is always there.
        registers.cr0 = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18 | 1 << 31
        // PAE, OSFXSR, OSXMMEXCPT, and what hardens or extends where the processor has it. Not FSGSBASE.
        registers.cr4 = 1 << 5 | 1 << 9 | 1 << 10
        if features.hasXSave { registers.cr4 |= 1 << 18 }
        if features.hasUserModeInstructionPrevention { registers.cr4 |= 1 << 11 }
        if features.hasSupervisorExecutionPrevention { registers.cr4 |= 1 << 20 }
        if features.hasSupervisorAccessPrevention { registers.cr4 |= 1 << 21 }
        // LME, LMA, NXE. No SCE: system call instructions are undefined.
        registers.efer = 1 << 8 | 1 << 10 | 1 << 11
    }

    // MARK: What ring 3 can change of the special registers

    /// Whether these are of a guest in ring 3, whose code segment is the one it was given.
    static func isUserMode(_ registers: SpecialRegisters) -> Bool {
        registers.cs.selector == userCode && registers.cs.privilegeLevel == 3
    }

    /// Sets what a guest can have changed itself, and nothing else: the bases of FS and GS, and which segments it has
    /// loaded of those it may.
    ///
    /// - Parameter selectors: DS, ES, FS and GS; any that is not that of data counts as the null segment.
    static func setUserState(
        of registers: inout SpecialRegisters,
        fsBase: UInt64,
        gsBase: UInt64,
        selectors: [UInt16]
    ) {
        func segment(_ selector: UInt16, _ data: Segment, base: UInt64 = 0) -> Segment {
            var segment = selector == userData ? data : Segment(selector: selector & 3, unusable: true)
            segment.base = base
            return segment
        }
        let data = registers.ds
        registers.ds = segment(selectors[0], data)
        registers.es = segment(selectors[1], data)
        registers.fs = segment(selectors[2], data, base: fsBase)
        registers.gs = segment(selectors[3], data, base: gsBase)
    }

    /// The flags that ring 3 can set: carry to overflow, alignment checks, trace, identification (Intel SDM volume 1,
    /// 3.4.3).
    static let userFlags: UInt64 = 0x24_4dd5
    /// RFLAGS.TF: a debug exception follows each instruction (Intel SDM volume 3B, 18.3.1.4).
    static let traceFlag: UInt64 = 1 << 8

    // MARK: Exceptions

    /// What the processor pushed when it entered a stub.
    struct ExceptionFrame {
        var errorCode: UInt64?
        var rip: UInt64
        var rflags: UInt64
        var rsp: UInt64
    }

    private static let vectorsWithErrorCode: Set<UInt8> = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30]

    /// Reads the frame of an exception whose stub is at work, whichever that is.
    static func exceptionFrame(of registers: GuestRegisters, memory: GuestMemory) -> ExceptionFrame? {
        guard registers.rip >= UInt64(SHIM_SUPERVISOR_CODE) else { return nil }
        let vector = (registers.rip - UInt64(SHIM_SUPERVISOR_CODE)) / UInt64(SHIM_EXCEPTION_STUB_SIZE)
        guard vector < exceptionCount else { return nil }
        var stub = Registers()
        (stub.rip, stub.rsp) = (registers.rip, registers.rsp)
        return exceptionFrame(vector: UInt8(vector), registers: stub, memory: memory)
    }

    /// Reads the frame of an exception whose stub is at work, or nil if the registers are not those of a stub: then
    /// the guest has only used a stub's port.
    ///
    /// The pages involved are the supervisor's: what is found there was written by the processor.
    static func exceptionFrame(vector: UInt8, registers: Registers, memory: GuestMemory) -> ExceptionFrame? {
        let stubs = UInt64(SHIM_SUPERVISOR_CODE)..<UInt64(SHIM_SUPERVISOR_CODE) + AddressSpace.pageSize
        let hasErrorCode = vectorsWithErrorCode.contains(vector)
        let size: UInt64 = hasErrorCode ? 48 : 40
        let top = separateStackVectors.contains(UInt64(vector)) ? doubleFaultStackTop : exceptionStackTop
        guard stubs.contains(registers.rip), registers.rsp == top - size else { return nil }
        let frame = registers.rsp + (hasErrorCode ? 8 : 0)
        return ExceptionFrame(
            errorCode: hasErrorCode ? memory.loadWord(at: registers.rsp) : nil,
            rip: memory.loadWord(at: frame),
            rflags: memory.loadWord(at: frame + 16),
            rsp: memory.loadWord(at: frame + 24)
        )
    }
}
