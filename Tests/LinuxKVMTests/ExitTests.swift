import LinuxKVM
import Synchronization
import SystemPackage
import Testing

/// What guests do, and the exits it makes.
@Suite(.requiresKVM, .timeLimit(.minutes(1)))
struct ExitTests {
    @Test func outAndHaltInRealModeAreExits() throws {
        let machine = try TestMachine.realMode([
            0xB0, 0x2A,  // mov $0x2a, %al
            0xE6, 0x10,  // out %al, $0x10
            0xBA, 0x34, 0x12,  // mov $0x1234, %dx
            0xB8, 0xEF, 0xBE,  // mov $0xbeef, %ax
            0xEF,  // out %ax, (%dx)
            0xF4,  // hlt
        ])
        let first = try machine.virtualCPU.run()
        guard case .ioOut(port: 0x10, size: 1, count: 1, let bytes) = first else {
            Issue.record("\(first)")
            return
        }
        #expect(bytes.count == 1)
        // Safe, in all tests: the virtual CPU has not run since.
        #expect(unsafe bytes.value == 0x2A)

        let second = try machine.virtualCPU.run()
        guard case .ioOut(port: 0x1234, size: 2, count: 1, let bytes) = second else {
            Issue.record("\(second)")
            return
        }
        #expect(unsafe bytes.value == 0xBEEF)

        let third = try machine.virtualCPU.run()
        guard case .hlt = third else {
            Issue.record("\(third)")
            return
        }
    }
}
