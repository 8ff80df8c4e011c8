import LinuxKVM
import SystemPackage
import Testing

extension Trait where Self == ConditionTrait {
    /// The test runs guests: without a usable KVM device it is skipped, and says why.
    static var requiresKVM: Self {
        .enabled(if: reasonKVMIsMissing == nil, "\(reasonKVMIsMissing ?? "")")
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
