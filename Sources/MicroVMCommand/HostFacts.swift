import Glibc
import SystemPackage

/// What the system tells about itself without opening the KVM device.
struct HostFacts: Sendable, Equatable {
    /// The KVM modules of the kernel, such as `kvm_intel`.
    var modules: [String] = []
    /// The processor's virtualisation: `vmx`, `svm`, or none.
    var virtualization: String?
    /// Whether this is itself a virtual machine.
    var isVirtualMachine = false
    /// Whether this is a container, as far as can be seen.
    var isContainer = false

    /// The name of the KVM that serves the device.
    var implementation: String? {
        // Beside the one that does the work there is always the common part, called kvm alone.
        modules.first { $0.hasPrefix("kvm_") }
    }

    static func current() -> HostFacts {
        var facts = HostFacts()
        let known = ["kvm_intel", "kvm_amd", "kvm_pvm", "kvm"]
        facts.modules = known.filter { exists("/sys/module/\($0)") }
        facts.readProcessor(text(of: "/proc/cpuinfo"))
        facts.isContainer = exists("/.dockerenv") || exists("/run/.containerenv")
        return facts
    }

    /// Takes the flags of the first processor out of `/proc/cpuinfo`.
    mutating func readProcessor(_ text: String) {
        guard let line = text.split(separator: "\n").first(where: { $0.hasPrefix("flags") }) else { return }
        let flags = Set(line.split(whereSeparator: { " \t:".contains($0) }))
        virtualization = ["vmx", "svm"].first { flags.contains($0[...]) }
        isVirtualMachine = flags.contains("hypervisor")
    }

    private static func exists(_ path: String) -> Bool {
        // The path is only read.
        unsafe access(path, F_OK) == 0
    }

    private static func text(of path: FilePath) -> String {
        guard let file = try? FileDescriptor.open(path, .readOnly) else { return "" }
        let bytes = try? file.closeAfter {
            unsafe try [UInt8](unsafeUninitializedCapacity: 1 << 16) { buffer, count in
                // The buffer is what the read is bounded by, and `count` what it has written.
                count = unsafe try file.read(into: UnsafeMutableRawBufferPointer(buffer))
            }
        }
        return String(decoding: bytes ?? [], as: UTF8.self)
    }
}
