import Glibc
import Testing

@testable import MicroVM

/// Nothing of the last tenant remains after a restore: no byte, no register.
@Suite(.requiresKVM, .timeLimit(.minutes(10))) struct InnocenceTests {
    /// Everything a guest can see of itself at the entry of a function.
    private struct Sight: Equatable {
        var registers: [UInt8]
        var extendedState: [UInt8]
    }

    private static func look(_ sandbox: Sandbox) async throws -> Sight {
        let knowsXSave: Bool = try await sandbox.call("knows_xsave")
        try await sandbox.call("look", knowsXSave)
        return Sight(
            registers: try await sandbox.call("registers"),
            extendedState: try await sandbox.call("extended_state")
        )
    }

    /// The memory as a guest has it, all that a guest or the host could have written.
    private static func memory(_ sandbox: Sandbox) async throws -> [UInt8] {
        try await sandbox.run { sandbox in
            let memory = try sandbox.memory
            return unsafe Array(memory.hostBytes(at: 0x10000, count: Int(memory.heapEnd) - 0x10000))
        }
    }

    @Test func `a tenant that hides everywhere has hidden nothing`() async throws {
        let sandbox = try await Guest.hideout.sandbox { $0.memoryLimit = 12 << 20 }
        let word = try await SharedWord(of: sandbox)
        let snapshot = try await sandbox.snapshot()
        let memory = try await Self.memory(sandbox)
        try await sandbox.restore(to: snapshot)
        let sight = try await Self.look(sandbox)
        // A KVM that runs ring 3 directly lets it write the bases.
        let bases = (try? await sandbox.call("read_gs_base", returning: UInt64.self)) != nil
        for round in 0..<8 {
            try await sandbox.restore(to: snapshot)
            word.value = 0
            let call = Task { try await sandbox.call("hide", word.address, bases && round % 2 == 0) }
            await waitUntil { word.value == 1 }
            // The registers are as the guest has set them, so the kill catches it with everything hidden.
            #expect(await onThread { sandbox.interruptHandle.kill() } == .signalled)
            let error = await #expect(throws: SandboxError.self) { try await call.value }
            let registers = try #require(error?.interruption?.registers)
            #expect(registers.r15 == 0x5ec7_e75e_c7e7 && registers.rflags & 0x24_0cd5 == 0x24_0cd5)
            let dirty = try await sandbox.pullFullState()
            #expect(dirty.extendedState[32..<160].contains(0x5e))
            try await sandbox.restore(to: snapshot)
            #expect(try await Self.memory(sandbox) == memory)
            #expect(try await Self.look(sandbox) == sight)
            #expect(!sight.registers.contains(0x5e) && !sight.extendedState.contains(0x5e))
        }
    }

    @Test func `an exception that was about to be delivered is not the next tenant's`() async throws {
        let sandbox = try await Guest.faults.sandbox()
        let snapshot = try await sandbox.snapshot()
        let faults = [
            "read_null", "write_own_code", "divide_by_zero", "undefined_instruction", "breakpoint", "single_step",
            "overflow_stack", "interrupt_0x80", "read_supervisor", "misaligned_vector",
        ]
        for fault in faults {
            await #expect(throws: SandboxError.self) { try await sandbox.call(fault) }
            try await sandbox.restore(to: snapshot)
            #expect(try await sandbox.call("answer") == 42)
        }
    }

    @Test func `random guests leave nothing, over and over`() async throws {
        let sandbox = try await Guest.state.sandbox { $0.memoryLimit = 24 << 20 }
        try await sandbox.call("write_pages", 0 as UInt64, 64 as UInt64, 3 as UInt64, 9 as UInt64)
        let snapshot = try await sandbox.snapshot()
        let expected = try await Self.memory(sandbox)
        var generator = SystemRandomNumberGenerator()
        let rounds = Surroundings.isStress ? 10_000 : Surroundings.scaled(1_000)
        var resident = 0
        for round in 0..<rounds {
            let first = UInt64.random(in: 0..<500, using: &generator)
            let count = UInt64.random(in: 0..<(round % 50 == 0 ? 1500 : 40), using: &generator)
            let value = UInt64.random(in: 0...(.max), using: &generator)
            try await sandbox.call("write_pages", first, count, 1 + value % 2, value)
            try await sandbox.call("set_state", value)
            try await sandbox.restore(to: snapshot)
            if round % 1000 == 999 || round == rounds - 1 {
                #expect(try await Self.memory(sandbox) == expected)
            } else {
                // A sample of pages, among them some that were written.
                let pages = (0..<16).map { _ in UInt64.random(in: 0..<2000, using: &generator) } + [first, 0]
                try await sandbox.run { sandbox in
                    let memory = try sandbox.memory
                    let heap = memory.addressSpace.heap.lowerBound
                    for page in pages {
                        let offset = Int(heap + page * 4096)
                        let bytes = unsafe memory.hostBytes(at: UInt64(offset), count: 4096)
                        let isEqual = unsafe expected.withUnsafeBytes { expected in
                            unsafe memcmp(bytes.baseAddress!, expected.baseAddress! + offset - 0x10000, 4096) == 0
                        }
                        #expect(isEqual, "page \(page) in round \(round)")
                    }
                }
            }
            if round == rounds / 2 { resident = Resources().residentKibibytes }
        }
        #expect(Resources().residentKibibytes < resident + 32 << 10)
    }
}
