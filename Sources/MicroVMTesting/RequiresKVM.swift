import MicroVM
public import Testing

extension Trait where Self == ConditionTrait {
    /// The test runs guests: without a KVM that can run sandboxes it is skipped, and says why.
    public static var requiresKVM: Self {
        .enabled(if: reasonKVMIsMissing == nil, "\(reasonKVMIsMissing ?? "")")
    }
}

/// Why no guest can run here, or nil where one can.
private let reasonKVMIsMissing: String? = {
    do throws(SandboxError) {
        _ = try HostSupport()
        return nil
    } catch {
        return "This test needs a KVM that runs sandboxes. \(error.message)"
    }
}()
