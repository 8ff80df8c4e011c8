import Testing

@testable import MicroVM

/// No sequence of bytes traps, hangs or takes more than a small multiple of its length: each is a sound module or is
/// refused.
///
/// The long tests give way to others now and then: they would take every thread of the cooperative pool for themselves.
@Suite(.timeLimit(.minutes(5))) struct GuestModuleHostileTests {
    /// Whether it was loaded; what is loaded has to be sound, and what is not has to be called an invalid module.
    @discardableResult
    private func tryToLoad(_ bytes: [UInt8]) -> Bool {
        do throws(SandboxError) {
            expectSound(try GuestModule(bytes))
            return true
        } catch {
            if error.code != .invalidModule { Issue.record(error) }
            return false
        }
    }

    private static let modules = craftedModules + realModules()

    /// Modules that between them have everything a module can have.
    private static let craftedModules: [(name: String, bytes: [UInt8])] = {
        var builder = ELFBuilder()
        builder.symbols = [
            .undefined("import"), .undefined("weak", binding: 2), .function("f"),
            .init(name: "thread", type: 6, value: 8),
            .init(name: "variable", type: 1, value: 0x2700, size: 8),
            .init(name: "absolute", section: 0xfff1, value: 7),
        ]
        builder.relocations = [
            .init(type: 8, addend: 0x1000), .init(type: 1, symbol: 2, addend: 1), .init(type: 16, symbol: 4),
            .init(type: 17, symbol: 4), .init(type: 18, symbol: 4), .init(type: 6, symbol: 5),
            .init(type: 1, symbol: 6),
        ]
        builder.jumpSlots = [.init(type: 7, symbol: 1)]
        builder.versions = [0, 1, 1, 2, 1, 1, 1]
        builder.hashStyle = .gnu
        builder.hasSections = true
        builder.debuggingSymbols = [.function("f", size: 8), .init(name: "local", binding: 0, value: 0x1020)]
        builder.addDynamic(12, 0x1000)
        builder.addDynamic(25, ELFBuilder.words)
        builder.addDynamic(27, 16)
        builder.addHeader(
            .init(type: 7, flags: 4, offset: 0x2400, address: 0x2400, fileSize: 8, memorySize: 24, alignment: 16)
        )
        builder.addHeader(
            .init(type: 0x6474_e552, flags: 4, offset: 0x2000, address: 0x2000, fileSize: 0x800, memorySize: 0x1000)
        )
        let gnu = builder.build()
        builder.hashStyle = .systemV
        builder.base = 0x40_0000
        builder.symbols = [.undefined("import")]
        builder.relocations = [.init(type: 1, symbol: 1)]
        builder.jumpSlots = []
        builder.versions = nil
        builder.changeHeaders = { _ in }
        builder.changeDynamic = { _ in }
        return [("crafted", gnu), ("crafted and based", builder.build())]
    }()

    /// The same numbers in every run.
    private struct Generator: RandomNumberGenerator {
        var state: UInt64

        mutating func next() -> UInt64 {
            state &+= 0x9e37_79b9_7f4a_7c15
            var mixed = state
            mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
            mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
            return mixed ^ (mixed >> 31)
        }
    }

    @Test(arguments: modules.map(\.name))
    func `a module that is cut off anywhere is loaded or refused`(_ name: String) async throws {
        let bytes = try #require(Self.modules.first { $0.name == name }).bytes
        let module = try GuestModule(bytes)
        // After what is loaded there are only names for reports, without which a module is still loaded: fewer cuts do.
        let loadedSize = module.segments.reduce(0) { max($0, Int($1.fileOffset + $1.fileSize)) }
        var prefix = bytes
        for length in bytes.indices.reversed() {
            prefix.removeLast()
            if length % 64 == 0 { await Task.yield() }
            guard length > loadedSize, length % max(1, (bytes.count - loadedSize) / 500) != 0 else {
                #expect(tryToLoad(prefix) == (length >= loadedSize))
                continue
            }
        }
    }

    @Test(arguments: modules.map(\.name))
    func `a module with one wrong byte is loaded or refused`(_ name: String) async throws {
        let bytes = try #require(Self.modules.first { $0.name == name }).bytes
        var generator = Generator(state: 1)
        var copy = bytes
        var loaded = 0
        for step in 0..<2_000 {
            if step % 64 == 0 { await Task.yield() }
            let index = Int.random(in: copy.indices, using: &generator)
            copy[index] = UInt8.random(in: 0...255, using: &generator)
            if tryToLoad(copy) { loaded += 1 }
            copy[index] = bytes[index]
        }
        // A test of nothing if it were all or none.
        #expect(loaded > 0 && loaded < 2_000)
    }

    @Test(arguments: modules.map(\.name))
    func `a module with several wrong bytes where it matters is loaded or refused`(_ name: String) async throws {
        let bytes = try #require(Self.modules.first { $0.name == name }).bytes
        // Everything but zeros.
        let places = bytes.indices.filter { bytes[$0] != 0 }
        var generator = Generator(state: 2)
        for step in 0..<500 {
            if step % 64 == 0 { await Task.yield() }
            var copy = bytes
            for _ in 0..<Int.random(in: 1...6, using: &generator) {
                guard let place = places.randomElement(using: &generator) else { return }
                // Mostly small changes, which get far.
                let bit = UInt8(1) << UInt8.random(in: 0...7, using: &generator)
                copy[place] = Bool.random(using: &generator) ? copy[place] ^ bit : copy[place] &+ 1
            }
            tryToLoad(copy)
        }
    }

    @Test(arguments: craftedModules.map(\.name))
    func `a module with any word at a limit is loaded or refused`(_ name: String) async throws {
        let bytes = try #require(Self.craftedModules.first { $0.name == name }).bytes
        let size = UInt64(bytes.count)
        let limits: [UInt64] = [
            0, 1, 7, 8, 0xfff, 0x1000, 0x1fff, 0x2ff9, size - 1, size, size + 1, 0x7fff_ffff, 0x8000_0000, 0xffff_f001,
            0xffff_ffff, 1 << 32, .max >> 1, 1 << 63, .max - 0xfff, .max - 7, .max,
        ]
        var isZero = false
        for offset in stride(from: 0, to: bytes.count - 8, by: 4) {
            // Where the file is empty, one word stands for all.
            let wasZero = isZero
            isZero = bytes[offset..<offset + 8].allSatisfy { $0 == 0 }
            if isZero, wasZero { continue }
            await Task.yield()
            var copy = bytes
            for limit in limits {
                copy.store(limit, at: offset)
                tryToLoad(copy)
                if limit <= 0xffff_ffff {
                    copy.store(UInt32(limit), at: offset)
                    copy.store(Array(bytes[offset + 4..<offset + 8]), at: offset + 4)
                    tryToLoad(copy)
                }
            }
        }
    }

    @Test func `noise is refused`() {
        var generator = Generator(state: 3)
        let header = Array(ELFBuilder().build()[..<64])
        for length in stride(from: 0, to: 4000, by: 7) {
            let noise = (0..<length).map { _ in UInt8.random(in: 0...255, using: &generator) }
            #expect(!tryToLoad(noise))
            #expect(!tryToLoad(header + noise))
        }
    }

    @Test func `long names that overlap are refused before they take more room than the file`() {
        var builder = ELFBuilder()
        builder.extraStrings = Array(repeating: 0x61, count: 4096) + [0]
        // 20,000 symbols with a name of about 4,000 bytes each, in a file of half a megabyte.
        builder.symbols = (0..<20_000).map { .init(name: "", value: 0x1000, nameOffset: 1 + UInt32($0 % 64)) }
        let bytes = builder.build()
        #expect {
            try GuestModule(bytes)
        } throws: {
            ($0 as? SandboxError)?.message.contains("names of its symbols are longer than twice the file") == true
        }
        builder.symbols = builder.symbols.map {
            .init(name: "", type: 0, section: 0, nameOffset: $0.nameOffset)
        }
        #expect(!tryToLoad(builder.build()))
    }

    @Test func `names of symbols for reports cost nothing until they are asked for`() throws {
        var builder = ELFBuilder()
        builder.hasSections = true
        builder.debuggingSymbols =
            [.function(String(repeating: "x", count: 4096))]
            + (0..<20_000).map { .init(name: "", value: 0x1000 + UInt64($0 % 2048), nameOffset: 1) }
        let module = try GuestModule(builder.build())
        #expect(module.symbol(at: 0x1001)?.name.utf8.count == 4096)
    }

    @Test func `many segments, each of one byte, are loaded`() throws {
        var builder = ELFBuilder()
        let count = 50_000
        builder.changeBytes = { bytes in
            let offset = bytes.count
            let headers = Array(bytes[64..<64 + 5 * 56])
            bytes += headers
            for index in 0..<count {
                var header = [UInt8](repeating: 0, count: 56)
                header.store(UInt32(1), at: 0)
                header.store(UInt32(4), at: 4)
                header.store(UInt64(0x10_0000 + (count - index) * 0x1001), at: 16)
                header.store(UInt64(1), at: 40)
                bytes += header
            }
            bytes.store(UInt64(offset), at: 32)
            bytes.store(UInt16(count + 5), at: 56)
        }
        let module = try GuestModule(builder.build())
        #expect(module.segments.count == count + 4)
        expectSound(module)
    }

    @Test(arguments: [0, 1, 2, 0x7fff_ffff, UInt32.max])
    func `a GNU hash table can lie about everything`(_ word: UInt32) {
        var builder = ELFBuilder()
        builder.hashStyle = .gnu
        builder.symbols = [.undefined("i"), .function("f"), .function("g")]
        let bytes = builder.build()
        // Its words: after the symbols.
        let table = Int(ELFBuilder.tables) + 24 * 4
        for index in 0..<9 {
            for other in 0..<9 {
                var copy = bytes
                copy.store(word, at: table + index * 4)
                tryToLoad(copy)
                copy.store(word ^ 1, at: table + other * 4)
                tryToLoad(copy)
            }
        }
    }

    @Test func `a chain without an end is refused at the end of the segment`() {
        var builder = ELFBuilder()
        builder.hashStyle = .gnu
        builder.extraStrings = Array(repeating: 0, count: 1 << 20)
        // The chain goes on through the strings, all of which are even.
        builder.patch(UInt32(0), at: Int(ELFBuilder.tables) + 24 * 2 + 28)
        #expect {
            try GuestModule(builder.build())
        } throws: {
            ($0 as? SandboxError)?.message.contains("DT_GNU_HASH") == true
        }
    }

    @Test func `a module of ten megabytes is as large as it says`() throws {
        var builder = ELFBuilder()
        let symbols = 50_000
        let relocations = 300_000
        builder.symbols =
            (0..<symbols / 2).map { .undefined("import\($0)") }
            + (0..<symbols / 2).map { .function("function\($0)", at: 0x1000 + UInt64($0 % 2048)) }
        builder.relocations = (0..<relocations).map {
            .init(type: $0 % 3 == 0 ? 1 : 8, symbol: $0 % 3 == 0 ? UInt32($0 % symbols) + 1 : 0, addend: Int64($0))
        }
        builder.hashStyle = .gnu
        builder.extraStrings = Array(repeating: 0, count: 1 << 20)
        let bytes = builder.build()
        #expect(bytes.count > 10_000_000 && bytes.count < 11_000_000)
        let module = try GuestModule(bytes)
        #expect(module.imports.count == symbols / 2)
        #expect(module.exports.count == symbols / 2)
        #expect(module.relocations.count == relocations)
        #expect(module.export(named: "function24999")?.address == 0x1000 + 24_999 % 2048)
        expectSound(module)
    }
}
