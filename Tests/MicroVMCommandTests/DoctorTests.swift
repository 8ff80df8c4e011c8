import LinuxKVM
import MicroVM
import SystemPackage
import Testing

@testable import MicroVMCommand

@Suite(.timeLimit(.minutes(2)))
struct DoctorTests {
    @Test(.requiresKVM)
    func `a machine with KVM can run guests, and calls are measured`() async throws {
        let text = try await CommandRun.microvm("doctor")
        #expect(text.status == 0)
        #expect(text.outputText.contains("KVM_CAP_IMMEDIATE_EXIT"))
        #expect(text.outputText.hasSuffix("This machine can run guests.\n"))
        let json = try await CommandRun.microvm("doctor", "--json").json()
        #expect(json["isReady"] as? Bool == true)
        let measured = try #require(json["selfTest"] as? [String: Any])
        #expect(try #require(measured["guestCallMicroseconds"] as? Double) > 0)
        #expect(try #require(measured["polledCallMicroseconds"] as? Double) > 0)
        let polling = try #require(measured["polling"] as? [String: Any])
        #expect(Set(polling.keys) == ["hits", "misses", "microseconds"])
        #expect(try #require(measured["hostCallMicroseconds"] as? Double) > 0)
        #expect((json["device"] as? [String: Any])?["apiVersion"] as? Int == 12)
    }

    @Test func `the built-in guest is a module`() throws {
        let module = try GuestModule(SelfTestModule.bytes, name: "self-test")
        #expect(module.exports.map(\.name) == ["add", "call_host", "extended_state"])
        #expect(module.imports.map(\.name) == ["host"])
        #expect(module.imports.map(\.needsHostFunction) == [true])
    }

    @Test func `a device that is not there or is something else is told apart`() {
        #expect(KVMDevice(path: "/nonexistent").state == .missing)
        #expect(KVMDevice(path: "/dev/null").state == .notKVM)
        #expect(KVMDevice(path: "/tmp").state == .failed(.isDirectory))
        #expect(KVMDevice.State(.operationNotSupportedByDevice) == .notServed)
        #expect(KVMDevice.State(.permissionDenied) == .notPermitted)
        #expect(KVMDevice.State(.notSupported) == .wrongVersion)
    }

    @Test func `without a device the advice fits the machine`() {
        func remedies(_ facts: HostFacts) -> String {
            Advice(.missing, facts, path: "/dev/kvm")?.remedies.joined(separator: "\n") ?? ""
        }
        #expect(remedies(HostFacts(virtualization: "vmx")).contains("modprobe kvm_intel"))
        #expect(remedies(HostFacts(virtualization: "svm")).contains("modprobe kvm_amd"))
        #expect(remedies(HostFacts(isVirtualMachine: true)).contains("nested virtualisation"))
        #expect(remedies(HostFacts()).contains("firmware"))
        #expect(remedies(HostFacts(modules: ["kvm_amd", "kvm"])).contains("mknod /dev/kvm c 10 232"))
        #expect(remedies(HostFacts(modules: ["kvm_amd"], isContainer: true)).contains("--device /dev/kvm"))
    }

    @Test func `a device that no module serves is a matter of modules`() {
        let advice = Advice(.notServed, HostFacts(modules: ["kvm"], virtualization: "vmx"), path: "/dev/kvm")
        #expect(advice?.problem.contains("no KVM behind it") == true)
        #expect(advice?.remedies.first?.contains("modprobe kvm_intel") == true)
    }

    @Test func `a device that may not be opened is a matter of groups`() {
        let advice = Advice(.notPermitted, HostFacts(), path: "/dev/kvm")
        #expect(advice?.problem.contains("may not be opened") == true)
        #expect(advice?.remedies.first?.contains("usermod -aG kvm") == true)
        #expect(Advice(.usable, HostFacts(), path: "/dev/kvm") == nil)
    }

    @Test func `a report without KVM names problem and remedies`() {
        let report = DoctorReport(
            path: "/nonexistent",
            device: KVMDevice(path: "/nonexistent"),
            facts: HostFacts(virtualization: "svm")
        )
        #expect(!report.isReady)
        #expect(!report.device.exists)
        #expect(report.text.contains("This machine cannot run guests. /nonexistent does not exist."))
        #expect(report.text.contains("  - Load KVM's module for AMD processors: sudo modprobe kvm_amd."))
    }

    @Test func `the processor's flags are read from what Linux writes`() {
        var facts = HostFacts()
        facts.readProcessor("processor\t: 0\nflags\t\t: fpu vme svm hypervisor sse\n\nprocessor\t: 1\nflags\t\t: vmx\n")
        #expect(facts.virtualization == "svm")
        #expect(facts.isVirtualMachine)
    }
}
