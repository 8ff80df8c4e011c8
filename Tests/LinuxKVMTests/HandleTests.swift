import Glibc
import SystemPackage
import Testing

@testable import LinuxKVM

/// Opening, refusing and letting go.
@Suite(.timeLimit(.minutes(1)))
struct HandleTests {
    @Test func openingAPathThatIsNotThereSaysSo() {
        #expect(throws: Errno.noSuchFileOrDirectory) { _ = try KVM(path: "/dev/not-there-at-all").apiVersion() }
    }

    @Test func openingAnotherDeviceSaysThatItIsNone() {
        #expect(throws: Errno.inappropriateIOCTLForDevice) { _ = try KVM(path: "/dev/null").apiVersion() }
    }

    @Test(.requiresKVM) func theSystemAnswers() throws {
        let kvm = try KVM()
        let version = try kvm.apiVersion()
        #expect(version == KVM.expectedAPIVersion)
        let size = try kvm.virtualCPUMappingSize()
        #expect(size >= 4096)
        let userMemory = kvm.check(.userMemory)
        #expect(userMemory == 1)
        let absent = kvm.check(Capability(rawValue: 1 << 20))
        #expect(absent == 0)
        let machine = try kvm.createVirtualMachine()
        let slots = machine.check(.memorySlots)
        #expect(slots > 1)
    }

    @Test(.requiresKVM) func supportedCPUIDIsTheSameFromATooSmallBuffer() throws {
        let kvm = try KVM()
        let entries = try kvm.supportedCPUID()
        #expect(entries.contains { $0.function == 1 })
        let grown = try kvm.supportedCPUID(firstCapacity: 1)
        #expect(grown.map(\.function) == entries.map(\.function))
    }

    @Test(.requiresKVM) func wrongMemoryIsRefused() throws {
        let kvm = try KVM()
        let machine = try kvm.createVirtualMachine()
        let memory = try TestMemory(size: 3 * 4096)
        func set(slot: UInt32, at address: UInt64, _ range: Range<Int>) -> Errno? {
            do throws(Errno) {
                // Safe: the machine never runs.
                unsafe try machine.setMemory(
                    slot: slot,
                    guestPhysicalAddress: address,
                    memory: UnsafeMutableRawBufferPointer(rebasing: memory.bytes[range])
                )
                return nil
            } catch {
                return error
            }
        }
        #expect(set(slot: 0, at: 0, 0..<0) == .invalidArgument)
        #expect(set(slot: 0, at: 1, 0..<4096) == .invalidArgument)
        #expect(set(slot: 0, at: 0, 1..<4097) == .invalidArgument)
        #expect(set(slot: 0, at: 0, 0..<100) == .invalidArgument)
        #expect(set(slot: 0, at: 0, 0..<8192) == nil)
        #expect(set(slot: 1, at: 4096, 8192..<12288) == .fileExists)
        #expect(throws: Errno.invalidArgument) { try machine.removeMemory(slot: 7) }
    }

    @Test(.requiresKVM) func virtualCPUsAreRefusedForAUsedNumberOrASmallMapping() throws {
        let kvm = try KVM()
        let machine = try kvm.createVirtualMachine()
        let size = try kvm.virtualCPUMappingSize()
        #expect(throws: Errno.invalidArgument) { _ = try machine.createVirtualCPU(mappingSize: 1024).xsaveSize }
        let virtualCPU = try machine.createVirtualCPU(identifier: 1, mappingSize: size)
        #expect(throws: Errno.fileExists) {
            _ = try machine.createVirtualCPU(identifier: 1, mappingSize: size).xsaveSize
        }
        _ = virtualCPU.xsaveSize
    }

    @Test(.requiresKVM) func aVirtualCPUOutlivesTheHandlesItCameFrom() throws {
        func make() throws -> VirtualCPU {
            let kvm = try KVM()
            return try kvm.createVirtualMachine().createVirtualCPU(mappingSize: kvm.virtualCPUMappingSize())
        }
        let virtualCPU = try make()
        let registers = try virtualCPU.registers()
        #expect(registers.rip == 0xFFF0)
    }

    @Test(.requiresKVM) func nothingIsLeftOfHandlesThatAreGone() async {
        // In a process of its own: other tests open descriptors meanwhile.
        await #expect(processExitsWith: .success) {
            func makeAll() throws {
                let machine = try TestMachine.realMode([])
                _ = try machine.virtualCPU.registers()
                // A virtual CPU that fails half way.
                _ = try? machine.virtualMachine.createVirtualCPU(identifier: 1, mappingSize: 1024).xsaveSize
                _ = try? KVM(path: "/dev/null").apiVersion()
            }
            try makeAll()
            let descriptors = countEntries(in: "/proc/self/fd")
            let mappings = countEntries(in: "/proc/self/map_files")
            for _ in 0..<50 { try makeAll() }
            #expect(countEntries(in: "/proc/self/fd") == descriptors)
            // The allocator may have taken one or two; 50 leaked ones are more.
            #expect(countEntries(in: "/proc/self/map_files") < mappings + 10)
        }
    }
}

/// How many entries a directory has.
private func countEntries(in directory: String) -> Int {
    // Safe: the stream is used here only, and closed.
    guard let stream = unsafe opendir(directory) else { return 0 }
    defer { unsafe closedir(stream) }
    var count = 0
    while unsafe readdir(stream) != nil { count += 1 }
    return count
}
