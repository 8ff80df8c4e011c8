import Testing

@testable import MicroVM

extension Trait where Self == ConditionTrait {
    /// The test runs guests: without a usable KVM device it is skipped, and says why.
    static var requiresKVM: Self {
        .enabled(if: reasonKVMIsMissing == nil, "\(reasonKVMIsMissing ?? "")")
    }
}

/// Why no guest can run here, or nil where one can.
private let reasonKVMIsMissing: String? = {
    do throws(SandboxError) {
        _ = try Hypervisor.shared().platform()
        return nil
    } catch {
        return "This test needs a KVM that runs sandboxes. \(error.message)"
    }
}()
