import LinuxKVM
import SystemPackage

/// What can be found out about the KVM device by opening it.
struct KVMDevice: Sendable {
    /// Whether it can be used, and if not, why.
    enum State: Sendable, Equatable {
        case usable
        case missing
        /// The device is there, but no module of the kernel serves it.
        case notServed
        case notPermitted
        /// Something else is at that path.
        case notKVM
        case wrongVersion
        case failed(Errno)

        init(_ error: Errno) {
            self =
                switch error {
                case .noSuchFileOrDirectory: .missing
                case .noSuchAddressOrDevice, .operationNotSupportedByDevice: .notServed
                case .permissionDenied, .notPermitted: .notPermitted
                case .inappropriateIOCTLForDevice: .notKVM
                case .notSupported: .wrongVersion
                default: .failed(error)
                }
        }
    }

    /// What the library has a use for.
    struct Ability: Sendable, Encodable {
        var name: String
        /// Whether nothing goes without it.
        var isRequired: Bool
        var isPresent: Bool
        var purpose: String
    }

    var state: State
    var abilities: [Ability] = []

    init(path: FilePath = KVM.defaultPath) {
        do throws(Errno) {
            let kvm = try KVM(path: path)
            state = .usable
            abilities = Self.wanted.map { wanted in
                Ability(
                    name: wanted.name,
                    isRequired: wanted.isRequired,
                    isPresent: kvm.check(wanted.capability) & wanted.bits != 0,
                    purpose: wanted.purpose
                )
            }
        } catch {
            state = State(error)
        }
    }

    private static let wanted:
        [(capability: Capability, name: String, bits: Int32, isRequired: Bool, purpose: String)] = [
            (.userMemory, "KVM_CAP_USER_MEMORY", -1, true, "guests use memory of the process"),
            (.immediateExit, "KVM_CAP_IMMEDIATE_EXIT", -1, true, "guests are interrupted without a race"),
            (.syncRegisters, "KVM_CAP_SYNC_REGS", 0b11, false, "registers are exchanged without system calls"),
            (.extendedCPUID, "KVM_CAP_EXT_CPUID", -1, false, "the processor's features are passed on"),
            (.xcrs, "KVM_CAP_XCRS", -1, false, "AVX is switched on"),
            (.internalErrorDetails, "KVM_CAP_INTERNAL_ERROR_DATA", -1, false, "failures of KVM are explained"),
        ]
}
