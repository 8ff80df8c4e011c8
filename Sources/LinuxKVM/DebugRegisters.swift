internal import CShims

/// The processor's debug registers (Intel SDM volume 3B, 18.2).
public struct DebugRegisters: Hashable, Sendable {
    /// DR0 to DR3: addresses of breakpoints.
    public var address: SIMD4<UInt64> = .zero
    /// DR6: what happened. The value at reset, with the bits that are always set.
    public var dr6: UInt64 = 0xFFFF_0FF0
    /// DR7: which breakpoints there are. The value at reset, with the bit that is always set.
    public var dr7: UInt64 = 0x400

    /// The values at reset: no breakpoints.
    public init() {}
}

extension DebugRegisters {
    init(_ registers: kvm_debugregs) {
        address = SIMD4(registers.db.0, registers.db.1, registers.db.2, registers.db.3)
        dr6 = registers.dr6
        dr7 = registers.dr7
    }

    var kernelRegisters: kvm_debugregs {
        var registers = kvm_debugregs()
        registers.db = (address[0], address[1], address[2], address[3])
        registers.dr6 = dr6
        registers.dr7 = dr7
        return registers
    }
}
