import Glibc
@testable import LinuxKVM
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
        guard case .ioOut(port: 0x10, size: 1, count: 1, let bytes) = first else { throw UnexpectedExit(first) }
        #expect(bytes.count == 1)
        // Safe, as in all tests: the virtual CPU has not run since.
        #expect(unsafe bytes.value == 0x2A)

        let second = try machine.virtualCPU.run()
        guard case .ioOut(port: 0x1234, size: 2, count: 1, let bytes) = second else { throw UnexpectedExit(second) }
        #expect(unsafe bytes.value == 0xBEEF)

        try machine.expectHalt()
    }

    @Test func inGetsTheBytesStoredInTheExit() throws {
        let machine = try TestMachine.realMode([
            0xE5, 0x20,  // in $0x20, %ax
            0xE7, 0x10,  // out %ax, $0x10
            0xF4,  // hlt
        ])
        let exit = try machine.virtualCPU.run()
        guard case .ioIn(port: 0x20, size: 2, count: 1, let bytes) = exit else { throw UnexpectedExit(exit) }
        // Longer than there is room for: the rest must not go anywhere.
        unsafe bytes.value = 0xFFFF_FFFF_FFFF_1234
        #expect(try machine.nextOut(port: 0x10) == 0x1234)
        try machine.expectHalt()
    }

    @Test func stringOutHasAllItsBytes() throws {
        let machine = try TestMachine.realMode([
            0xFC,  // cld
            0xBE, 0x00, 0x60,  // mov $0x6000, %si
            0xB9, 0x03, 0x00,  // mov $3, %cx
            0xBA, 0x10, 0x00,  // mov $0x10, %dx
            0xF3, 0x6E,  // rep outsb %ds:(%si), (%dx)
            0xF4,  // hlt
        ])
        machine.memory.store([7, 8, 9], at: 0x6000)
        // A processor may report the items together or one after another.
        var written: [UInt8] = []
        while written.count < 3 {
            let exit = try machine.virtualCPU.run()
            guard case .ioOut(port: 0x10, size: 1, let count, let bytes) = exit else { throw UnexpectedExit(exit) }
            #expect(Int(count) == bytes.count)
            unsafe bytes.withUnsafeMutableBytes { bytes in unsafe written.append(contentsOf: bytes) }
        }
        #expect(written == [7, 8, 9])
        try machine.expectHalt()
    }

    @Test func accessesWithoutMemoryAreMMIO() throws {
        let machine = try TestMachine.realMode([
            0xB8, 0x00, 0x90,  // mov $0x9000, %ax
            0x8E, 0xD8,  // mov %ax, %ds
            0xC7, 0x06, 0x08, 0x00, 0xFE, 0xCA,  // movw $0xcafe, 0x8
            0xA1, 0x10, 0x00,  // mov 0x10, %ax
            0xE7, 0x10,  // out %ax, $0x10
            0xF4,  // hlt
        ])
        let write = try machine.virtualCPU.run()
        guard case .mmioWrite(address: 0x9_0008, let bytes) = write else { throw UnexpectedExit(write) }
        #expect(bytes.count == 2)
        #expect(unsafe bytes.value == 0xCAFE)

        let read = try machine.virtualCPU.run()
        guard case .mmioRead(address: 0x9_0010, let bytes) = read else { throw UnexpectedExit(read) }
        #expect(bytes.count == 2)
        unsafe bytes.value = 0x5678
        #expect(try machine.nextOut(port: 0x10) == 0x5678)
        try machine.expectHalt()
    }

    @Test func longModeComputesWithSixtyFourBits() throws {
        let machine = try TestMachine.longMode([
            0x31, 0xC0,  // xor %eax, %eax
            0xB9, 0x64, 0x00, 0x00, 0x00,  // mov $100, %ecx
            0x48, 0x01, 0xC8,  // add %rcx, %rax
            0xFF, 0xC9,  // dec %ecx
            0x75, 0xF9,  // jnz, 7 back
            0x48, 0xC1, 0xE0, 0x20,  // shl $32, %rax
            0x48, 0x89, 0x04, 0x25, 0x00, 0x60, 0x00, 0x00,  // mov %rax, 0x6000
            0x48, 0xC1, 0xE8, 0x20,  // shr $32, %rax
            0xE7, 0x10,  // out %eax, $0x10
            0xF4,  // hlt
        ])
        #expect(try machine.nextOut(port: 0x10) == 5050)
        #expect(machine.memory.load(UInt64.self, at: 0x6000) == 5050 << 32)
        try machine.expectHalt()
    }

    @Test func tripleFaultIsShutdown() throws {
        let machine = try TestMachine.longMode([
            0x0F, 0x0B,  // ud2
        ])
        // No handler for it, nor for the fault that this is.
        var special = try machine.virtualCPU.specialRegisters()
        special.idt = DescriptorTable(base: 0, limit: 0)
        try machine.virtualCPU.setSpecialRegisters(special)
        let exit = try machine.virtualCPU.run()
        guard case .shutdown = exit else { throw UnexpectedExit(exit) }
    }

    @Test func removedMemoryBecomesMMIO() throws {
        let machine = try TestMachine.longMode([
            0x8B, 0x04, 0x25, 0x00, 0x00, 0x10, 0x00,  // mov 0x100000, %eax
            0xE7, 0x10,  // out %eax, $0x10
            0x8B, 0x04, 0x25, 0x00, 0x00, 0x10, 0x00,  // mov 0x100000, %eax
            0xE7, 0x10,  // out %eax, $0x10
            0xF4,  // hlt
        ])
        let page = try TestMemory(size: 4096)
        page.store([1, 2, 3, 4], at: 0)
        unsafe try machine.virtualMachine.setMemory(slot: 1, guestPhysicalAddress: 0x10_0000, memory: page.bytes)
        #expect(try machine.nextOut(port: 0x10) == 0x0403_0201)

        try machine.virtualMachine.removeMemory(slot: 1)
        let exit = try machine.virtualCPU.run()
        guard case .mmioRead(address: 0x10_0000, let bytes) = exit else { throw UnexpectedExit(exit) }
        unsafe bytes.value = 0x99
        #expect(try machine.nextOut(port: 0x10) == 0x99)
        try machine.expectHalt()
    }

    @Test(.requires(.readOnlyMemory, "KVM_CAP_READONLY_MEM")) func writeToReadOnlyMemoryIsMMIO() throws {
        let machine = try TestMachine.longMode([
            0xC6, 0x04, 0x25, 0x00, 0x00, 0x10, 0x00, 0x55,  // movb $0x55, 0x100000
            0x8A, 0x04, 0x25, 0x00, 0x00, 0x10, 0x00,  // mov 0x100000, %al
            0xE6, 0x10,  // out %al, $0x10
            0xF4,  // hlt
        ])
        let page = try TestMemory(size: 4096)
        page.store([0x11], at: 0)
        unsafe try machine.virtualMachine.setMemory(
            slot: 1,
            flags: .readOnly,
            guestPhysicalAddress: 0x10_0000,
            memory: page.bytes
        )
        let exit = try machine.virtualCPU.run()
        guard case .mmioWrite(address: 0x10_0000, let bytes) = exit else { throw UnexpectedExit(exit) }
        #expect(unsafe bytes.value == 0x55)
        #expect(try machine.nextOut(port: 0x10) == 0x11)
        try machine.expectHalt()
    }

    @Test func memoryThatCannotBeHadIsAMemoryFaultOrAnError() throws {
        // In ring 3: a KVM that emulates ring 0 makes this an MMIO exit there.
        let code: [UInt8] = [
            0x8B, 0x04, 0x25, 0x00, 0x00, 0x10, 0x00,  // mov 0x100000, %eax
        ]
        let machine = try TestMachine.longMode(code, ring: 3)
        let page = try TestMemory(size: 4096)
        unsafe try machine.virtualMachine.setMemory(slot: 1, guestPhysicalAddress: 0x10_0000, memory: page.bytes)
        unsafe mprotect(page.bytes.baseAddress, page.bytes.count, PROT_NONE)
        do {
            let exit = try machine.virtualCPU.run()
            guard case .memoryFault(_, guestPhysicalAddress: 0x10_0000, _) = exit else { throw UnexpectedExit(exit) }
        } catch let error as Errno {
            #expect(error == .badAddress)
        }
    }

    @Test func bytesOutsideTheMappingAreNotGivenOut() throws {
        let machine = try TestMachine.realMode([])
        let size = try machine.kvm.virtualCPUMappingSize()
        let whole = machine.virtualCPU.mapping.bytes(at: 0, count: UInt64(size))
        #expect(whole?.count == size)
        for (offset, count) in [(UInt64(size), 1), (1, UInt64(size)), (.max, 2), (2, .max)] as [(UInt64, UInt64)] {
            let bytes = machine.virtualCPU.mapping.bytes(at: offset, count: count)
            #expect(bytes == nil)
        }
    }
}
