import LinuxKVM
import SystemPackage
import Testing

extension Trait where Self == ConditionTrait {
    /// The test runs guests: without a usable KVM device it is skipped, and says why.
    static var requiresKVM: Self {
        .enabled(if: reasonKVMIsMissing == nil, "\(reasonKVMIsMissing ?? "")")
    }

    /// The test needs something that not every KVM can do.
    static func requires(_ capability: Capability, _ name: String) -> Self {
        .enabled("This test needs a KVM with this capability: \(name).") {
            guard let kvm = try? KVM() else { return false }
            return kvm.check(capability) != 0
        }
    }
}

/// Why no KVM can be had here, or nil where one can.
private let reasonKVMIsMissing: String? = {
    do throws(Errno) {
        _ = try KVM()
        return nil
    } catch {
        return "This test needs read-write \(KVM.defaultPath): \(error)."
    }
}()
