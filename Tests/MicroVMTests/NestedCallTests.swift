import Glibc
import Testing

@testable import MicroVM

/// Guest calls made from inside host calls.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct NestedCallTests {
    /// The guest's `descend` calls `host_descend`, which calls `descend` again; it returns the depth.
    private static let descend = HostFunction("host_descend") { (context: HostCallContext, depth: Int) -> Int in
        try context.call("descend", depth)
    }

    private static let descendAsynchronously = HostFunction("host_descend") {
        (context: HostCallContext, depth: Int) async throws -> Int in
        await Task.yield()
        return try await context.call("descend", depth)
    }

    @Test(arguments: [descend, descendAsynchronously])
    func `a host function calls back into the guest`(function: HostFunction) async throws {
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(function))
        for depth in 0...16 {
            let result: Int = try await sandbox.call("descend", depth)
            #expect(result == depth)
        }
    }

    @Test(arguments: [descend, descendAsynchronously])
    func `deeper than the configuration allows is an error`(function: HostFunction) async throws {
        for maximum in [0, 1, 16, 40] {
            let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(function)) { $0.maximumCallDepth = maximum }
            #expect(try await sandbox.call("descend", maximum) == maximum)
            let end = await CallEnd { let _: Int = try await sandbox.call("descend", maximum + 1) }
            #expect(end.code == .callTooDeep)
            #expect(await isPoisoned(sandbox, "call_tick"))
        }
    }

    @Test func `the deepest call's failure to go deeper can be caught, and everything above it goes on`() async throws {
        let caught = Counter()
        let function = HostFunction("host_descend") { (context: HostCallContext, depth: Int) throws -> Int in
            do {
                return try context.call("descend", depth)
            } catch let error as SandboxError where error.code == .callTooDeep {
                caught.next()
                return 100
            }
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(function)) { $0.maximumCallDepth = 5 }
        for round in 1...3 {
            #expect(try await sandbox.call("descend", 10) == 106)
            #expect(caught.value == round)
        }
    }

    // MARK: - Values

    /// Calls something of the guest nested.c that makes one host call, in which `visit` is at work: in a synchronous
    /// host function, and in an asynchronous one.
    private func visiting(
        _ visit: @escaping @Sendable (HostCallContext) throws -> Void,
        _ visitAsynchronously: @escaping @Sendable (HostCallContext) async throws -> Void,
        _ body: (Sandbox) async throws -> Void
    ) async throws {
        let visits = Counter()
        let functions = [
            HostFunction("host_visit") { (context: HostCallContext) throws -> Void in
                visits.next()
                try visit(context)
            },
            HostFunction("host_visit") { (context: HostCallContext) async throws -> Void in
                visits.next()
                try await visitAsynchronously(context)
            },
        ]
        for (index, function) in functions.enumerated() {
            try await body(Guest.nested.sandbox(nestedFunctions(function)))
            #expect(visits.value > index)
        }
    }

    private static let bytes = (0..<3000).map { UInt8(truncatingIfNeeded: $0 * 7) }

    @Test func `values of every kind go into a nested call and come back`() async throws {
        let bytes = Self.bytes
        try await visiting { context throws in
            #expect(try context.call("sum_of_nine", 1, 2, 3, 4, 5, 6, 7, 8, 9) == 285)
            #expect(try context.call("sum_of_ten", 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, Float(10)) == 385.0)
            let mixed: Double = try context.call(
                "mix",
                Int8(-1),
                Float(2.5),
                UInt16(3),
                4.25,
                true,
                Int64(-6),
                UInt8(7),
                Int32(-8),
                Int64(9),
                Int16(-10)
            )
            #expect(mixed == 1.75)
            #expect(try context.call("negate", Int8(-127)) == Int8(127))
            #expect(try context.call("invert", true) == false)
            #expect(try context.call("halve", Float(5)) == Float(2.5))
            #expect(try context.call("join", "grüß ", "dich 👋") == "grüß dich 👋")
            #expect(try context.call("backwards", bytes) == Array(bytes.reversed()))
            #expect(try context.call("backwards", [UInt8](), returning: [UInt8].self) == [])
            try context.call("do_nothing")
        } _: { context async throws in
            #expect(try await context.call("sum_of_nine", 1, 2, 3, 4, 5, 6, 7, 8, 9) == 285)
            #expect(
                try await context.call("sum_of_ten", 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, Float(10)) == 385.0
            )
            #expect(try await context.call("negate", Int8(-127)) == Int8(127))
            #expect(try await context.call("invert", true) == false)
            #expect(try await context.call("halve", Float(5)) == Float(2.5))
            #expect(try await context.call("join", "grüß ", "dich 👋") == "grüß dich 👋")
            #expect(try await context.call("backwards", bytes) == Array(bytes.reversed()))
            try await context.call("do_nothing")
        } _: { sandbox async throws in
            for _ in 0..<3 { #expect(try await sandbox.call("keep_registers", returning: Int.self) == 0) }
        }
    }

    @Test func `a nested call leaves the outer one its arguments, registers and controls`() async throws {
        let bytes = Self.bytes
        let big = String(repeating: "nested", count: 5000)
        try await visiting { context throws in
            for _ in 0..<2 {
                try context.call("scramble")
                let _: [UInt8] = try context.call("backwards", Array(big.utf8))
                let _: String = try context.call("join", big, big)
            }
        } _: { context async throws in
            for _ in 0..<2 {
                try await context.call("scramble")
                let _: [UInt8] = try await context.call("backwards", Array(big.utf8))
                let _: String = try await context.call("join", big, big)
            }
        } _: { sandbox async throws in
            for text in ["", "short", String(repeating: "outer", count: 2000)] {
                let kept: [UInt8] = try await sandbox.call("keep_text", text, bytes)
                #expect(kept == Array(text.utf8) + bytes)
                #expect(try await sandbox.call("keep_argument", text) == text)
            }
            let sum = 1 + 2 * 2 + 3 * 3 + 4 * 4 + 5 * 5 + 6 * 6 + 7 * 7 + 8 * 8
            let numbers: Double = try await sandbox.call("keep_numbers", 1, 2, 3, 4, 5, 6, 7, 8, 1.5, Float(3))
            #expect(numbers == Double(sum) + 4.5)
            #expect(try await sandbox.call("keep_registers") == 0)
            #expect(try await sandbox.call("keep_controls") == 0)
        }
    }

    @Test func `each level's text lies behind those it is nested in, and its place is free again afterwards`()
        async throws
    {
        let addresses = Recorder<UInt64>()
        try await visiting { context throws in
            for _ in 0..<3 { addresses.append(try context.call("address_of", String(repeating: "n", count: 100))) }
        } _: { context async throws in
            for _ in 0..<3 {
                addresses.append(try await context.call("address_of", String(repeating: "n", count: 100)))
            }
        } _: { sandbox async throws in
            let arena = try await sandbox.run { try $0.memory.addressSpace.arena }
            let before = addresses.count
            let text = String(repeating: "o", count: 1000)
            #expect(try await sandbox.call("keep_argument", text) == text)
            let nested = addresses.all[before...]
            #expect(nested.count == 3 && Set(nested).count == 1)
            #expect(try #require(nested.first) == arena.lowerBound + 1008)
        }
    }

    @Test func `arguments that do not fit behind the outer ones are refused, and the outer call goes on`() async throws
    {
        let codes = Recorder<SandboxError.Code?>()
        let visit = HostFunction("host_visit") { (context: HostCallContext) in
            for count in [3000, 100] {
                do {
                    let _: UInt64 = try context.call("address_of", String(repeating: "n", count: count))
                    codes.append(nil)
                } catch let error as SandboxError {
                    codes.append(error.code)
                }
            }
        }
        let sandbox = try await Guest.nested.sandbox(nestedFunctions(visit)) { $0.argumentArenaSize = 4096 }
        let text = String(repeating: "o", count: 2000)
        #expect(try await sandbox.call("keep_argument", text) == text)
        #expect(codes.all == [.argumentTooLarge, nil])
    }

    // MARK: - Errors that leave the guest where it is

    @Test func `a nested call that cannot begin, or whose result is none, is an error to catch`() async throws {
        let codes = Recorder<SandboxError.Code>()
        @Sendable func note(_ error: any Error) { if let error = error as? SandboxError { codes.append(error.code) } }
        try await visiting { context throws in
            do { try context.call("no such function") } catch { note(error) }
            do { let _: String = try context.call("no_text") } catch { note(error) }
            do { let _: [UInt8] = try context.call("wild_bytes") } catch { note(error) }
            #expect(try context.call("answer") == 42)
        } _: { context async throws in
            do { try await context.call("no such function") } catch { note(error) }
            do { let _: String = try await context.call("no_text") } catch { note(error) }
            do { let _: [UInt8] = try await context.call("wild_bytes") } catch { note(error) }
            #expect(try await context.call("answer") == 42)
        } _: { sandbox async throws in
            let before = codes.count
            #expect(try await sandbox.call("keep_argument", "goes on") == "goes on")
            #expect(codes.all[before...] == [.unknownExport, .invalidResult, .invalidResult])
            #expect(try await sandbox.call("answer") == 42)
        }
    }

    @Test func `such an error ends the call where nobody catches it`() async throws {
        try await visiting { context throws in
            try context.call("no such function")
        } _: { context async throws in
            try await context.call("no such function")
        } _: { sandbox async throws in
            // The outer guest waits in its host call for good.
            #expect(await CallEnd { try await sandbox.call("keep_registers") }.code == .unknownExport)
            #expect(await isPoisoned(sandbox))
        }
    }

    // MARK: - Contexts

    @Test func `a context is good for its own host call and no longer`() async throws {
        let contexts = Recorder<HostCallContext>()
        let codes = Recorder<SandboxError.Code?>()
        let visit = HostFunction("host_visit") { (context: HostCallContext) in
            // Of an earlier host call, in the same call or in another.
            if let old = contexts.all.first {
                do { try old.call("do_nothing") } catch { codes.append((error as? SandboxError)?.code) }
            }
            contexts.append(context)
            try context.call("do_nothing")
        }
        let sandbox = try await Guest.nested.sandbox(nestedFunctions(visit))
        let word = try await SharedWord(of: sandbox)
        try await sandbox.call("visit_twice", word.address)
        try await sandbox.call("visit_twice", word.address)
        #expect(codes.all == [.contextExpired, .contextExpired, .contextExpired])
        let context = try #require(contexts.all.first)
        #expect(await CallEnd { try await context.call("do_nothing") }.code == .contextExpired)
        #expect(context.isCancelled)
        #expect(throws: StopError.dropped) { try context.beginInternalStop(TaskStop("late")) }
        await sandbox.close()
        #expect(await CallEnd { try await context.call("do_nothing") }.code == .contextExpired)
    }

    @Test func `the synchronous form is refused on every thread but the sandbox's own`() async throws {
        let codes = Recorder<SandboxError.Code?>()
        let visit = HostFunction("host_visit") { (context: HostCallContext) in
            let done = Flag()
            startThread {
                do { try context.call("do_nothing") } catch { codes.append((error as? SandboxError)?.code) }
                do { try context.sleep(for: .zero) } catch { codes.append((error as? SandboxError)?.code) }
                done.set()
            }
            done.block()
        }
        let sandbox = try await Guest.nested.sandbox(nestedFunctions(visit))
        #expect(try await sandbox.call("keep_registers") == 0)
        #expect(codes.all == [.contextExpired, .contextExpired])
    }

    // MARK: - Several at once

    @Test func `nested calls made by several tasks of a host function come one after the other`() async throws {
        let visit = HostFunction("host_visit") { (context: HostCallContext) async throws -> Void in
            let sums = try await withThrowingTaskGroup(of: (Int, Int).self) { group in
                for number in 0..<20 {
                    group.addTask {
                        (
                            number,
                            try await context.call("sum_of_nine", number, 0, 0, 0, 0, 0, 0, 0, 1, returning: Int.self)
                        )
                    }
                }
                return try await group.reduce(into: []) { $0.append($1) }
            }
            #expect(sums.count == 20 && sums.allSatisfy { $0.1 == $0.0 + 9 })
        }
        let sandbox = try await Guest.nested.sandbox(nestedFunctions(visit))
        let call: GuestCall<Int> = try sandbox.start("keep_registers")
        #expect(try await call.result == 0)
        #expect(await call.statistics?.nestedCalls == 20)
    }

    @Test func `asynchronous and synchronous host functions nest in each other`() async throws {
        let enter = HostFunction("host_enter") {
            (context: HostCallContext, level: Int, deed: Int, place: UInt64) async throws -> Int in
            try await context.call("go_down", level, deed, place)
        }
        let mark = HostFunction("host_mark") { (context: HostCallContext, _: Int) throws -> Void in
            #expect(try context.call("answer") == 42)
        }
        let sandbox = try await Guest.nested.sandbox(nestedFunctions(enter, mark))
        let traces = try await Traces(in: sandbox)
        let call: GuestCall<Int> = try sandbox.start("go_down", 8, 5, traces.address)
        #expect(try await call.result == 8)
        #expect(traces.before == 9 && traces.after == 8)
        #expect(await call.statistics?.nestedCalls == 9)
        #expect(await call.statistics?.hostCalls == 9)
    }

    // MARK: - Jumps

    @Test(arguments: [0, 3])
    func `a guest that jumps out of a nested call, over a host function, faults`(_ callsBetween: Int) async throws {
        let unwound = Counter()
        let codes = Recorder<SandboxError.Code?>()
        try await visiting { context throws in
            defer { unwound.next() }
            do { try context.call("jump_back") } catch {
                codes.append((error as? SandboxError)?.code)
                throw error
            }
        } _: { context async throws in
            defer { unwound.next() }
            do { try await context.call("jump_back") } catch {
                codes.append((error as? SandboxError)?.code)
                throw error
            }
        } _: { sandbox async throws in
            let before = unwound.value
            let end = await CallEnd { let _: Int = try await sandbox.call("jump_over_host", callsBetween) }
            #expect(end.code == .guestFault && end.sandboxError?.fault?.kind == .invalidHostCall)
            #expect(codes.all.last == .guestFault && unwound.value == before + 1)
            #expect(await isPoisoned(sandbox))
        }
    }
}

/// Host functions for the guest nested.c: those given, and for all other imports ones that do the obvious.
func nestedFunctions(_ replacements: HostFunction...) -> [HostFunction] {
    let defaults = [
        HostFunction("host_enter") { (context: HostCallContext, level: Int, deed: Int, place: UInt64) throws -> Int in
            try context.call("go_down", level, deed, place)
        },
        HostFunction("host_visit") { () in },
        HostFunction("host_mark") { (_: Int) in },
    ]
    let names = Set(replacements.map(\.name))
    return replacements + defaults.filter { !names.contains($0.name) }
}

/// Nested calls that come to the sandbox's thread together.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct SimultaneousNestedCallTests {
    @Test func `one may wait for the other`() async throws {
        for _ in 0..<5 { try await waitForTheOther() }
    }

    /// The first nested call's host function waits for the second nested call, which has to be made meanwhile.
    private func waitForTheOther() async throws {
        let second = Flag()
        let sandbox = try await Guest.hostCalls.sandbox(
            hostFunctions(
                HostFunction("host_tick") { (context: HostCallContext) async throws in
                    try await withThrowingTaskGroup(of: Int.self) { group in
                        group.addTask { try await context.call("descend", 1) }
                        group.addTask {
                            defer { second.set() }
                            return try await context.call("call_add", 2, 3)
                        }
                        for try await _ in group {}
                    }
                },
                HostFunction("host_descend") { (depth: Int) async -> Int in
                    await waitUntil { second.isSet }
                    return depth
                }
            )
        )
        try await sandbox.call("call_tick")
    }
}
