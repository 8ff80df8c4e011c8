/// What the library found out about this machine's KVM, and how it runs guests on it.
public struct HostSupport: Sendable, Hashable {
    /// How guest code, which runs in ring 3, gets at the two ports that calls go through.
    public enum PortPermission: String, Sendable, Hashable {
        /// The processor permits these ports and no others, by the bitmap of the task state segment.
        case bitmap
        /// The processor permits every port, by the privilege level in RFLAGS; the library refuses the others.
        case privilegeLevel
    }

    /// How guest code gets at the library's ports.
    public let portPermission: PortPermission
    /// Whether KVM offers AVX, so that the library switches it on for guests. Where KVM does not virtualise the
    /// processor's extended state, guests have what the host has, whatever this says.
    public let hasAVX: Bool
    /// Whether registers are exchanged with KVM through shared memory instead of system calls.
    public let sharesRegisters: Bool

    /// Asks `/dev/kvm`, and tries a guest of one instruction. The answers are kept for as long as the process lives.
    ///
    /// - Throws: ``SandboxError/Code/kvmUnavailable`` where no sandbox can be made, and
    ///   ``SandboxError/Code/systemCallFailed``.
    public init() throws(SandboxError) {
        let hypervisor = try Hypervisor.shared()
        portPermission = try hypervisor.platform().portPermission
        hasAVX = hypervisor.features.hasAVX
        sharesRegisters = hypervisor.sharesRegisters
    }
}

extension HostSupport.PortPermission {
    /// RFLAGS for ring 3: the reserved bit that is always set, and IOPL 3 where it is needed.
    var flags: UInt64 { self == .bitmap ? 0x2 : 0x3002 }
}
