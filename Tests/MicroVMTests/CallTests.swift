import Testing

@testable import MicroVM

/// Values go into the guest and come back as they were.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct CallTests {
    private func expectEcho<Value: GuestValue & FixedWidthInteger>(
        _ type: Value.Type,
        _ name: String,
        _ sandbox: Sandbox
    ) async throws {
        for value in [Value.min, .max, 0, 1, Value(truncatingIfNeeded: -1), Value.max / 3] {
            #expect(try await sandbox.call("echo_\(name)", value, returning: type) == value)
            #expect(try await sandbox.call("negate_\(name)", value, returning: type) == 0 &- value)
            #expect(try await sandbox.call("add_\(name)", value, Value.max, returning: type) == value &+ .max)
        }
    }

    @Test(arguments: [Guest.arithmetic, .swiftArithmetic])
    func `integers of every width keep their extremes`(_ guest: Guest) async throws {
        let sandbox = try await guest.sandbox()
        func expectEcho<Value: GuestValue & FixedWidthInteger>(_ type: Value.Type, _ name: String) async throws {
            if guest == .arithmetic { return try await self.expectEcho(type, name, sandbox) }
            for value in [Value.min, .max, 0, 1] {
                #expect(try await sandbox.call("echo_\(name)", value, returning: type) == value)
            }
        }
        try await expectEcho(Int8.self, "i8")
        try await expectEcho(Int16.self, "i16")
        try await expectEcho(Int32.self, "i32")
        try await expectEcho(Int64.self, "i64")
        try await expectEcho(Int.self, "i64")
        try await expectEcho(UInt8.self, "u8")
        try await expectEcho(UInt16.self, "u16")
        try await expectEcho(UInt32.self, "u32")
        try await expectEcho(UInt64.self, "u64")
        try await expectEcho(UInt.self, "u64")
    }

    @Test func `floating-point numbers keep every bit`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        let doubles: [Double] = [
            0, -0.0, 1.5, -1.5, .infinity, -.infinity, .greatestFiniteMagnitude, .leastNonzeroMagnitude, .ulpOfOne, .pi,
            .nan, Double(nan: 0x1234, signaling: false),
        ]
        for value in doubles {
            let echoed: Double = try await sandbox.call("echo_f64", value)
            #expect(echoed.bitPattern == value.bitPattern)
            let negated: Double = try await sandbox.call("negate_f64", value)
            #expect(negated.bitPattern == (-value).bitPattern)
        }
        let floats: [Float] = [
            0, -0.0, 1.5, .infinity, -.infinity, .greatestFiniteMagnitude, .leastNonzeroMagnitude, .pi, .nan,
        ]
        for value in floats {
            let echoed: Float = try await sandbox.call("echo_f32", value)
            #expect(echoed.bitPattern == value.bitPattern)
        }
        #expect(try await sandbox.call("add_f64", 0.1, 0.2) == 0.1 + 0.2)
        #expect(try await sandbox.call("add_f32", Float(0.1), Float(0.2)) == Float(0.1) + Float(0.2))
    }

    @Test func `truth values are truth values`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        for value in [true, false] {
            #expect(try await sandbox.call("echo_bool", value) == value)
            #expect(try await sandbox.call("not_bool", value) == !value)
            for other in [true, false] {
                #expect(try await sandbox.call("and_bool", value, other) == (value && other))
            }
        }
    }

    @Test func `what a function leaves above a narrow result is not looked at`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        #expect(try await sandbox.call("dirty_i8", returning: Int8.self) == -2)
        #expect(try await sandbox.call("dirty_u16", returning: UInt16.self) == 2)
        #expect(try await sandbox.call("dirty_u32", returning: UInt32.self) == 3)
        #expect(try await sandbox.call("dirty_bool", returning: Bool.self))
    }

    @Test func `narrow arguments are extended to the whole register`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        #expect(try await sandbox.call("register_of_argument", Int8(-1), returning: UInt64.self) == .max)
        #expect(try await sandbox.call("register_of_argument", UInt8(0xff), returning: UInt64.self) == 0xff)
        #expect(try await sandbox.call("register_of_argument", Int32.min, returning: Int64.self) == Int64(Int32.min))
        #expect(try await sandbox.call("register_of_argument", true, returning: UInt64.self) == 1)
    }

    @Test func `integers beyond six lie on the stack, in order`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        #expect(try await sandbox.call("sum_2", 1, 2) == 5)
        #expect(try await sandbox.call("sum_6", 1, 2, 3, 4, 5, 6) == 91)
        #expect(try await sandbox.call("sum_7", 1, 2, 3, 4, 5, 6, 7) == 140)
        #expect(try await sandbox.call("sum_8", 1, 2, 3, 4, 5, 6, 7, 8) == 204)
        #expect(try await sandbox.call("sum_9", 1, 2, 3, 4, 5, 6, 7, 8, 9) == 285)
        #expect(try await sandbox.call("sum_10", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10) == 385)
        #expect(try await sandbox.call("sum_11", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, -11) == 264)
        let sum: Double = try await sandbox.call(
            "sum_11_doubles",
            1.0,
            2.0,
            3.0,
            4.0,
            5.0,
            6.0,
            7.0,
            8.0,
            9.0,
            10.0,
            11.0
        )
        #expect(sum == 506)
    }

    @Test func `twenty arguments of both kinds find their places`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        var arguments: [any GuestValue] = []
        for pair in 0..<10 { arguments += [Int64(2 * pair + 1), Double(2 * pair + 2)] as [any GuestValue] }
        // The sum of the squares up to 20.
        #expect(try await sandbox.call("sum_20", arguments: arguments, returning: Double.self) == 2870)
        let narrow: [any GuestValue] = [
            Int8(-1), UInt8(255), Int16(-3), UInt16(65535), Int32(-5), UInt32.max, Int8(-7), UInt8(8), Int16.min,
            UInt16(10), true, Float(12.9),
        ]
        let terms: [Int] = [-1, 510, -9, 262_140, -25, 25_769_803_770, -49, 64, -294_912, 100, 11, 144]
        let sum = terms.reduce(0, +)
        #expect(try await sandbox.call("sum_narrow", arguments: narrow, returning: Int.self) == sum)
        let mixed: Double = try await sandbox.call("mix", Int32(-1), 2.5, UInt8(200), Float(0.5), Int64(-7), true)
        #expect(mixed == 577)
    }

    @Test func `a function finds the stack, the flags and the control words that it may expect`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        #expect(try await sandbox.call("stack_alignment", returning: Int.self) == 0)
        #expect(try await sandbox.call("stack_alignment_7", 1, 2, 3, 4, 5, 6, 7, returning: Int.self) == 0)
        #expect(try await sandbox.call("mxcsr", returning: UInt32.self) == 0x1f80)
        #expect(try await sandbox.call("x87_control_word", returning: UInt16.self) == 0x37f)
        #expect(try await sandbox.call("x87_sum", 100, returning: Double.self) == 338_350)
    }

    @Test func `AVX is there where the host has it`() async throws {
        guard try Hypervisor.shared().features.hasAVX else { return }
        let sandbox = try await Guest.arithmetic.sandbox()
        #expect(try await sandbox.call("avx_sum", 100, returning: Double.self) == 338_350)
        #expect(try await sandbox.call("xcr0", returning: UInt64.self) & 0b111 == 0b111)
    }

    @Test(arguments: ["", "hello", "Grüße, 世界 🎉", "nul \0 inside", String(repeating: "é", count: 10_000)])
    func `text comes back as it was`(_ text: String) async throws {
        let sandbox = try await Guest.echo.sandbox()
        #expect(try await sandbox.call("echo", text) == text)
        #expect(try await sandbox.call("byte_length", text) == text.utf8.count)
        #expect(try await sandbox.call("concatenate", text, "+\(text)") == "\(text)+\(text)")
    }

    @Test(arguments: [0, 1, 15, 16, 17, 4095, 4096, 24 << 10, 1 << 20])
    func `bytes come back as they were`(_ count: Int) async throws {
        let sandbox = try await Guest.echo.sandbox()
        let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        #expect(try await sandbox.call("echo", bytes) == bytes)
        #expect(try await sandbox.call("reverse", bytes) == Array(bytes.reversed()))
        #expect(
            try await sandbox.call("byte_sum", bytes, returning: UInt64.self) == bytes.reduce(0) { $0 + UInt64($1) }
        )
        let thinned = stride(from: 0, to: min(count / 3 * 3, 24576), by: 3).map { bytes[$0] }
        #expect(try await sandbox.call("thin_out", bytes) == thinned)
    }

    @Test func `text and numbers share the registers`() async throws {
        let sandbox = try await Guest.echo.sandbox()
        let result: Int = try await sandbox.call("mixed", 1000, "ab", 3.0, [UInt8(7), 8], 11)
        #expect(result == 1514)
    }

    @Test func `a function that returns nothing can be called for nothing`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        try await sandbox.call("nothing")
        try await sandbox.call("nothing", arguments: [1, 2.0, "three"])
    }

    @Test func `what a guest keeps in its variables persists from call to call, and in no other sandbox`() async throws
    {
        let sandbox = try await Guest.echo.sandbox()
        let other = try await Guest.echo.sandbox()
        for step in 1...5 {
            #expect(try await sandbox.call("add_to_static", 5) == 10 + 5 * step)
        }
        #expect(try await sandbox.call("get_static") == 35)
        #expect(try await other.call("get_static") == 10)
        #expect(try await sandbox.call("sum_of_zeros", returning: UInt64.self) == 0)
        try await sandbox.call("set_zero", UInt64(1_000_000), UInt8(9))
        #expect(try await sandbox.call("sum_of_zeros", returning: UInt64.self) == 9)
        #expect(try await other.call("sum_of_zeros", returning: UInt64.self) == 0)
    }

    // MARK: - Handles and dynamic calls

    @Test func `a function can be looked up once and called often`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        let add = try sandbox.function("add", as: ((Int, Int) -> Int).self)
        #expect(add.name == "add" && add.sandbox === sandbox)
        for number in 0..<50 { #expect(try await add(number, 1) == number + 1) }
        let nothing = try sandbox.function("nothing", as: (() -> Void).self)
        try await nothing()
        let sum = try sandbox.function("sum_7", as: ((Int, Int, Int, Int, Int, Int, Int) -> Int).self)
        #expect(try await sum(1, 2, 3, 4, 5, 6, 7) == 140)
        let inside = try await sandbox.run { _ in try await add(20, 22) }
        #expect(inside == 42)
        #expect(try await add(1, 2, timeLimit: .seconds(60)) == 3)
    }

    private enum Direction: Int32, GuestValue { case up = 1, down = -1 }
    private struct Distance: RawRepresentable, GuestValue, Equatable { var rawValue: Double }

    @Test func `values with raw values are passed as these`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        #expect(try await sandbox.call("negate_i32", Direction.up) == Direction.down)
        #expect(try await sandbox.call("negate_f64", Distance(rawValue: 2.5)) == Distance(rawValue: -2.5))
        let error = await #expect(throws: SandboxError.self) {
            try await sandbox.call("echo_i32", Int32(7), returning: Direction.self)
        }
        #expect(error?.code == .invalidResult)
        #expect(try await sandbox.call("add", 1, 1) == 2)
    }

    @Test func `pointers are numbers, and buffers are two`() async throws {
        let sandbox = try await Guest.echo.sandbox()
        let buffer = GuestBuffer(address: 0x1234, count: 77)
        #expect(try await sandbox.call("byte_length", buffer) == 77)
        #expect(try await sandbox.call("wild_span", buffer.address, buffer.count) == buffer)
        let pointer: GuestPointer<Int32> = try await sandbox.call("echo", GuestPointer<Int32>(address: 0x4000), 0)
        #expect(pointer.address == 0x4000 && pointer.advanced(by: -1).address == 0x3ffc)
        // A buffer that the guest has returned can be read between calls.
        let constant = try await sandbox.call("constant", returning: GuestBuffer.self)
        #expect(try await sandbox.run { try $0.memory.load(constant) } == Array("constant".utf8))
    }

    // MARK: - Refusals

    private func code(_ body: () async throws -> Void) async -> SandboxError.Code? {
        await #expect(throws: SandboxError.self) { try await body() }?.code
    }

    @Test func `what is not exported cannot be called`() async throws {
        let sandbox = try await Guest.initializers.sandbox()
        #expect(await code { try await sandbox.call("nobody") } == .unknownExport)
        #expect(await code { try await sandbox.call("") } == .unknownExport)
        #expect(await code { try await sandbox.call("twice\0") } == .unknownExport)
        // Data.
        #expect(await code { try await sandbox.call("operations") } == .unknownExport)
        #expect(throws: SandboxError.self) { try sandbox.function("nobody", as: (() -> Void).self) }
        #expect(try await sandbox.call("twice", 21) == 42)
    }

    @Test func `more words on the stack than there is room for are refused before the guest runs`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        let most = Array(repeating: 1, count: 6 + 128)
        #expect(try await sandbox.call("sum_6", arguments: most, returning: Int.self) == 21)
        #expect(await code { try await sandbox.call("sum_6", arguments: most + [1]) } == .invalidArgument)
        let doubles = Array(repeating: 1.0, count: 8 + 128)
        #expect(try await sandbox.call("sum_11_doubles", arguments: doubles, returning: Double.self) == 66)
        #expect(await code { try await sandbox.call("nothing", arguments: doubles + [1.0]) } == .invalidArgument)
        // Both kinds share the stack.
        let both: [any GuestValue] = most + doubles
        #expect(await code { try await sandbox.call("nothing", arguments: both) } == .invalidArgument)
        #expect(try await sandbox.call("add", 2, 3) == 5)
    }

    @Test func `arguments that do not fit into the arena are refused before the guest runs`() async throws {
        let sandbox = try await Guest.echo.sandbox { $0.argumentArenaSize = 8192 }
        let fitting = [UInt8](repeating: 1, count: 8191)
        #expect(try await sandbox.call("byte_sum", fitting, returning: Int.self) == 8191)
        #expect(await code { try await sandbox.call("byte_sum", fitting + [1]) } == .argumentTooLarge)
        #expect(
            await code { try await sandbox.call("byte_sum", [UInt8](repeating: 1, count: 1 << 20)) }
                == .argumentTooLarge
        )
        // Two of them share the arena, and an empty one needs a byte too.
        #expect(await code { try await sandbox.call("concatenate", fitting, "") } == .argumentTooLarge)
        let half = String(repeating: "h", count: 4000)
        #expect(try await sandbox.call("concatenate", half, half) == half + half)
        #expect(await code { try await sandbox.call("concatenate", half, half + half) } == .argumentTooLarge)
        // The room is there again for the next call.
        for _ in 0..<20 { #expect(try await sandbox.call("echo", fitting) == fitting) }
    }

    @Test func `a result that is not what it should be is the caller's to handle, and the sandbox lives on`()
        async throws
    {
        let sandbox = try await Guest.echo.sandbox()
        func spanCode(_ address: UInt64, _ count: UInt64) async -> SandboxError.Code? {
            await code { _ = try await sandbox.call("wild_span", address, count, returning: [UInt8].self) }
        }
        #expect(await code { _ = try await sandbox.call("not_utf8", returning: String.self) } == .invalidResult)
        #expect(try await sandbox.call("not_utf8", returning: [UInt8].self).count == 8)
        #expect(try await sandbox.call("null_span", returning: [UInt8].self) == [])
        #expect(try await sandbox.call("null_span", returning: String.self) == "")
        for name in ["null_span_with_length", "span_beyond_its_end", "span_that_wraps"] {
            #expect(await code { _ = try await sandbox.call(name, returning: [UInt8].self) } == .invalidResult)
            #expect(await code { _ = try await sandbox.call(name, returning: String.self) } == .invalidResult)
        }
        let layout = try await sandbox.run { try $0.memory.addressSpace }
        let places: [(UInt64, UInt64)] = [
            (0, 1), (0xffff, 2), (0x10000, 1), (0x11000, 8), (0x13000, 8), (0x20000, 16), (0x21000, 8), (0x22000, 1),
            (layout.stack.upperBound, 1), (layout.stack.lowerBound - 1, 2), (layout.arena.upperBound - 1, 2),
            (layout.heap.upperBound - 1, 2), (layout.heap.upperBound, 1), (layout.pageTables.lowerBound, 8),
            (layout.size, 1), (layout.heap.lowerBound, .max), (layout.heap.lowerBound, 1 << 63), (.max, 1),
            (.max, .max),
            (0x8000_0000_0000_0000, 1), (layout.heap.lowerBound, layout.heap.upperBound),
        ]
        for (address, count) in places { #expect(await spanCode(address, count) == .invalidResult) }
        // Nothing at all is nowhere, wherever it is.
        #expect(try await sandbox.call("wild_span", UInt64.max, UInt64(0), returning: [UInt8].self) == [])
        let stack: [UInt8] = try await sandbox.call("wild_span", layout.stack.upperBound - 8, UInt64(8))
        #expect(stack.count == 8)
        #expect(try await sandbox.call("get_static") == 10)
    }

    @Test func `a closed sandbox refuses everything`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        let add = try sandbox.function("add", as: ((Int, Int) -> Int).self)
        #expect(try await add(1, 2) == 3)
        await sandbox.close()
        await sandbox.close()
        #expect(await code { try await sandbox.call("nothing") } == .closed)
        #expect(await code { _ = try await add(1, 2) } == .closed)
        #expect(await code { try await sandbox.call("nothing", arguments: []) } == .closed)
        #expect(await code { try await sandbox.run { _ = try $0.memory } } == .closed)
        #expect(sandbox.interruptHandle.isDropped)
    }

    @Test func `many sandboxes of one module run beside each other`() async throws {
        try await withThrowingTaskGroup(of: Int.self) { group in
            for number in 0..<16 {
                group.addTask {
                    let sandbox = try await Guest.echo.sandbox()
                    for _ in 0..<number { _ = try await sandbox.call("add_to_static", 1, returning: Int.self) }
                    return try await sandbox.call("get_static")
                }
            }
            var sums: [Int] = []
            for try await sum in group { sums.append(sum) }
            #expect(sums.sorted() == (0..<16).map { 10 + $0 })
        }
    }
}
