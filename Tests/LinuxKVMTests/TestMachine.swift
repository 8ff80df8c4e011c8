import LinuxKVM
import SystemPackage

/// A virtual machine with one virtual CPU and a slot of memory at guest physical address 0, ready to run some code.
struct TestMachine: ~Copyable {
    /// Where the code is.
    static let codeAddress: UInt64 = 0x8000
    /// Where the stack ends.
    static let stackEnd: UInt64 = 0x8000
    static let memorySize = 0x8_0000

    // Destroyed in this order.
    let virtualCPU: VirtualCPU
    let virtualMachine: VirtualMachine
    let kvm: KVM
    let memory: TestMemory

    private init(code: [UInt8]) throws(Errno) {
        let kvm = try KVM()
        let memory = try TestMemory(size: TestMachine.memorySize)
        let virtualMachine = try kvm.createVirtualMachine()
        // Real mode on Intel processors; beyond the memory.
        try virtualMachine.setTaskStateSegmentAddress(0xFFFB_D000)
        unsafe try virtualMachine.setMemory(slot: 0, guestPhysicalAddress: 0, memory: memory.bytes)
        let virtualCPU = try virtualMachine.createVirtualCPU(mappingSize: kvm.virtualCPUMappingSize())
        memory.store(code, at: Int(TestMachine.codeAddress))
        self.virtualCPU = virtualCPU
        self.virtualMachine = virtualMachine
        self.kvm = kvm
        self.memory = memory
    }

    private func start() throws(Errno) {
        var registers = Registers()
        registers.rip = TestMachine.codeAddress
        registers.rsp = TestMachine.stackEnd
        try virtualCPU.setRegisters(registers)
    }

    /// A machine that will run 16-bit code, all segments at 0.
    static func realMode(_ code: [UInt8]) throws(Errno) -> TestMachine {
        let machine = try TestMachine(code: code)
        var special = try machine.virtualCPU.specialRegisters()
        special.cs.base = 0
        special.cs.selector = 0
        try machine.virtualCPU.setSpecialRegisters(special)
        try machine.start()
        return machine
    }

    /// A machine that will run 64-bit code, with the first 2 MiB mapped to themselves by one large page.
    static func longMode(_ code: [UInt8], ring: UInt8 = 0) throws(Errno) -> TestMachine {
        let machine = try TestMachine(code: code)
        // Present, writable, for all rings; the last is a large page too.
        machine.memory.store(0x2000 | 0b111, at: 0x1000)
        machine.memory.store(0x3000 | 0b111, at: 0x2000)
        machine.memory.store(0x0000 | 0b1000_0111, at: 0x3000)

        var special = try machine.virtualCPU.specialRegisters()
        special.cr3 = 0x1000
        special.cr4 = 1 << 5  // PAE
        special.cr0 = 1 << 31 | 1 << 5 | 1 << 4 | 1  // PG, NE, ET, PE
        special.efer = 1 << 10 | 1 << 8  // LMA, LME
        special.cs = Segment(
            limit: .max,
            selector: 0x8 | UInt16(ring),
            type: 0b1011,
            present: true,
            privilegeLevel: ring,
            codeOrData: true,
            long: true,
            granularity: true
        )
        let data = Segment(
            limit: .max,
            selector: 0x10 | UInt16(ring),
            type: 0b0011,
            present: true,
            privilegeLevel: ring,
            defaultSize32: true,
            codeOrData: true,
            granularity: true
        )
        special.ds = data
        special.es = data
        special.fs = data
        special.gs = data
        special.ss = data
        try machine.virtualCPU.setSpecialRegisters(special)
        try machine.start()
        return machine
    }
}

/// An exit that a test did not expect.
struct UnexpectedExit: Error, CustomStringConvertible {
    let description: String

    init(_ exit: Exit) {
        self.description = "\(exit)"
    }
}

extension TestMachine {
    /// Runs up to an `out` to the port, and says what was written.
    func nextOut(port expected: UInt16) throws -> UInt64 {
        let exit = try virtualCPU.run()
        guard case .ioOut(expected, _, 1, let bytes) = exit else { throw UnexpectedExit(exit) }
        // Safe: the virtual CPU has not run since.
        return unsafe bytes.value
    }

    /// Runs up to a `hlt`.
    func expectHalt() throws {
        let exit = try virtualCPU.run()
        guard case .hlt = exit else { throw UnexpectedExit(exit) }
    }
}
