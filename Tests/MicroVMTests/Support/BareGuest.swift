import Glibc
import LinuxKVM
import Synchronization
import SystemPackage

@testable import MicroVM

/// A few instructions in ring 3 of a virtual machine, which access served memory: one sandbox of a ``ServedStretch``.
///
/// The guest's physical memory is the sandbox's, its addresses are the same: what is needed to run lies below the
/// regions, which begin at ``regionOffset``.
@safe final class BareGuest: @unchecked Sendable {
    // One thread at a time runs the virtual CPU; all that others use is the immediate exit byte, which is atomic.

    /// How an access ended.
    enum Outcome: Equatable {
        /// What was read; for a write, what was written.
        case done(UInt8)
        /// KVM could not have the memory.
        case badAddress
        /// A signal, or the byte that asks for this.
        case interrupted
        case other(String)
    }

    /// Where the regions begin, in bytes.
    static let regionOffset = 0x10000
    private static let loadCode: UInt64 = 0x8000
    private static let storeCode: UInt64 = 0x8100
    /// Where nothing is: an access there ends the run, and says what was read.
    private static let reportAddress: UInt64 = 0x10_0000

    // Destroyed in this order.
    private let virtualCPU: VirtualCPU
    private let virtualMachine: VirtualMachine
    private let stretch: ServedStretch

    init(_ stretch: ServedStretch, sandbox: Int = 0) throws {
        let kvm = try KVM()
        let virtualMachine = try kvm.createVirtualMachine()
        try virtualMachine.setTaskStateSegmentAddress(0xFFFB_D000)
        let start = stretch.address(-Self.regionOffset, sandbox: sandbox)
        // The stretch outlives the machine, and nobody else uses what is before the regions.
        let memory = unsafe UnsafeMutableRawBufferPointer(
            start: UnsafeMutableRawPointer(bitPattern: start),
            count: stretch.memory.locator.stride
        )
        precondition(memory.count <= Int(Self.reportAddress), "the guest reports where memory is")
        // Present, writable, for all rings; the last is one page of 2 MiB, mapped to itself.
        let tables: [(Int, UInt64)] = [(0x1000, 0x2000 | 0b111), (0x2000, 0x3000 | 0b111), (0x3000, 0b1000_0111)]
        for (offset, entry) in tables { unsafe memory.storeBytes(of: entry, toByteOffset: offset, as: UInt64.self) }
        let load: [UInt8] = [
            0x8A, 0x07,  // mov (%rdi), %al
            0x88, 0x04, 0x25, 0x00, 0x00, 0x10, 0x00,  // mov %al, 0x100000
        ]
        let store: [UInt8] = [
            0x88, 0x07,  // mov %al, (%rdi)
            0x88, 0x04, 0x25, 0x00, 0x00, 0x10, 0x00,  // mov %al, 0x100000
        ]
        for (address, code) in [(Self.loadCode, load), (Self.storeCode, store)] {
            unsafe memory[Int(address)..<Int(address) + code.count].copyBytes(from: code)
        }
        unsafe try virtualMachine.setMemory(slot: 0, guestPhysicalAddress: 0, memory: memory)
        let virtualCPU = try virtualMachine.createVirtualCPU(mappingSize: kvm.virtualCPUMappingSize())
        var special = try virtualCPU.specialRegisters()
        special.cr3 = 0x1000
        special.cr4 = 1 << 5  // PAE
        special.cr0 = 1 << 31 | 1 << 5 | 1 << 4 | 1  // PG, NE, ET, PE
        special.efer = 1 << 10 | 1 << 8  // LMA, LME
        special.cs = Segment(
            limit: .max,
            selector: 0xB,
            type: 0b1011,
            present: true,
            privilegeLevel: 3,
            codeOrData: true,
            long: true,
            granularity: true
        )
        let data = Segment(
            limit: .max,
            selector: 0x13,
            type: 0b0011,
            present: true,
            privilegeLevel: 3,
            defaultSize32: true,
            codeOrData: true,
            granularity: true
        )
        special.ds = data
        special.es = data
        special.fs = data
        special.gs = data
        special.ss = data
        try virtualCPU.setSpecialRegisters(special)
        self.virtualCPU = virtualCPU
        self.virtualMachine = virtualMachine
        self.stretch = stretch
    }

    /// Reads a byte of the regions.
    func load(at offset: Int) -> Outcome { access(offset, Self.loadCode, 0) }

    /// Writes one.
    func store(_ byte: UInt8, at offset: Int) -> Outcome { access(offset, Self.storeCode, byte) }

    private func access(_ offset: Int, _ code: UInt64, _ byte: UInt8) -> Outcome {
        do throws(Errno) {
            var registers = Registers()
            registers.rip = code
            registers.rsp = 0x8000
            registers.rdi = UInt64(Self.regionOffset + offset)
            registers.rax = UInt64(byte)
            try virtualCPU.setRegisters(registers)
        } catch {
            return .other("\(error)")
        }
        return resume()
    }

    /// Goes on where the guest was.
    func resume() -> Outcome {
        do throws(Errno) {
            let exit = try virtualCPU.run()
            switch exit {
            case .mmioWrite(address: Self.reportAddress, let bytes):
                // The virtual CPU has not run since.
                let byte = unsafe UInt8(truncatingIfNeeded: bytes.value)
                try virtualCPU.completePendingIO()
                return .done(byte)
            case .memoryFault: return .badAddress
            case .interrupted: return .interrupted
            default: return .other("\(exit)")
            }
        } catch {
            return error == .badAddress ? .badAddress : .other("\(error)")
        }
    }

    /// What a kick sets before it signals.
    func setImmediateExit(_ value: UInt8) {
        // The virtual CPU lives as long as this object.
        unsafe virtualCPU.immediateExit.pointee.store(value, ordering: .sequentiallyConsistent)
    }
}

/// A thread that lets SIGUSR2 through, which does nothing but to interrupt: its handle is given away before the body.
func onInterruptibleThread<Result: Sendable>(
    _ handle: Shared<pthread_t>,
    _ body: @escaping @Sendable () -> Result
) async -> Result {
    var action = sigaction()
    unsafe action.__sigaction_handler.sa_handler = ignoreSignal
    // The structure outlives the call, and the handler does nothing.
    unsafe sigaction(SIGUSR2, &action, nil)
    return await onThread {
        var signals = sigset_t()
        unsafe sigemptyset(&signals)
        unsafe sigaddset(&signals, SIGUSR2)
        unsafe pthread_sigmask(SIG_UNBLOCK, &signals, nil)
        handle.value = pthread_self()
        return body()
    }
}

private func ignoreSignal(_: Int32) {}
