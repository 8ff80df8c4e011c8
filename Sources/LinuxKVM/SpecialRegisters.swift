internal import CShims

/// The segment, descriptor table and control registers.
public struct SpecialRegisters: Hashable, Sendable {
    /// CS.
    public var cs = Segment()
    /// DS.
    public var ds = Segment()
    /// ES.
    public var es = Segment()
    /// FS.
    public var fs = Segment()
    /// GS.
    public var gs = Segment()
    /// SS.
    public var ss = Segment()
    /// The task register.
    public var tr = Segment()
    /// The local descriptor table.
    public var ldt = Segment()
    /// The global descriptor table.
    public var gdt = DescriptorTable()
    /// The interrupt descriptor table.
    public var idt = DescriptorTable()
    /// CR0.
    public var cr0: UInt64 = 0
    /// CR2.
    public var cr2: UInt64 = 0
    /// CR3.
    public var cr3: UInt64 = 0
    /// CR4.
    public var cr4: UInt64 = 0
    /// CR8.
    public var cr8: UInt64 = 0
    /// The extended feature enable register.
    public var efer: UInt64 = 0
    /// The local APIC's base and flags.
    public var apicBase: UInt64 = 0
    /// The external interrupt that the processor has accepted and not yet delivered, of which there is one at most.
    public var pendingInterrupt: UInt8?

    /// All zero, which is no state that a processor can be in: begin with ``VirtualCPU/specialRegisters()``.
    public init() {}
}

extension SpecialRegisters {
    init(_ registers: kvm_sregs) {
        cs = Segment(registers.cs)
        ds = Segment(registers.ds)
        es = Segment(registers.es)
        fs = Segment(registers.fs)
        gs = Segment(registers.gs)
        ss = Segment(registers.ss)
        tr = Segment(registers.tr)
        ldt = Segment(registers.ldt)
        gdt = DescriptorTable(registers.gdt)
        idt = DescriptorTable(registers.idt)
        cr0 = registers.cr0
        cr2 = registers.cr2
        cr3 = registers.cr3
        cr4 = registers.cr4
        cr8 = registers.cr8
        efer = registers.efer
        apicBase = registers.apic_base
        let words = registers.interrupt_bitmap
        if words.0 | words.1 | words.2 | words.3 != 0 {
            let all = [words.0, words.1, words.2, words.3]
            for (index, word) in all.enumerated() where word != 0 {
                pendingInterrupt = UInt8(index * 64 + word.trailingZeroBitCount)
                break
            }
        }
    }

    var kernelRegisters: kvm_sregs {
        var registers = kvm_sregs(
            cs: cs.kernelSegment,
            ds: ds.kernelSegment,
            es: es.kernelSegment,
            fs: fs.kernelSegment,
            gs: gs.kernelSegment,
            ss: ss.kernelSegment,
            tr: tr.kernelSegment,
            ldt: ldt.kernelSegment,
            gdt: gdt.kernelTable,
            idt: idt.kernelTable,
            cr0: cr0,
            cr2: cr2,
            cr3: cr3,
            cr4: cr4,
            cr8: cr8,
            efer: efer,
            apic_base: apicBase,
            interrupt_bitmap: (0, 0, 0, 0)
        )
        if let pendingInterrupt {
            let bit = UInt64(1) << UInt64(pendingInterrupt % 64)
            switch pendingInterrupt / 64 {
            case 0: registers.interrupt_bitmap.0 = bit
            case 1: registers.interrupt_bitmap.1 = bit
            case 2: registers.interrupt_bitmap.2 = bit
            default: registers.interrupt_bitmap.3 = bit
            }
        }
        return registers
    }
}
