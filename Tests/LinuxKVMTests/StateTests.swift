import LinuxKVM
import SystemPackage
import Testing

/// State that is set is the state that is read.
@Suite(.requiresKVM, .timeLimit(.minutes(1)))
struct StateTests {
    @Test func generalRegistersRoundTrip() throws {
        let machine = try TestMachine.longMode([])
        var registers = Registers()
        registers.rax = 1
        registers.rbx = 2
        registers.rcx = 3
        registers.rdx = 4
        registers.rsi = 5
        registers.rdi = 6
        registers.rsp = 7
        registers.rbp = 8
        registers.r8 = 9
        registers.r9 = 10
        registers.r10 = 11
        registers.r11 = 12
        registers.r12 = 13
        registers.r13 = 14
        registers.r14 = 15
        registers.r15 = 0x8000_0000_0000_0010
        registers.rip = 17
        registers.rflags = 0b1000_1101_0111
        try machine.virtualCPU.setRegisters(registers)
        let read = try machine.virtualCPU.registers()
        #expect(read == registers)
    }

    @Test func specialRegistersRoundTrip() throws {
        let machine = try TestMachine.longMode([])
        var registers = try machine.virtualCPU.specialRegisters()
        registers.fs.base = 0x1234_5000
        registers.gs.base = 0x7FFF_1234_5000
        registers.gdt = DescriptorTable(base: 0x5000, limit: 0x37)
        registers.idt = DescriptorTable(base: 0x6000, limit: 0xFFF)
        registers.cr2 = 0xDEAD_BEEF
        try machine.virtualCPU.setSpecialRegisters(registers)
        let read = try machine.virtualCPU.specialRegisters()
        #expect(read.fs.base == registers.fs.base)
        #expect(read.gs.base == registers.gs.base)
        #expect(read.cs == registers.cs)
        #expect(read.gdt == registers.gdt)
        #expect(read.idt == registers.idt)
        #expect(read.cr0 == registers.cr0)
        #expect(read.cr2 == registers.cr2)
        #expect(read.cr3 == registers.cr3)
        #expect(read.cr4 == registers.cr4)
        #expect(read.efer == registers.efer)
        #expect(read.apicBase == registers.apicBase)
    }

    @Test(arguments: [nil, 0, 32, 63, 64, 128, 255] as [UInt8?])
    func aPendingInterruptRoundTrips(vector: UInt8?) throws {
        let machine = try TestMachine.realMode([])
        var registers = try machine.virtualCPU.specialRegisters()
        #expect(registers.pendingInterrupt == nil)
        registers.pendingInterrupt = vector
        try machine.virtualCPU.setSpecialRegisters(registers)
        let read = try machine.virtualCPU.specialRegisters()
        #expect(read.pendingInterrupt == vector)
    }

    @Test func impossibleSpecialRegistersAreRefused() throws {
        let machine = try TestMachine.longMode([])
        var registers = try machine.virtualCPU.specialRegisters()
        registers.cr4 = 0  // long mode without PAE
        #expect(throws: Errno.invalidArgument) { try machine.virtualCPU.setSpecialRegisters(registers) }
    }

    @Test(.requires(.syncRegisters, "KVM_CAP_SYNC_REGS")) func sharedRegistersNeedNoRequest() throws {
        let machine = try TestMachine.longMode([
            0xFF, 0xC0,  // inc %eax
            0xE7, 0x10,  // out %eax, $0x10
            0xF4,  // hlt
        ])
        let sets = SharedRegisterSet(rawValue: UInt64(machine.kvm.check(.syncRegisters)))
        #expect(sets.contains([.registers, .specialRegisters]))

        machine.virtualCPU.validShared = [.registers, .specialRegisters]
        #expect(machine.virtualCPU.validShared == [.registers, .specialRegisters])
        let general = try machine.virtualCPU.registers()
        machine.virtualCPU.sharedRegisters = general
        machine.virtualCPU.sharedRegisters.rax = 41
        machine.virtualCPU.sharedSpecialRegisters = try machine.virtualCPU.specialRegisters()
        machine.virtualCPU.sharedSpecialRegisters.cr2 = 0xABC0_0000
        machine.virtualCPU.dirtyShared = [.registers, .specialRegisters]
        #expect(try machine.nextOut(port: 0x10) == 42)
        #expect(machine.virtualCPU.dirtyShared.isEmpty)
        #expect(machine.virtualCPU.sharedRegisters.rax == 42)

        try machine.virtualCPU.completePendingIO()
        let read = try machine.virtualCPU.registers()
        let special = try machine.virtualCPU.specialRegisters()
        #expect(machine.virtualCPU.sharedRegisters == read)
        #expect(machine.virtualCPU.sharedSpecialRegisters == special)
        #expect(special.cr2 == 0xABC0_0000)

        // Once more from the start.
        machine.virtualCPU.sharedRegisters = general
        machine.virtualCPU.dirtyShared = .registers
        #expect(try machine.nextOut(port: 0x10) == 1)
        try machine.expectHalt()
    }

    @Test func unknownSharedSetsAreRefused() throws {
        let machine = try TestMachine.realMode([])
        machine.virtualCPU.validShared = SharedRegisterSet(rawValue: 1 << 40)
        #expect(throws: Errno.invalidArgument) { _ = try machine.virtualCPU.run() }
    }

    @Test(.requires(.xsave, "KVM_CAP_XSAVE")) func extendedStateRoundTrips() throws {
        let machine = try TestMachine.realMode([])
        var state = try machine.virtualCPU.xsave()
        #expect(state.count == machine.virtualCPU.xsaveSize)
        #expect(state.count >= 4096)
        // XMM0's low byte, and SSE among the components that are not in their initial state (Intel SDM volume 1, 13.4).
        state[160] = 0x5A
        state[512] |= 0b10
        try machine.virtualCPU.setXSave(state)
        let read = try machine.virtualCPU.xsave()
        #expect(read[160] == 0x5A)
        #expect(throws: Errno.invalidArgument) { try machine.virtualCPU.setXSave([1, 2, 3]) }
    }

    @Test(.requires(.xcrs, "KVM_CAP_XCRS")) func extendedControlRegistersRoundTrip() throws {
        let machine = try TestMachine.realMode([])
        try machine.virtualCPU.setCPUID(machine.kvm.supportedCPUID())
        var registers = try machine.virtualCPU.extendedControlRegisters()
        #expect(registers.map(\.index) == [0])
        registers[0].value = 0b11  // x87, SSE
        try machine.virtualCPU.setExtendedControlRegisters(registers)
        let read = try machine.virtualCPU.extendedControlRegisters()
        #expect(read == registers)
        #expect(throws: Errno.invalidArgument) {
            // Without x87, which cannot be.
            try machine.virtualCPU.setExtendedControlRegisters([ExtendedControlRegister(index: 0, value: 0b10)])
        }
        #expect(throws: Errno.invalidArgument) {
            let tooMany = [ExtendedControlRegister](repeating: registers[0], count: 17)
            try machine.virtualCPU.setExtendedControlRegisters(tooMany)
        }
    }

    @Test func modelSpecificRegistersRoundTripUpToAnUnknownOne() throws {
        let machine = try TestMachine.longMode([])
        let star: UInt32 = 0xC000_0081
        let longStar: UInt32 = 0xC000_0082
        let unknown: UInt32 = 0x1234_5678
        let registers = [
            ModelSpecificRegister(index: star, value: 0x0013_0008_0000_0000),
            ModelSpecificRegister(index: longStar, value: 0x7000),
        ]
        let written = try machine.virtualCPU.setModelSpecificRegisters(registers)
        #expect(written == 2)
        let read = try machine.virtualCPU.modelSpecificRegisters([star, longStar])
        #expect(read == registers)
        let none = try machine.virtualCPU.modelSpecificRegisters([])
        #expect(none.isEmpty)
        let some = try machine.virtualCPU.modelSpecificRegisters([longStar, unknown, star])
        #expect(some == [registers[1]])
        #expect(throws: Errno.argListTooLong) {
            _ = try machine.virtualCPU.modelSpecificRegisters([UInt32](repeating: star, count: 256))
        }
        let most = try machine.virtualCPU.modelSpecificRegisters([UInt32](repeating: star, count: 255))
        #expect(most.count == 255)
    }

    @Test(.requires(.debugRegisters, "KVM_CAP_DEBUGREGS")) func debugRegistersRoundTrip() throws {
        let machine = try TestMachine.realMode([])
        let initial = try machine.virtualCPU.debugRegisters()
        #expect(initial == DebugRegisters())
        var registers = initial
        registers.address = [0x1000, 0x2000, 0x3000, 0x4000]
        registers.dr7 = 0x401
        try machine.virtualCPU.setDebugRegisters(registers)
        let read = try machine.virtualCPU.debugRegisters()
        #expect(read == registers)
    }

    @Test(.requires(.multiprocessingState, "KVM_CAP_MP_STATE")) func multiprocessingStateRoundTrips() throws {
        let machine = try TestMachine.realMode([])
        let state = try machine.virtualCPU.multiprocessingState()
        #expect(state == .runnable)
        try machine.virtualCPU.setMultiprocessingState(.runnable)
        #expect(throws: Errno.invalidArgument) {
            try machine.virtualCPU.setMultiprocessingState(MultiprocessingState(rawValue: 1000))
        }
    }

    @Test(.requires(.vCPUEvents, "KVM_CAP_VCPU_EVENTS")) func eventsRoundTrip() throws {
        let machine = try TestMachine.realMode([])
        var events = try machine.virtualCPU.events()
        #expect(!events.exception.injected)
        events.exception.injected = true
        events.exception.vector = 13
        events.exception.errorCode = 0x18
        try machine.virtualCPU.setEvents(events)
        let read = try machine.virtualCPU.events()
        #expect(read.exception.injected)
        #expect(read.exception.vector == 13)
        #expect(read.exception.errorCode == 0x18)
    }

    @Test func cpuidRoundTripsAndTooManyEntriesAreRefused() throws {
        let machine = try TestMachine.realMode([])
        let entries = try machine.kvm.supportedCPUID()
        for count in [257, 5000] {
            let tooMany = [CPUIDEntry](repeating: CPUIDEntry(function: 0x4000_0000), count: count)
            #expect(throws: Errno.argListTooLong) { try machine.virtualCPU.setCPUID(tooMany) }
        }
        try machine.virtualCPU.setCPUID([])
        let none = try machine.virtualCPU.cpuid()
        #expect(none.isEmpty)
        try machine.virtualCPU.setCPUID(entries)
        let read = try machine.virtualCPU.cpuid()
        #expect(read.map(\.function) == entries.map(\.function))
        #expect(read.map(\.index) == entries.map(\.index))
    }

    @Test(.requires(.guestDebug, "KVM_CAP_SET_GUEST_DEBUG")) func guestDebuggingCanBeSetAndEnded() throws {
        let machine = try TestMachine.longMode([
            0x90,  // nop
            0xF4,  // hlt
        ])
        try machine.virtualCPU.setGuestDebug([.enable, .singleStep])
        let first = try machine.virtualCPU.run()
        switch first {
        case .debug(exception: 1, let instructionPointer, _, _):
            #expect(instructionPointer == TestMachine.codeAddress + 1)
            try machine.virtualCPU.setGuestDebug([])
            try machine.expectHalt()
        // Not every KVM steps in every mode.
        case .hlt: try machine.virtualCPU.setGuestDebug([])
        default: throw UnexpectedExit(first)
        }
    }

    @Test(.requires(.msrFilter, "KVM_CAP_X86_MSR_FILTER")) func filteredRegistersFaultInTheGuestAndAllowedOnesDoNot()
        throws
    {
        let code: [UInt8] = [
            0xB9, 0x82, 0x00, 0x00, 0xC0,  // mov $0xc0000082, %ecx (LSTAR)
            0x0F, 0x32,  // rdmsr
            0xE7, 0x10,  // out %eax, $0x10
            0xF4,  // hlt
        ]
        func machine(allowing ranges: [MSRRange]) throws -> TestMachine {
            let machine = try TestMachine.longMode(code)
            let register = ModelSpecificRegister(index: 0xC000_0082, value: 0x7000)
            _ = try machine.virtualCPU.setModelSpecificRegisters([register])
            try machine.virtualMachine.setMSRFilter(denyingAllBut: ranges)
            return machine
        }
        let allowing = try machine(allowing: [MSRRange(first: 0x10), MSRRange(first: 0xC000_0080, count: 5)])
        #expect(try allowing.nextOut(port: 0x10) == 0x7000)

        let denied: [[MSRRange]] = [
            [], [MSRRange(first: 0xC000_0082, access: .write)], [MSRRange(first: 0xC000_0080, count: 2)],
        ]
        for ranges in denied {
            let denying = try machine(allowing: ranges)
            // The fault has no handler.
            let exit = try denying.virtualCPU.run()
            guard case .shutdown = exit else { throw UnexpectedExit(exit) }
        }
        for ranges in [[MSRRange(first: 0, count: 0)], [MSRRange(first: 0, count: 12_289)]] {
            #expect(throws: Errno.invalidArgument) { _ = try machine(allowing: ranges).kvm.apiVersion() }
        }
        #expect(throws: Errno.invalidArgument) {
            _ = try machine(allowing: [MSRRange](repeating: MSRRange(first: 0), count: 17)).kvm.apiVersion()
        }
    }
}
