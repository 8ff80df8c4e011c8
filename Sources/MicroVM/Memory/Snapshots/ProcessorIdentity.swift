import CShims

/// What a guest can find out of the processor that it might rely on later.
enum ProcessorIdentity {
    /// Features by CPUID of the processor itself, which guests see where KVM does not filter it.
    static let features: [UInt32] = {
        func registers(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> [UInt32] {
            var registers: (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
            let isThere = unsafe withUnsafeMutableBytes(of: &registers) { bytes in
                unsafe shim_cpuid(leaf, subleaf, bytes.baseAddress!.assumingMemoryBound(to: UInt32.self)) != 0
            }
            return isThere ? [registers.0, registers.1, registers.2, registers.3] : [0, 0, 0, 0]
        }
        let basic = registers(1)
        let structured = registers(7)
        let extended = registers(0x8000_0001)
        // Not OSXSAVE and OSPKE, which are the operating system's, nor that there is a hypervisor.
        return [
            basic[2] & ~(1 << 27 | 1 << 31), basic[3], structured[1], structured[2] & ~(1 << 4), structured[3],
            registers(7, 1)[0], registers(0xd)[0], registers(0xd)[3], registers(0xd, 1)[0], extended[2], extended[3],
        ]
    }()

    static func hasAll(_ wanted: [UInt32]) -> Bool {
        wanted.count == features.count && zip(wanted, features).allSatisfy { $0 & ~$1 == 0 }
    }
}
