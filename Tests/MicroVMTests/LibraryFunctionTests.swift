import Testing

@testable import MicroVM

/// The imports that the library itself provides.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct LibraryFunctionTests {
    private typealias Line = (stream: SandboxConfiguration.OutputStream, text: String)

    private func sandbox(_ guest: Guest, _ lines: Recorder<Line>) async throws -> Sandbox {
        try await guest.sandbox(guest == .hostCalls ? hostFunctions() : []) {
            $0.output = .handler { stream, bytes in lines.append((stream, String(decoding: bytes, as: UTF8.self))) }
        }
    }

    @Test func `output arrives as it is written, by stream`() async throws {
        let lines = Recorder<Line>()
        let sandbox = try await sandbox(.hello, lines)
        #expect(try await sandbox.call("hello") == 22)
        try await sandbox.call("greet", "Ada")
        try await sandbox.call("complain", "too cold")
        #expect(
            lines.all.filter { $0.stream == .standardOutput }.map(\.text).joined()
                == "Hello from a micro-VM\nHello, Ada!\n"
        )
        #expect(lines.all.filter { $0.stream == .standardError }.map(\.text) == ["too cold"])
    }

    @Test func `output that nobody wants costs nothing`() async throws {
        #expect(try await Guest.hello.sandbox().call("hello") == 22)
    }

    @Test func `there are two clocks, and they move on`() async throws {
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions())
        #expect(try await sandbox.call("clock_moves_on"))
        let before = MonotonicTime.nanoseconds(of: 0)
        let now: UInt64 = try await sandbox.call("real_time")
        #expect(now >= before && now <= MonotonicTime.nanoseconds(of: 0))
        let error = await #expect(throws: SandboxError.self) { try await sandbox.call("unknown_clock", Int32(2)) }
        #expect(error?.fault?.kind == .invalidHostCall && error?.fault?.symbol?.name == "unknown_clock")
    }

    @Test func `random bytes are random`() async throws {
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions())
        let first: [UInt8] = try await sandbox.call("random_bytes", UInt64(64))
        let second: [UInt8] = try await sandbox.call("random_bytes", UInt64(64))
        #expect(first.count == 64 && first != second && Set(first).count > 16)
        #expect(try await sandbox.call("random_bytes", UInt64(0), returning: [UInt8].self) == [])
    }

    @Test func `the heap is what the memory limit leaves, on whole pages, and empty`() async throws {
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions()) { $0.memoryLimit = 16 << 20 }
        let layout = try await sandbox.run { try $0.memory.addressSpace }
        let base: UInt64 = try await sandbox.call("heap_base")
        let length: UInt64 = try await sandbox.call("heap_length")
        #expect(base == layout.heap.lowerBound && length == UInt64(layout.heap.count))
        #expect(base % 4096 == 0 && length % 4096 == 0)
        #expect(length + layout.imageSize + (1 << 20) + (4 << 20) == 16 << 20)
    }

    @Test func `the runtime's allocator has all of the heap and gives it back`() async throws {
        let sandbox = try await Guest.memory.sandbox { $0.memoryLimit = 8 << 20 }
        #expect(try await sandbox.call("exercise_allocator", 5_000, UInt64(42), returning: Int.self) == 0)
        #expect(try await sandbox.call("refused_allocations", returning: Int.self) == 0)
        let blocks: Int = try await sandbox.call("exhaust_heap", UInt64(65536))
        #expect(blocks > 30)
        #expect(try await sandbox.call("exhaust_heap", UInt64(65536)) == blocks)
        #expect(try await sandbox.call("read_pages", UInt64(2), returning: UInt64.self) > 0)
    }

    /// A bad pointer or an absurd length, and what it is for.
    @Test(arguments: [
        (0, 1), (0x7f00_0000_0000, 16), (0x10000, 1), (0x21000, 8), (.max, 1), (0x8000_0000_0000_0000, .max),
    ])
    func `a pointer that is not the guest's own is a fault that names it`(_ address: UInt64, _ length: UInt64)
        async throws
    {
        for stream in [Int32(1), 2] {
            let lines = Recorder<Line>()
            let sandbox = try await sandbox(.hostCalls, lines)
            let error = await #expect(throws: SandboxError.self) {
                try await sandbox.call("write_at", stream, address, length)
            }
            #expect(error?.fault?.kind == .invalidPointer && error?.fault?.address == address)
            #expect(error?.fault?.access == .read && error?.fault?.symbol?.name == "write_at")
            #expect(lines.all.isEmpty)
            await expectPoisoned(sandbox, "call_tick")
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions())
        let error = await #expect(throws: SandboxError.self) { try await sandbox.call("random_at", address, length) }
        #expect(error?.fault?.kind == .invalidPointer && error?.fault?.access == .write)
    }

    @Test func `nothing at all may be written from anywhere`() async throws {
        let lines = Recorder<Line>()
        let sandbox = try await sandbox(.hostCalls, lines)
        try await sandbox.call("write_at", Int32(1), UInt64(0), UInt64(0))
        try await sandbox.call("random_at", UInt64.max, UInt64(0))
        #expect(lines.all.allSatisfy { $0.text.isEmpty })
    }

    @Test(arguments: [0, 3, -1, Int32.min, Int32.max])
    func `there are two streams and no others`(_ stream: Int32) async throws {
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions())
        let heap = try await sandbox.run { try $0.memory.addressSpace.heap.lowerBound }
        let error = await #expect(throws: SandboxError.self) {
            try await sandbox.call("write_at", stream, heap, UInt64(1))
        }
        #expect(error?.fault?.kind == .invalidHostCall)
    }

    @Test func `lines for a logger that is not there vanish, but are checked`() async throws {
        func sandbox() async throws -> Sandbox {
            try await Guest.logging.sandbox([HostFunction("host_event") { (_: Int64) in }])
        }
        try await sandbox().call("log_lines", 2 as Int32, 5)
        for (level, address, kind) in [(7, 0x22000, .invalidHostCall), (2, 8, .invalidPointer)]
            as [(Int32, UInt64, GuestFault.Kind)]
        {
            let error = await #expect(throws: SandboxError.self) {
                try await sandbox().call("log_at", level, address, 4 as UInt64)
            }
            #expect(error?.fault?.kind == kind && error?.fault?.symbol?.name == "log_at")
        }
    }

    @Test(arguments: [
        ("call_abort", "abort()"), ("free_twice", "was freed before"), ("fail_assertion", "assertion failed"),
    ])
    func `the runtime ends a guest with words`(_ function: String, _ words: String) async throws {
        let sandbox = try await Guest.memory.sandbox()
        let error = await #expect(throws: SandboxError.self) { try await sandbox.call(function, arguments: [0]) }
        #expect(error?.fault?.kind == .abort && error?.fault?.message?.contains(words) == true)
    }
}
