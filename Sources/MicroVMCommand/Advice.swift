/// What is wrong with a KVM device, and what to do about it.
struct Advice: Equatable {
    /// One sentence.
    var problem: String
    /// One sentence each, the most likely remedy first.
    var remedies: [String]

    /// Nothing for a device that can be used.
    init?(_ state: KVMDevice.State, _ facts: HostFacts, path: String) {
        switch state {
        case .usable:
            return nil
        case .missing:
            problem = "\(path) does not exist."
            remedies = Self.remediesForMissing(facts)
        case .notServed:
            problem = "\(path) is there, but the kernel has no KVM behind it."
            // Whatever else is loaded, it is not at work.
            var facts = facts
            facts.modules = []
            remedies = Self.remediesForMissing(facts)
        case .notPermitted:
            problem = "\(path) may not be opened for reading and writing by this user."
            remedies = [
                "Join the group that owns it, as a rule kvm: sudo usermod -aG kvm \"$USER\", and log in again.",
                "See who may: ls -l \(path). A rule of udev, or sudo chmod 660, gives it to its group for good.",
            ]
            if facts.isContainer { remedies.insert(Self.container, at: 0) }
        case .notKVM:
            problem = "\(path) is there, but it is not a KVM device."
            remedies = ["Find out what it is: ls -l \(path). KVM's is a character device with the numbers 10, 232."]
        case .wrongVersion:
            problem = "\(path) speaks another version of the KVM API than 12, the only one since Linux 2.6.22."
            remedies = ["Use a kernel of Linux 4.12 or later."]
        case .failed(let error):
            problem = "\(path) cannot be opened: \(error)."
            remedies = ["Look for messages of the kernel: sudo dmesg | grep -i kvm."]
        }
    }

    private static let container =
        "Give the device to this container: docker run --device /dev/kvm, or the like of it elsewhere."

    private static func remediesForMissing(_ facts: HostFacts) -> [String] {
        var remedies: [String] = []
        if facts.implementation != nil {
            if facts.isContainer { remedies.append(container) }
            let modules = facts.modules.joined(separator: ", ")
            remedies.append(
                "The kernel has KVM (\(modules)), so make the device, sudo mknod /dev/kvm c 10 232, or find out why "
                    + "udev has not made it."
            )
            return remedies
        }
        switch facts.virtualization {
        case "vmx": remedies.append("Load KVM's module for Intel processors: sudo modprobe kvm_intel.")
        case "svm": remedies.append("Load KVM's module for AMD processors: sudo modprobe kvm_amd.")
        default:
            if facts.isVirtualMachine {
                remedies.append(
                    "This is a virtual machine without virtualisation of its own: have nested virtualisation "
                        + "switched on for it (kvm_intel or kvm_amd with nested=1 on its host and a processor model "
                        + "that passes vmx or svm on, or the cloud's option of that name), or use another machine type."
                )
            } else {
                remedies.append("Switch virtualisation (Intel VT-x, AMD-V or SVM) on in the machine's firmware.")
            }
            remedies.append("Then load KVM's module: sudo modprobe kvm_intel, or sudo modprobe kvm_amd.")
        }
        if facts.isContainer { remedies.append(container) }
        return remedies
    }
}
