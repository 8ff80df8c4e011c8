import Glibc
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
        #if Confinement
        // All tests in a confined process: see CONTRIBUTING. Tests themselves may do anything.
        if unsafe getenv("MICROVM_CONFINED") != nil {
            try Confinement.apply {
                $0.permissions = Confinement.Permissions(rawValue: .max)
                $0.additionalSystemCalls = [
                    "setrlimit", "prlimit64", "kill", "process_vm_writev", "process_vm_readv", "ptrace", "clone",
                    "sched_setscheduler", "prctl", "mlock", "mincore", "pipe", "ioctl",
                ]
            }
        }
        #endif
        _ = try Hypervisor.shared().platform()
        return nil
    } catch {
        return "This test needs a KVM that runs sandboxes. \(error.message)"
    }
}()
