import Testing

@testable import MicroVM

/// The functions that were under way when a call ended, or was looked at.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct BacktraceTests {
    /// What `outer` does at the bottom.
    enum Deed: Int64 {
        case fault, spin, abort, jumpToNowhere, undefined, enter, writeNowhere
    }

    /// With frame pointers, and with tables instead.
    static let builds: [Guest] = [.backtrace, .backtraceTables]

    static let enter = HostFunction("host_enter") {
        (context: HostCallContext, level: Int64, deed: Int64) throws -> Int64 in
        try context.call("outer", level, deed)
    }

    static func sandbox(_ guest: Guest, configure: (inout SandboxConfiguration) -> Void = { _ in }) async throws
        -> Sandbox
    {
        try await guest.sandbox([enter], configure: configure)
    }

    static func error(
        _ sandbox: Sandbox,
        _ function: String = "outer",
        _ arguments: [UInt64] = [],
        timeLimit: Duration? = nil,
        sourceLocation: SourceLocation = #_sourceLocation
    ) async throws -> SandboxError {
        let error = await #expect(throws: SandboxError.self, sourceLocation: sourceLocation) {
            try await sandbox.call(function, arguments: arguments, timeLimit: timeLimit)
        }
        return try #require(error, sourceLocation: sourceLocation)
    }

    static func fault(
        _ sandbox: Sandbox,
        _ function: String = "outer",
        _ arguments: [UInt64] = [],
        sourceLocation: SourceLocation = #_sourceLocation
    ) async throws -> GuestFault {
        let error = try await error(sandbox, function, arguments, sourceLocation: sourceLocation)
        return try #require(error.fault, sourceLocation: sourceLocation)
    }

    private static let chain = ["innermost", "middle", "outer"]

    // MARK: - Faults

    @Test(arguments: builds, [Deed.fault, .undefined])
    func `a fault's backtrace leads from the instruction to the exported function`(
        guest: Guest,
        deed: Deed
    ) async throws {
        let sandbox = try await Self.sandbox(guest)
        let fault = try await Self.fault(sandbox, "outer", [0, UInt64(deed.rawValue)])
        let backtrace = fault.backtrace
        #expect(backtrace.names == Self.chain && !backtrace.isTruncated)
        let frames = backtrace.frames
        #expect(frames[0].address == fault.instructionPointer && frames[0].symbol == fault.symbol)
        #expect(frames.map(\.isReturnAddress) == [false, true, true])
        let base = try await sandbox.run { try $0.memory.addressSpace.imageBase }
        for frame in frames {
            #expect(frame.moduleOffset == frame.address - base)
            let name = try #require(frame.symbol?.name)
            let export = try sandbox.module.exportedFunction(named: name)
            #expect(frame.symbol?.offset == frame.address - base - export.address)
        }
        #expect(backtrace.description.split(separator: "\n").count == 3)
        #expect(backtrace.description.hasPrefix("#0 0x"))
        #expect(backtrace == fault.backtrace && backtrace.hashValue == fault.backtrace.hashValue)
    }

    @Test(arguments: builds, [Deed.abort, .writeNowhere])
    func `a fault in a host call begins at its caller`(guest: Guest, deed: Deed) async throws {
        let fault = try await Self.fault(Self.sandbox(guest), "outer", [0, UInt64(deed.rawValue)])
        #expect(fault.kind == (deed == .abort ? .abort : .invalidPointer))
        #expect(fault.backtrace.names == Self.chain && !fault.backtrace.isTruncated)
        let first = try #require(fault.backtrace.frames.first)
        #expect(first.isReturnAddress && first.address == fault.instructionPointer)
    }

    @Test(arguments: builds)
    func `a call to nowhere has its caller behind it`(guest: Guest) async throws {
        let fault = try await Self.fault(Self.sandbox(guest), "outer", [0, UInt64(Deed.jumpToNowhere.rawValue)])
        #expect(fault.backtrace.names == [nil] + Self.chain && !fault.backtrace.isTruncated)
        #expect(fault.backtrace.frames[0].address == 0x1000 && fault.backtrace.frames[0].moduleOffset == nil)
    }

    @Test(arguments: builds)
    func `a return to nowhere ends where the library's own code begins`(guest: Guest) async throws {
        let fault = try await Self.fault(Self.sandbox(guest), "return_to", [0x1000])
        #expect(fault.backtrace.frames.map(\.address) == [0x1000] && !fault.backtrace.isTruncated)
    }

    @Test(arguments: builds, [Deed.fault, .abort])
    func `nested calls go on to the functions further out`(guest: Guest, deed: Deed) async throws {
        for level in 1...4 {
            let fault = try await Self.fault(
                Self.sandbox(guest),
                "outer",
                [UInt64(level), UInt64(deed.rawValue)]
            )
            #expect(fault.backtrace.names == Array(repeating: Self.chain, count: level + 1).flatMap(\.self))
            #expect(!fault.backtrace.isTruncated)
        }
    }

    @Test func `a section of tables that no header leads to is found and walked`() async throws {
        var bytes = try contents(of: Guest.backtraceTables.path)
        try ELFPatch.hideUnwindHeader(in: &bytes)
        let module = try GuestModule(bytes)
        let sandbox = try await Sandbox(module, hostFunctions: [Self.enter])
        #expect(try await Self.fault(sandbox, "outer", [1, 0]).backtrace.names == Self.chain + Self.chain)
        // Without the names of sections there is nothing left to go by.
        try ELFPatch.hideSections(in: &bytes)
        #expect(try GuestModule(bytes).unwindTable == nil)
    }

    @Test(arguments: builds)
    func `deep recursion is cut off at the limit`(guest: Guest) async throws {
        for depth in [5, 126, 127, 128, 1000] as [UInt64] {
            let backtrace = try await Self.fault(Self.sandbox(guest), "recurse", [depth]).backtrace
            #expect(backtrace.frames.count == min(Int(depth) + 1, GuestBacktrace.maximumFrameCount))
            #expect(backtrace.isTruncated == (Int(depth) + 1 > GuestBacktrace.maximumFrameCount))
            #expect(Set(backtrace.names) == ["recurse"])
        }
        let overflow = try await Self.fault(Self.sandbox(guest), "recurse", [1 << 40])
        #expect(overflow.kind == .stackOverflow)
        #expect(overflow.backtrace.frames.count == 128 && overflow.backtrace.isTruncated)
    }

    @Test func `Swift's functions have the names of their source`() async throws {
        let fault = try await Self.fault(Guest.swiftBacktrace.sandbox(), "add_entries", [7])
        let names = fault.backtrace.frames.map { $0.symbol?.demangledName ?? "" }
        #expect(names.contains { $0.contains("Ledger.entry(at: Swift.Int) -> Swift.Int") })
        #expect(names.contains { $0.contains("sum") && $0.contains("upTo: Swift.Int") })
        #expect(names.last == "add_entries" && !fault.backtrace.isTruncated)
        #expect(fault.backtrace.description.contains("swift_backtrace.Ledger.entry"))
    }

    // MARK: - Kills and states

    @Test(arguments: builds)
    func `a kill's backtrace is that of the spinning guest`(guest: Guest) async throws {
        let sandbox = try await Self.sandbox(guest)
        let word = try await SharedWord(of: sandbox, at: try await sandbox.call("spinning_address"))
        for level in 0...2 {
            let snapshot = try await sandbox.snapshot()
            let call = try sandbox.start("outer", Int64(level), Deed.spin.rawValue)
            await waitUntil { word.value == 1 }
            let expected = Array(repeating: Self.chain, count: level + 1).flatMap(\.self)
            let state = try await sandbox.pullFullState()
            #expect(state.backtrace.names == expected && !state.backtrace.isTruncated)
            #expect(state.backtrace.frames.first?.address == state.instructionPointer)
            try call.killSwitch.terminate()
            let error = await #expect(throws: SandboxError.self) { try await call.result }
            let interruption = try #require(error?.interruption)
            #expect(interruption.backtrace.names == expected && !interruption.backtrace.isTruncated)
            #expect(interruption.backtrace.frames.first?.address == interruption.instructionPointer)
            try await sandbox.restore(to: snapshot)
            #expect(try await sandbox.pullFullState().backtrace.frames.isEmpty)
        }
    }

    @Test(arguments: builds)
    func `a time limit has a backtrace too`(guest: Guest) async throws {
        let error = try await Self.error(Self.sandbox(guest), "outer", [0, 1], timeLimit: .milliseconds(100))
        #expect(error.code == .timeLimitExceeded && error.interruption?.backtrace.names == Self.chain)
    }

    @Test func `a call that ends before it begins names its function`() async throws {
        let error = try await Self.error(Self.sandbox(.backtrace), "outer", [0, 1], timeLimit: .zero)
        #expect(error.interruption?.backtrace.names == ["outer"])
    }

    @Test func `a call that waits for its host function begins at the one that made it`() async throws {
        let mayReturn = Flag()
        let sandbox = try await Guest.interruption.sandbox(
            interruptionFunctions(
                HostFunction("host_wait") { (number: UInt64) async throws -> Void in await waitUntil { mayReturn.isSet }
                }
            )
        )
        let call = try sandbox.start("wait", UInt64(3))
        await sandbox.interruptHandle.waitUntilWaiting()
        let backtrace = try await sandbox.pullFullState().backtrace
        #expect(backtrace.names == ["wait"] && !backtrace.isTruncated)
        mayReturn.set()
        try await call.result
    }

    // MARK: - Hostile stacks

    @Test func `stacks that lead nowhere, back or round end the walk`() async throws {
        let sandbox = try await Self.sandbox(.backtrace)
        let heap: UInt64 = try await sandbox.call("heap_address")
        let snapshot = try await sandbox.snapshot()
        let (stack, code) = try await sandbox.run { sandbox in
            let addressSpace = try sandbox.memory.addressSpace
            return (
                addressSpace.stack,
                addressSpace.imageBase + (try sandbox.module.exportedFunction(named: "outer").address)
            )
        }
        let mailbox: UInt64 = 0x21000
        // Frame pointer, stack pointer, words from the heap's beginning on, and how many frames that makes.
        let cases: [(UInt64, UInt64, [UInt64], Int)] = [
            (heap, heap, [heap, code], 2),
            (heap, heap, [heap + 16, code, heap, code], 3),
            (heap + 16, heap, [heap, code, heap, code], 2),
            (mailbox, heap, [], 1), (mailbox, mailbox, [], 1), (0x20000, 0x20000, [], 1), (0x11000, 0x11000, [], 1),
            (heap + 1, heap, [heap, code, heap, code], 1),
            (heap, heap + 8, [heap, code], 1),
            (heap, heap, [.max - 7, code], 2), (.max - 7, heap, [], 1), (.max - 15, .max - 15, [], 1),
            (0, 0, [], 1), (1 << 63, 0, [], 1), (stack.upperBound - 8, stack.lowerBound, [], 1),
            (stack.upperBound - 16, .max, [], 1), (heap, heap, [heap + 16, heap], 1),
            (heap, heap, [heap + 16, 0x20000 - 1], 1), (heap, heap, [heap + 16, 0x13000], 1),
            // Into the trampoline, wherever that leads.
            (heap, heap, [heap + 16, 0x20040, heap + 32, 0x20041, heap + 48, 0x20100], 1),
            (heap, heap, [heap + 16, 0x22000, code, 0x22008, code, code, code], 1),
        ]
        for (framePointer, stackPointer, words, count) in cases {
            try await sandbox.restore(to: snapshot)
            try await sandbox.run { sandbox in
                for (index, word) in words.enumerated() {
                    try sandbox.memory.store(word, to: GuestPointer(address: heap + 8 * UInt64(index)))
                }
            }
            let fault = try await Self.fault(sandbox, "fault_with", [framePointer, stackPointer])
            #expect(fault.kind == .invalidInstruction)
            #expect(fault.backtrace.names.first == "fault_with")
            if words.contains(where: { (0x20000..<0x23000).contains($0) }) {
                #expect(fault.backtrace.frames.count <= 8)
            } else {
                #expect(fault.backtrace.frames.count == count && fault.backtrace.isTruncated)
            }
        }
    }

    @Test func `a stack of a hundred thousand frames, or of as many thunks, is left early`() async throws {
        let sandbox = try await Self.sandbox(.backtrace)
        let heap: UInt64 = try await sandbox.call("heap_address")
        let snapshot = try await sandbox.snapshot()
        let code = try await sandbox.run { sandbox in
            try sandbox.memory.addressSpace.imageBase + sandbox.module.exportedFunction(named: "outer").address
        }
        for (address, count) in [(code, 128), (0x22000, 1)] as [(UInt64, Int)] {
            try await sandbox.restore(to: snapshot)
            try await sandbox.run { sandbox in
                var bytes: [UInt8] = []
                for index in 0..<100_000 as Range<UInt64> {
                    for word in [address == code ? heap + 16 * (index + 1) : address, address] {
                        bytes.append(word)
                    }
                }
                try sandbox.memory.store(bytes, to: GuestBuffer(address: heap, count: UInt64(bytes.count)))
            }
            let fault = try await Self.fault(sandbox, "fault_with", [heap, heap])
            #expect(fault.backtrace.frames.count == count && fault.backtrace.isTruncated)
        }
    }

    @Test func `any registers at all make a short walk`() async throws {
        var random = SystemRandomNumberGenerator()
        for guest in Self.builds {
            let sandbox = try await Self.sandbox(guest)
            let fault = try await Self.fault(sandbox, "outer", [2, 0])
            let addresses = try await sandbox.run { try $0.memory.addressSpace.regions.map(\.range) }
            for _ in 0..<(Surroundings.isEmulated ? 100 : 3000) {
                var registers = fault.registers
                let somewhere: () -> UInt64 = {
                    let range = addresses.randomElement(using: &random) ?? 0..<1
                    return switch UInt8.random(in: 0..<4, using: &random) {
                    case 0: .random(in: 0...(.max), using: &random)
                    case 1: .max &- .random(in: 0..<64, using: &random)
                    default: .random(in: range, using: &random)
                    }
                }
                registers.rip = somewhere()
                if Bool.random(using: &random) { registers.rsp = somewhere() }
                if Bool.random(using: &random) { registers.rbp = somewhere() }
                let chosen = registers
                let (live, later) = try await sandbox.run { sandbox in
                    try sandbox.walks(from: chosen, calledFunction: 1)
                }
                #expect((1...128).contains(live.addresses.count))
                if let later { #expect((1...128).contains(later.addresses.count)) }
            }
            // What a copy of the stack shows is what the stack itself showed.
            let (live, later) = try await sandbox.run { sandbox in
                try sandbox.walks(from: fault.registers, calledFunction: 1)
            }
            #expect(live == later && live.addresses.count > 2 && !live.isTruncated)
        }
    }
}

extension Sandbox {
    /// A walk of the stack as it is, and one of a copy where one can be made.
    func walks(
        from registers: GuestRegisters,
        calledFunction: UInt64
    ) throws -> (live: GuestBacktrace.Walk, later: GuestBacktrace.Walk?) {
        let memory = try memory
        var walk = StackWalk(.guest(memory), memory.addressSpace, module, from: registers)
        let copy = CapturedStack(memory, module, registers, calledFunction: calledFunction)
        return (walk.walk(calledFunction: calledFunction), copy?.walk)
    }
}

extension GuestBacktrace {
    /// The functions' names, as the module spells them.
    var names: [String?] { frames.map { $0.symbol?.name } }
}
