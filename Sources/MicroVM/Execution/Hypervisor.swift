import LinuxKVM
import SystemPackage

/// What all sandboxes of a process share: `/dev/kvm`, opened once, and what was found out about it.
final class Hypervisor: Sendable {
    let kvm: KVM
    let features: ProcessorFeatures
    let virtualCPUMappingSize: Int
    let sharesRegisters: Bool
    /// Whether pending exceptions can be shared too.
    let sharesEvents: Bool
    private let known = Locked<(platform: Platform?, registers: SpecialRegisters?)>((nil, nil))

    /// What a guest finds out about this KVM.
    struct Platform: Sendable {
        var portPermission: HostSupport.PortPermission
        var extendedState: Trampoline.ExtendedState
    }

    private static let opened = Locked<Hypervisor?>(nil)

    /// The process's hypervisor, opened at the first call that succeeds.
    static func shared() throws(SandboxError) -> Hypervisor {
        if let hypervisor = opened.withLock({ $0 }) { return hypervisor }
        let hypervisor = try Hypervisor()
        return opened.withLock { existing in
            if let existing { return existing }
            existing = hypervisor
            return hypervisor
        }
    }

    private init() throws(SandboxError) {
        let kvm: KVM
        do throws(Errno) {
            kvm = try KVM()
        } catch {
            throw Self.unavailable(error)
        }
        guard kvm.check(.userMemory) != 0, kvm.check(.immediateExit) != 0 else {
            throw SandboxError(
                .kvmUnavailable,
                "This KVM lacks KVM_CAP_USER_MEMORY or KVM_CAP_IMMEDIATE_EXIT; Linux 4.12 or later has both."
            )
        }
        let shared = SharedRegisterSet(rawValue: UInt64(kvm.check(.syncRegisters)))
        sharesRegisters = shared.isSuperset(of: [.registers, .specialRegisters])
        sharesEvents = sharesRegisters && shared.contains(.events)
        do throws(Errno) {
            virtualCPUMappingSize = try kvm.virtualCPUMappingSize()
            features = ProcessorFeatures(supported: try kvm.supportedCPUID())
        } catch {
            throw SandboxError(.kvmUnavailable, "KVM does not answer as it should.", underlyingError: error)
        }
        self.kvm = kvm
    }

    private static func unavailable(_ error: Errno) -> SandboxError {
        let message =
            switch error {
            case .noSuchFileOrDirectory:
                "/dev/kvm does not exist: load the module kvm_intel or kvm_amd, and where this is a virtual machine "
                    + "itself, have nested virtualisation switched on for it."
            case .permissionDenied, .notPermitted:
                "/dev/kvm may not be opened: the user must be in the group kvm, or own the device."
            case .notSupported:
                "/dev/kvm does not speak version \(KVM.expectedAPIVersion) of the KVM API, the only one there is."
            default:
                "/dev/kvm cannot be opened."
            }
        return SandboxError(.kvmUnavailable, message, underlyingError: error)
    }

    /// How ring 3 gets at the library's ports on this KVM, and what it has of the processor: tried once in a process.
    func platform() throws(SandboxError) -> Platform {
        if let platform = known.withLock({ $0.platform }) { return platform }
        let platform = try GuestMachine.probePlatform(of: self)
        known.withLock { $0.platform = platform }
        return platform
    }

    /// The special registers of a new virtual CPU, which are always the same: read once in a process.
    func initialSpecialRegisters(of virtualCPU: borrowing VirtualCPU) throws(Errno) -> SpecialRegisters {
        if let registers = known.withLock({ $0.registers }) { return registers }
        let registers = try virtualCPU.specialRegisters()
        known.withLock { $0.registers = registers }
        return registers
    }
}
