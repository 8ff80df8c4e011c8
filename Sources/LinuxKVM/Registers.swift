internal import CShims

/// The general registers, the instruction pointer and the flags.
public struct Registers: Hashable, Sendable {
    /// RAX.
    public var rax: UInt64 = 0
    /// RBX.
    public var rbx: UInt64 = 0
    /// RCX.
    public var rcx: UInt64 = 0
    /// RDX.
    public var rdx: UInt64 = 0
    /// RSI.
    public var rsi: UInt64 = 0
    /// RDI.
    public var rdi: UInt64 = 0
    /// RSP.
    public var rsp: UInt64 = 0
    /// RBP.
    public var rbp: UInt64 = 0
    /// R8.
    public var r8: UInt64 = 0
    /// R9.
    public var r9: UInt64 = 0
    /// R10.
    public var r10: UInt64 = 0
    /// R11.
    public var r11: UInt64 = 0
    /// R12.
    public var r12: UInt64 = 0
    /// R13.
    public var r13: UInt64 = 0
    /// R14.
    public var r14: UInt64 = 0
    /// R15.
    public var r15: UInt64 = 0
    /// RIP.
    public var rip: UInt64 = 0
    /// RFLAGS; bit 1 is always set in a processor.
    public var rflags: UInt64 = 1 << 1

    /// All zero, but for the bit of the flags that is always set.
    public init() {}
}

extension Registers {
    init(_ registers: kvm_regs) {
        rax = registers.rax
        rbx = registers.rbx
        rcx = registers.rcx
        rdx = registers.rdx
        rsi = registers.rsi
        rdi = registers.rdi
        rsp = registers.rsp
        rbp = registers.rbp
        r8 = registers.r8
        r9 = registers.r9
        r10 = registers.r10
        r11 = registers.r11
        r12 = registers.r12
        r13 = registers.r13
        r14 = registers.r14
        r15 = registers.r15
        rip = registers.rip
        rflags = registers.rflags
    }

    var kernelRegisters: kvm_regs {
        kvm_regs(
            rax: rax,
            rbx: rbx,
            rcx: rcx,
            rdx: rdx,
            rsi: rsi,
            rdi: rdi,
            rsp: rsp,
            rbp: rbp,
            r8: r8,
            r9: r9,
            r10: r10,
            r11: r11,
            r12: r12,
            r13: r13,
            r14: r14,
            r15: r15,
            rip: rip,
            rflags: rflags
        )
    }
}
