import Testing

@testable import MicroVM

/// Guests call Swift closures like C functions.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct HostFunctionTests {
    private struct Refusal: Error, Equatable { var number: Int }

    private func sandbox(_ replacements: HostFunction...) async throws -> Sandbox {
        let names = Set(replacements.map(\.name))
        return try await Guest.hostCalls.sandbox(replacements + hostFunctions().filter { !names.contains($0.name) })
    }

    private func code(_ body: () async throws -> Void) async -> SandboxError.Code? {
        await #expect(throws: SandboxError.self) { try await body() }?.code
    }

    // MARK: - Values

    @Test func `values of every kind go to the host and come back`() async throws {
        let sandbox = try await sandbox()
        #expect(try await sandbox.call("call_add", Int64.max, Int64(1)) == Int64.min)
        #expect(try await sandbox.call("call_scale", -2.5, Float(0.5)) == -1.25)
        #expect(try await sandbox.call("call_scale", Double.infinity, Float(-0.0), returning: Double.self).isNaN)
        #expect(try await sandbox.call("call_negate_i8", Int8(-127)) == Int8(127))
        #expect(try await sandbox.call("call_negate_i8", Int8.min) == Int8.min)
        #expect(try await sandbox.call("call_not", true) == false)
        #expect(try await sandbox.call("call_not", false) == true)
        #expect(try await sandbox.call("call_concatenate", "grüß ", "dich 👋") == "grüß dich 👋")
        #expect(try await sandbox.call("call_concatenate", "", "") == "")
        #expect(try await sandbox.call("call_add_through_table", UInt64(0), 20, 22) == 42)
        #expect(try await sandbox.call("call_add_through_table", UInt64(1), 20, 22) == 42)
        try await sandbox.call("call_tick")
    }

    @Test func `asynchronous host functions have every shape that synchronous ones have`() async throws {
        let ticks = Counter()
        let functions = [
            HostFunction("host_add") { (left: Int, right: Int) async -> Int in left + right },
            HostFunction("host_add") { (_: HostCallContext, left: Int, right: Int) async throws -> Int in left + right
            },
            HostFunction("host_add") { () async -> Int in 42 },
            HostFunction("host_add") { (_: HostCallContext) async -> Int in 42 },
        ]
        for function in functions { #expect(try await sandbox(function).call("call_add", 40, 2) == 42) }
        let ends = [
            HostFunction("host_tick") { () async -> Void in _ = ticks.next() },
            HostFunction("host_tick") { (_: HostCallContext) async -> Void in _ = ticks.next() },
            HostFunction("host_tick") { () async throws -> Void in
                await Task.yield()
                _ = ticks.next()
            },
        ]
        for function in ends { try await sandbox(function).call("call_tick") }
        #expect(ticks.value == 3)
        let logged = Recorder<String>()
        let log = HostFunction("host_log") { (text: String) async -> Void in logged.append(text) }
        try await sandbox(log).call("call_log", "grüß dich")
        #expect(logged.all == ["grüß dich"])
        let joined = HostFunction("host_concatenate") { (left: String, right: String) async -> String in left + right }
        #expect(try await sandbox(joined).call("call_concatenate", "a", "b") == "ab")
    }

    @Test func `integers beyond six are taken from the guest's stack`() async throws {
        let sandbox = try await sandbox()
        let expected = (0..<9).reduce(0) { $0 + ($1 + 1) * (100 + $1) }
        #expect(try await sandbox.call("call_sum_of_nine", 100) == expected)
    }

    @Test func `narrow arguments of both kinds find their places`() async throws {
        let seen = Recorder<String>()
        let sandbox = try await sandbox(
            HostFunction("host_mix") {
                (a: Int8, b: Float, c: UInt16, d: Double, e: Bool, f: Int64, g: UInt8, h: Int32, i: Int64, j: Int16)
                    -> Double in
                seen.append("\(a) \(b) \(c) \(d) \(e) \(f) \(g) \(h) \(i) \(j)")
                return -0.5
            }
        )
        #expect(try await sandbox.call("call_mix") == -0.5)
        #expect(seen.all == ["-1 2.5 3 4.25 true -6 7 -8 9 -10"])
    }

    @Test func `floating-point numbers beyond eight are taken from the guest's stack`() async throws {
        let sandbox = try await Guest.lies.sandbox(lieFunctions())
        #expect(try await sandbox.call("call_with_doubles") == 650.0)
    }

    @Test func `texts that the host returns do not overwrite each other's copies`() async throws {
        // They share the arena with the call's own arguments; each is valid until the next host call.
        let sandbox = try await sandbox()
        let text = "arguments stay"
        let result: String = try await sandbox.call("call_concatenate", text, "+")
        #expect(result == text + "+")
    }

    @Test func `a hundred thousand host calls in one guest call`() async throws {
        let sandbox = try await sandbox()
        #expect(try await sandbox.call("add_in_a_loop", 20_000, returning: Int.self) == 199_990_000)
        #expect(try await sandbox.call("registers_kept_over_call", returning: Int.self) == 0)
    }

    // MARK: - Memory

    @Test func `a host function fills a buffer of the guest's`() async throws {
        let sandbox = try await sandbox()
        for count in [0, 1, 300, 65536] {
            let bytes: [UInt8] = try await sandbox.call("call_fill", UInt64(count))
            #expect(bytes == (0..<count).map { UInt8(truncatingIfNeeded: $0) })
        }
    }

    @Test func `memory is lent for reading and for changing in place`() async throws {
        let sandbox = try await sandbox(
            HostFunction("host_fill") { (context: HostCallContext, buffer: GuestBuffer) -> Int64 in
                try context.memory.withMutableBytes(of: buffer) { span in
                    for index in span.byteOffsets {
                        span.storeBytes(of: UInt8(truncatingIfNeeded: index * 3), toByteOffset: index, as: UInt8.self)
                    }
                }
                return try context.memory.withBytes(of: buffer) { Int64($0.byteCount) }
            }
        )
        let bytes: [UInt8] = try await sandbox.call("call_fill", UInt64(100))
        #expect(bytes == (0..<100).map { UInt8(truncatingIfNeeded: $0 * 3) })
        #expect(try await sandbox.call("call_fill", UInt64(0), returning: [UInt8].self) == [])
    }

    /// Whether a host function may read and write so many bytes there.
    private func permissions(_ sandbox: Sandbox, _ address: UInt64, _ count: UInt64) async throws -> UInt64 {
        try await sandbox.call("call_pointer", address, count)
    }

    private func probingSandbox() async throws -> Sandbox {
        try await sandbox(
            HostFunction("host_pointer") { (context: HostCallContext, address: UInt64, count: UInt64) -> UInt64 in
                let buffer = GuestBuffer(address: address, count: count)
                let pointer = GuestPointer<UInt64>(address: address)
                func works(_ body: () throws -> Void) -> Bool {
                    do { try body() } catch {
                        if (error as? SandboxError)?.code != .invalidPointer { Issue.record(error) }
                        return false
                    }
                    return true
                }
                let reads = works { try context.memory.withBytes(of: buffer) { _ in } }
                let writes = works { try context.memory.withMutableBytes(of: buffer) { _ in } }
                if count == 8 {
                    // Both ways of access agree.
                    let value = try? context.memory.load(pointer)
                    if (value != nil) != reads { Issue.record("load of \(address)") }
                    if works({ try context.memory.store(value ?? 0, to: pointer) }) != writes {
                        Issue.record("store to \(address)")
                    }
                }
                return (reads ? 1 : 0) + (writes ? 2 : 0)
            }
        )
    }

    @Test func `a host function reaches what the guest reaches, and nothing of the library's`() async throws {
        let sandbox = try await probingSandbox()
        let layout = try await sandbox.run { try $0.memory.addressSpace }
        let module = try Guest.hostCalls.module()
        for region in layout.regions {
            let range = region.range
            let expected: UInt64 = !region.isGuestOwned ? 0 : region.permissions.contains(.write) ? 3 : 1
            #expect(try await permissions(sandbox, range.lowerBound, 8) == expected)
            #expect(try await permissions(sandbox, range.upperBound - 8, 8) == expected)
        }
        // Code and constants can be read and not written.
        let code = try #require(module.export(named: "call_add")).address + layout.imageBase
        #expect(try await permissions(sandbox, code, 8) == 1)
        for (address, count) in [
            (0, 8), (8, 8), (0xfff8, 16), (layout.stack.lowerBound - 8, 8), (layout.stack.lowerBound - 1, 8),
            (layout.stack.upperBound, 8), (layout.stack.upperBound - 1, 8), (layout.heap.upperBound - 4, 8),
            (layout.pageTables.lowerBound, 8), (layout.size, 8), (.max - 7, 8), (.max, 8),
            (0x8000_0000_0000_0000, 8), (layout.heap.lowerBound, .max), (layout.heap.lowerBound, 1 << 63),
            (layout.heap.lowerBound, UInt64(layout.heap.count) + 1),
        ] as [(UInt64, UInt64)] {
            #expect(try await permissions(sandbox, address, count) == 0)
        }
        #expect(try await permissions(sandbox, layout.heap.lowerBound, UInt64(layout.heap.count)) == 3)
        // No bytes are everywhere.
        for address in [0, 0x10000, UInt64.max] { #expect(try await permissions(sandbox, address, 0) == 3) }
    }

    @Test func `a pointer that a host function may not use is its error, and the caller's`() async throws {
        let sandbox = try await sandbox(
            HostFunction("host_pointer") { (context: HostCallContext, address: UInt64, count: UInt64) -> UInt64 in
                try context.memory.load(GuestPointer<UInt64>(address: address))
            }
        )
        #expect(await code { _ = try await permissions(sandbox, 0x21000, 8) } == .invalidPointer)
        await expectPoisoned(sandbox, "call_tick")
    }

    @Test func `more bytes than a buffer holds are refused`() async throws {
        let sandbox = try await sandbox(
            HostFunction("host_fill") { (context: HostCallContext, buffer: GuestBuffer) -> Int64 in
                try context.memory.store(Array(repeating: 1, count: Int(buffer.count) + 1), to: buffer)
                return 0
            }
        )
        #expect(await code { try await sandbox.call("call_fill", UInt64(10)) } == .invalidPointer)
    }

    @Test func `text that the guest passes is checked before the host function sees it`() async throws {
        for (address, count) in [(0, 1), (0x7f00_0000_0000, 16), (0x21000, 8), (.max, 2), (0x10000, .max)]
            as [(UInt64, UInt64)]
        {
            let logged = Recorder<String>()
            let sandbox = try await sandbox(HostFunction("host_log") { (text: String) in logged.append(text) })
            let error = await #expect(throws: SandboxError.self) {
                try await sandbox.call("call_log_at", address, count)
            }
            #expect(error?.fault?.kind == .invalidPointer && error?.fault?.address == address)
            #expect(error?.fault?.access == .read && error?.fault?.symbol?.name == "call_log_at")
            #expect(logged.all.isEmpty)
            await expectPoisoned(sandbox, "call_tick")
        }
    }

    @Test func `what is no value of a parameter's type is the guest's fault`() async throws {
        let sandbox = try await sandbox()
        let error = await #expect(throws: SandboxError.self) {
            try await sandbox.call("call_log", [UInt8(0xff), 0xfe])
        }
        #expect(error?.code == .guestFault && error?.fault?.kind == .invalidHostCall)
        #expect(error?.fault?.message?.contains("UTF-8") == true)
    }

    // MARK: - Errors

    @Test func `what a host function throws reaches the caller as it is`() async throws {
        let sandbox = try await sandbox(
            HostFunction("host_add") { (left: Int64, right: Int64) -> Int64 in
                if left == 3 { throw Refusal(number: Int(left)) }
                return left + right
            }
        )
        #expect(try await sandbox.call("call_add", 1, 2) == 3)
        await #expect(throws: Refusal(number: 3)) { try await sandbox.call("add_in_a_loop", 10) }
        await expectPoisoned(sandbox, "call_tick")
    }

    @Test func `a result that is too long for the arena ends the call`() async throws {
        let functions = hostFunctions(
            HostFunction("host_concatenate") { (_: String, _: String) -> String in String(repeating: "x", count: 4096) }
        )
        let sandbox = try await Guest.hostCalls.sandbox(functions) { $0.argumentArenaSize = 4096 }
        #expect(await code { try await sandbox.call("call_concatenate", "a", "b") } == .argumentTooLarge)
        await expectPoisoned(sandbox, "call_tick")
    }

    // MARK: - Imports

    @Test func `all missing imports are named in one error`() async throws {
        let error = await #expect(throws: SandboxError.self) { try await Guest.missingImport.sandbox() }
        #expect(error?.code == .missingImports)
        #expect(error?.message.contains("first_missing_function") == true)
        #expect(error?.message.contains("second_missing_function") == true)
        let functions = [HostFunction("first_missing_function") { (value: Int) -> Int in value }]
        let second = await #expect(throws: SandboxError.self) { try await Guest.missingImport.sandbox(functions) }
        #expect(second?.message.contains("first_missing_function") == false)
        let both = functions + [HostFunction("second_missing_function") { (value: Int) -> Int in 2 * value }]
        #expect(try await Guest.missingImport.sandbox(both).call("use_both", 14) == 42)
    }

    @Test func `a weak import that nobody provides is null`() async throws {
        #expect(try await sandbox().call("call_optional", 5) == -1)
        let offered = HostFunction("host_optional") { (value: Int) -> Int in value * 2 }
        #expect(try await sandbox(offered).call("call_optional", 5) == 10)
    }

    @Test(arguments: ["microvm_write", "microvm_abort", "microvm_anything", "__stack_chk_fail", "__tls_get_addr"])
    func `names that belong to the library cannot be taken`(_ name: String) async throws {
        let error = await #expect(throws: SandboxError.self) {
            try await Guest.arithmetic.sandbox([HostFunction(name) { () in }])
        }
        #expect(error?.code == .invalidArgument && error?.message.contains(name) == true)
    }

    @Test func `two host functions of one name are refused, one that nobody needs is not`() async throws {
        let function = HostFunction("twice") { () in }
        #expect(await code { _ = try await Guest.arithmetic.sandbox([function, function]) } == .invalidArgument)
        #expect(try await Guest.arithmetic.sandbox([function]).call("add", 1, 1) == 2)
    }
}

/// Host functions for the guest that lies.
func lieFunctions(_ seen: Recorder<String> = Recorder()) -> [HostFunction] {
    [
        HostFunction("host_take") {
            (a: Int, b: Int, c: Int, d: Int, e: Int, f: Int, g: Int, h: Double) -> Int in
            seen.append("\(a) \(b) \(c) \(d) \(e) \(f) \(g) \(h)")
            return 7
        },
        HostFunction("host_text") { (text: String) -> String in
            seen.append(text)
            return text + text
        },
        HostFunction("host_take_doubles") {
            (
                a: Double,
                b: Double,
                c: Double,
                d: Double,
                e: Double,
                f: Double,
                g: Double,
                h: Double,
                i: Double,
                j: Double,
                k: Int,
                l: Float
            ) -> Double in
            var sum = 0.0
            for (index, value) in [a, b, c, d, e, f, g, h, i, j, Double(k), Double(l)].enumerated() {
                sum += Double(index + 1) * value
            }
            return sum
        },
    ]
}
