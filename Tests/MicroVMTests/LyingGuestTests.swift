import CShims
import Testing

@testable import MicroVM

/// The mailbox and the two ports are within a guest's reach. Whatever it puts there ends in a typed fault, a wrong
/// result of its own, or nothing at all.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct LyingGuestTests {
    private func sandbox(_ seen: Recorder<String> = Recorder()) async throws -> Sandbox {
        try await Guest.lies.sandbox(lieFunctions(seen)) { $0.memoryLimit = 8 << 20 }
    }

    /// Where in the module's list of imports a name is.
    private func index(of name: String) throws -> UInt64 {
        UInt64(try #require(Guest.lies.module().imports.firstIndex { $0.name == name }))
    }

    @Test(arguments: [1000, 1 << 31, 1 << 32, 1 << 63, .max])
    func `a host call of an import that there is not is a fault`(_ index: UInt64) async throws {
        let sandbox = try await sandbox()
        let error = await #expect(throws: SandboxError.self) {
            try await sandbox.call("forge_call", index, UInt64(0), UInt64(0))
        }
        #expect(error?.fault?.kind == .invalidHostCall && error?.fault?.message?.contains("\(index)") == true)
        await expectPoisoned(sandbox)
    }

    @Test(arguments: [0, 8, 0xfff8, 0x10000, 0x21ff8, 0x7f00_0000_0000, 1 << 63, .max, .max - 7, .max - 15])
    func `a wild stack pointer is a fault when arguments are on the stack`(_ stack: UInt64) async throws {
        let seen = Recorder<String>()
        let sandbox = try await sandbox(seen)
        let error = await #expect(throws: SandboxError.self) {
            try await sandbox.call("forge_call", try index(of: "host_take"), stack, UInt64(1))
        }
        #expect(error?.fault?.kind == .invalidPointer && error?.fault?.access == .read)
        #expect(error?.fault?.address == stack &+ 8)
        #expect(seen.all.isEmpty)
        await expectPoisoned(sandbox)
    }

    @Test func `a wild stack pointer does not matter when nothing is on the stack`() async throws {
        let sandbox = try await sandbox()
        let error = await #expect(throws: SandboxError.self) {
            // Text at 1, one byte long.
            try await sandbox.call("forge_call", try index(of: "host_text"), UInt64.max, UInt64(1))
        }
        #expect(error?.fault?.kind == .invalidPointer && error?.fault?.address == 1)
    }

    @Test func `a forged host call with a real stack is a host call`() async throws {
        let seen = Recorder<String>()
        let sandbox = try await sandbox(seen)
        let stack = try await sandbox.run { try $0.memory.addressSpace.heap.lowerBound }
        let result: Int = try await sandbox.call("forge_call", try index(of: "host_take"), stack, UInt64(5))
        // The eighth is a double with the bits of 5.
        #expect(result == 7 && seen.all == ["5 5 5 5 5 5 0 2.5e-323"])
    }

    @Test(arguments: [0, 1, 0x21000, 1 << 63, .max])
    func `a mailbox full of nonsense does not outlast the next honest call`(_ nonsense: UInt64) async throws {
        let seen = Recorder<String>()
        let sandbox = try await sandbox(seen)
        for _ in 0..<3 {
            #expect(try await sandbox.call("scribble", nonsense, returning: Int.self) == 42)
            #expect(try await sandbox.call("scribble_and_call", nonsense, returning: Int.self) == 7)
            #expect(try await sandbox.call("scribble_and_call_text", nonsense, returning: String.self) == "texttext")
        }
        #expect(seen.all == Array(repeating: ["1 2 3 4 5 6 7 8.5", "text"], count: 3).flatMap(\.self))
    }

    @Test func `a forged return is a result like any other`() async throws {
        let sandbox = try await sandbox()
        #expect(try await sandbox.call("forge_return", UInt64(99), returning: UInt64.self) == 99)
        // What is left of the function runs at the next call, in its place: the guest has only cheated itself.
        for _ in 0..<3 { _ = try? await sandbox.call("answer", timeLimit: .seconds(5), returning: Int.self) }
        let text = try await self.sandbox()
        let error = await #expect(throws: SandboxError.self) {
            try await text.call("forge_return", UInt64.max, returning: String.self)
        }
        #expect(error?.code == .invalidResult)
    }

    @Test(arguments: [0, 0x10008, 0x21080, 0x7f00_0000_0000, 1 << 63, .max - 7])
    func `a thunk that runs without a stack is a fault`(_ stack: UInt64) async throws {
        for function in ["call_on_stack", "jump_on_stack"] {
            let sandbox = try await sandbox()
            let error = await #expect(throws: SandboxError.self) { try await sandbox.call(function, stack) }
            #expect(error?.code == .guestFault)
            await expectPoisoned(sandbox)
        }
    }

    @Test func `the library's own code can be entered anywhere`() async throws {
        // Each byte of the trampoline, and the first thunks.
        for address in Array(0x20000..<0x20000 + UInt64(shimSize)) + Array(0x22000..<0x22040) {
            let sandbox = try await sandbox()
            do {
                try await sandbox.call("jump_to", address, timeLimit: .milliseconds(10))
            } catch let error as SandboxError {
                let isExpected = error.code == .guestFault || error.code == .timeLimitExceeded
                if !isExpected { Issue.record(error, "entered at \(String(address, radix: 16))") }
            }
        }
    }

    private var shimSize: Int { Int(Trampoline.threadLocalAddress - Trampoline.entry) + 32 }

    @Test(arguments: 0..<60)
    func `noise in the mailbox is a fault or a result`(_ seed: UInt64) async throws {
        // The faults guest's own imports are the library's: abort, heap, random, write.
        let sandbox = try await Guest.faults.sandbox { $0.memoryLimit = 8 << 20 }
        for port in [UInt16(0x10), 0x11] {
            do {
                try await sandbox.call(
                    "forge_exit_with_noise",
                    port,
                    UInt64(0x21000),
                    UInt64(seed % 2 == 0 ? 512 : 24),
                    seed &* 2 + UInt64(port),
                    timeLimit: .seconds(2)
                )
                _ = try await sandbox.call("answer", timeLimit: .seconds(2), returning: Int.self)
            } catch let error as SandboxError {
                let codes: [SandboxError.Code] = [.guestFault, .timeLimitExceeded, .poisoned]
                #expect(codes.contains(error.code))
            }
        }
        #expect(try await Guest.arithmetic.sandbox().call("add", 2, 3) == 5)
    }

    @Test(arguments: [0, 1, 5, 100])
    func `each of the library's functions stands up to forged arguments`(_ value: UInt64) async throws {
        for index in 0..<UInt64(try Guest.faults.module().imports.count) {
            let sandbox = try await Guest.faults.sandbox()
            // A fill with the index from where the host looks for that, then the port.
            do {
                try await sandbox.call(
                    "forge_exit",
                    UInt16(0x11),
                    UInt64(SHIM_MAILBOX + SHIM_MAILBOX_IMPORT),
                    index,
                    value,
                    timeLimit: .seconds(2)
                )
            } catch let error as SandboxError {
                #expect(error.code == .guestFault || error.code == .timeLimitExceeded)
            }
        }
    }

    @Test(arguments: [0x10, 0x11])
    func `ports can be used at any width, and by string instructions`(_ port: UInt16) async throws {
        let attempts: [(String, [any GuestValue])] = [
            ("out_16", [port, UInt16(0xffff)]), ("out_32", [port, UInt32.max]), ("out_string", [port, UInt64(1)]),
            ("out_string", [port, UInt64(3000)]), ("in_8", [port]), ("in_32", [port]),
            ("in_string", [port, UInt64(100)]),
        ]
        for (function, arguments) in attempts {
            let sandbox = try await Guest.faults.sandbox()
            for _ in 0..<3 {
                do {
                    try await sandbox.call(function, arguments: arguments, timeLimit: .seconds(2))
                } catch let error as SandboxError {
                    let codes: [SandboxError.Code] = [.guestFault, .timeLimitExceeded, .poisoned]
                    #expect(codes.contains(error.code))
                }
            }
        }
        #expect(try await Guest.arithmetic.sandbox().call("add", 2, 3) == 5)
    }
}
