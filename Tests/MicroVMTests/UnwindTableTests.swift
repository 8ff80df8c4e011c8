import Testing

@testable import MicroVM

/// What a module says of its stack frames, true or not.
@Suite(.timeLimit(.minutes(5))) struct UnwindTableTests {
    private static let range = Guest.backtraceTables

    @Test func `each function of a module with tables has its rules`() throws {
        let module = try Self.range.module()
        let table = try #require(module.unwindTable)
        for name in ["innermost", "middle", "outer", "recurse", "touch"] {
            let export = try module.exportedFunction(named: name)
            for offset in 0..<export.size {
                let description = try #require(table.description(of: export.address + offset))
                #expect(description.start == export.address)
                let rules = try #require(FrameRules(description, at: export.address + offset))
                if case .offset(-8) = rules.rules[FrameRules.returnAddress] {
                } else {
                    Issue.record("no return address")
                }
                // At its beginning, a function's frame is its return address alone.
                if offset == 0 { #expect(rules.frameRegister == 7 && rules.frameOffset == 8) }
            }
            #expect(table.description(of: export.address &- 0x10_0000) == nil)
        }
        #expect(table.description(of: .max) == nil && table.description(of: 0) == nil)
    }

    @Test func `a module without tables has none`() throws {
        #expect(try Guest.spin.module().unwindTable == nil)
    }

    @Test(.requiresKVM, arguments: [true, false])
    func `tables that were tampered with do no harm`(hasHeader: Bool) async throws {
        let sandbox = try await BacktraceTests.sandbox(Self.range)
        let fault = try await BacktraceTests.fault(sandbox, "outer", [2, 0])
        #expect(fault.backtrace.frames.count == 9)
        var original = try contents(of: Self.range.path)
        if !hasHeader { try ELFPatch.hideUnwindHeader(in: &original) }
        let sections = try ELFPatch.sections(named: [".eh_frame", ".eh_frame_hdr"], in: original)
        var random = SystemRandomNumberGenerator()
        var unlike = 0
        for round in 0..<(Surroundings.isEmulated ? 200 : 4000) {
            var bytes = original
            for _ in 0..<(round % 4 == 0 ? 40 : 1 + round % 3) {
                let section = sections.randomElement(using: &random) ?? 0..<1
                let place = Int.random(in: section, using: &random)
                switch UInt8.random(in: 0..<4, using: &random) {
                case 0: bytes[place] = [0, 0x7f, 0x80, 0xff].randomElement(using: &random) ?? 0
                case 1: bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
                case 2:
                    // A whole word, as lengths and distances are.
                    let words: [UInt32] = [0, 4, .max, .max - 3, 0x8000_0000, .random(in: 0...(.max), using: &random)]
                    for (index, byte) in littleEndian(words.randomElement(using: &random) ?? 0).enumerated()
                    where section.contains(place + index) {
                        bytes[place + index] = byte
                    }
                default: bytes[place] = .random(in: 0...255, using: &random)
                }
            }
            let module = try GuestModule(bytes)
            let backtrace = try await sandbox.run { sandbox in
                let memory = try sandbox.memory
                var walk = StackWalk(.guest(memory), memory.addressSpace, module, from: fault.registers)
                let found = walk.walk(calledFunction: 1)
                return GuestBacktrace(found, module: module, imageBase: memory.addressSpace.imageBase)
            }
            #expect((1...128).contains(backtrace.frames.count))
            #expect(backtrace.frames.first?.address == fault.instructionPointer)
            if backtrace.names != fault.backtrace.names { unlike += 1 }
        }
        // Or nothing was tampered with.
        #expect(unlike > (Surroundings.isEmulated ? 5 : 100))
    }

    @Test func `numbers and programs without end are refused`() {
        func rules(_ program: [UInt8], at address: UInt64 = 100, factor: UInt64 = 1) -> FrameRules? {
            // DW_CFA_def_cfa: r7 + 8, then the program.
            let file = ELFReader(bytes: [0x0c, 7, 8] + program)
            let cursor = DWARFCursor(file, 0..<file.size, slide: 0, base: 0)
            let description = UnwindTable.Description(
                start: 0,
                codeAlignment: factor,
                dataAlignment: -8,
                instructions: [cursor],
                pointerEncoding: 0x1b
            )
            return FrameRules(description, at: address)
        }
        #expect(rules([])?.frameOffset == 8)
        #expect(rules([0x41, 0x0e, 16, 0x86, 2])?.frameOffset == 16)
        // An advance beyond the address ends it; one that overflows does too.
        #expect(rules([0x02, 101, 0x0e, 99])?.frameOffset == 8)
        #expect(rules([0x04, 0xff, 0xff, 0xff, 0xff, 0x0e, 99], factor: .max)?.frameOffset == 8)
        // Cut off, without an end, unknown, unbalanced, of a register that there is not, of an expression.
        let refused: [[UInt8]] = [
            [0x0e], [0x0e, 0x80], [0x0e] + [UInt8](repeating: 0x80, count: 40), [0x3f], [0x0b], [0x0c, 99, 8],
            [0x0f, 2, 0x77, 0], [0x0f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], [0x10, 6],
            [UInt8](repeating: 0x0a, count: 40),
            [UInt8](repeating: 0, count: Int(FrameRules.lengthMaximum) + 1),
        ]
        for program in refused { #expect(rules(program) == nil) }
        // Rules for registers beyond those that are followed are passed over.
        #expect(rules([0x05, 0xff, 0x7f, 1, 0x90 | 0x2f, 3, 0xff, 0x0e, 24])?.frameOffset == 24)
        #expect(rules([0x0a, 0x0e, 32, 0x0b])?.frameOffset == 8)
        if case .unknown? = rules([0x10, 6, 1, 0x77])?.rules[6] {} else { Issue.record("an expression was evaluated") }
    }
}

/// The four bytes of a word.
private func littleEndian(_ word: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } }

/// Changes to the headers of a module.
enum ELFPatch {
    private static func number(_ bytes: [UInt8], at offset: Int, count: Int) -> Int {
        bytes[offset..<offset + count].reversed().reduce(0) { $0 << 8 | Int($1) }
    }

    /// Makes the program header that leads to the tables one that means nothing.
    static func hideUnwindHeader(in bytes: inout [UInt8]) throws {
        let table = number(bytes, at: 32, count: 8)
        for index in 0..<number(bytes, at: 56, count: 2)
        where number(bytes, at: table + 56 * index, count: 4) == 0x6474_e550 {
            for byte in 0..<4 { bytes[table + 56 * index + byte] = 0 }
            return
        }
        Issue.record("the module has no PT_GNU_EH_FRAME")
    }

    static func hideSections(in bytes: inout [UInt8]) throws {
        for byte in 60..<62 { bytes[byte] = 0 }
    }

    /// Where sections are in the file.
    static func sections(named names: [String], in bytes: [UInt8]) throws -> [Range<Int>] {
        let table = number(bytes, at: 40, count: 8)
        let strings = number(bytes, at: table + 64 * number(bytes, at: 62, count: 2) + 24, count: 8)
        let found = (0..<number(bytes, at: 60, count: 2)).compactMap { index -> Range<Int>? in
            let header = table + 64 * index
            let name = bytes[(strings + number(bytes, at: header, count: 4))...].prefix { $0 != 0 }
            guard names.contains(String(decoding: name, as: UTF8.self)) else { return nil }
            let offset = number(bytes, at: header + 24, count: 8)
            return offset..<offset + number(bytes, at: header + 32, count: 8)
        }
        try #require(found.count == names.count)
        return found
    }
}
