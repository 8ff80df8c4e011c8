import Testing

@testable import MicroVM

/// What a module is made of, as the loader and the embedder see it.
@Suite struct GuestModuleTests {
    private static let words = ELFBuilder.words

    private func module(_ change: (inout ELFBuilder) -> Void = { _ in }) throws -> GuestModule {
        var builder = ELFBuilder()
        change(&builder)
        let module = try GuestModule(builder.build())
        expectSound(module)
        return module
    }

    @Test func `the smallest module has its function and nothing else`() throws {
        let module = try module()
        #expect(module.exports == [.init(name: "f", kind: .function, address: 0x1000, size: 16)])
        #expect(module.export(named: "f") == module.exports[0])
        #expect(module.export(named: "g") == nil)
        #expect(module.imports.isEmpty && module.relocations.isEmpty)
        #expect(module.threadLocalStorage == nil && module.readOnlyAfterRelocation == nil)
        #expect(module.initializers.function == nil && module.initializers.arrayCount == 0)
        #expect(module.segments.map(\.permissions) == [.read, [.read, .execute], [.read, .write], .read])
        #expect(module.segments[2].fileSize == 0x800 && module.segments[2].memorySize == 0x1000)
        #expect(module.imageSize == 0x4000 && module.imageAlignment == 4096)
        #expect(
            module.mappings == [
                .init(range: 0..<0x1000, permissions: .read),
                .init(range: 0x1000..<0x2000, permissions: [.read, .execute]),
                .init(range: 0x2000..<0x3000, permissions: [.read, .write]),
                .init(range: 0x3000..<0x4000, permissions: .read),
            ]
        )
    }

    @Test func `exports are what is visible, sorted by name`() throws {
        let module = try module {
            $0.symbols = [
                .function("zebra"), .function("apple", at: 0x1010),
                .init(name: "weak", binding: 2, value: 0x1020),
                .init(name: "unique", type: 1, binding: 10, value: 0x2000),
                .init(name: "label", type: 0, value: 0x1030), .init(name: "variable", type: 1, value: 0x2700, size: 8),
                .init(name: "mark", type: 0, value: 0x2700), .init(name: "hidden", visibility: 2, value: 0x1000),
                .init(name: "internal", visibility: 1, value: 0x1000), .init(name: "local", binding: 0, value: 0x1000),
                .init(name: "protected", visibility: 3, value: 0x1000), .init(name: "", value: 0x1000),
                .init(name: "absolute", section: 0xfff1, value: 0x1000),
                .init(name: "thread", type: 6, value: 0), .init(name: "end", type: 0, value: 0x5000),
            ]
        }
        #expect(
            module.exports.map(\.name) == [
                "apple", "label", "mark", "protected", "unique", "variable", "weak", "zebra",
            ]
        )
        #expect(module.export(named: "label")?.kind == .function)
        #expect(module.export(named: "mark")?.kind == .object)
        #expect(module.export(named: "variable") == .init(name: "variable", kind: .object, address: 0x2700, size: 8))
    }

    @Test func `the size of an export ends with its segment`() throws {
        let module = try module { $0.symbols = [.function("f", at: 0x17f0, size: .max)] }
        #expect(module.export(named: "f")?.size == 16)
    }

    @Test func `of two exports of one name there is one, of a hidden version none`() throws {
        let module = try module {
            $0.symbols = [.function("f", at: 0x1020), .function("f", at: 0x1010), .function("old"), .function("new")]
            $0.versions = [0, 1, 1, 0x8002, 2]
        }
        #expect(module.exports.map(\.name) == ["f", "new"])
        #expect(module.export(named: "f")?.address == 0x1010)
    }

    @Test func `names that differ only in their bytes are different exports`() throws {
        let module = try module {
            $0.symbols = [.function("\u{e9}", at: 0x1010), .function("e\u{301}", at: 0x1020)]
        }
        #expect(module.exports.map(\.address) == [0x1020, 0x1010])
        #expect(module.export(named: "\u{e9}")?.address == 0x1010)
    }

    @Test func `imports are the undefined symbols in order`() throws {
        let module = try module {
            $0.symbols = [
                .undefined("second"), .undefined("first", type: 2), .undefined("maybe", binding: 2),
                .undefined("variable", type: 1, binding: 2), .undefined("local", binding: 0), .function("f"),
            ]
        }
        #expect(
            module.imports == [
                .init(name: "second", isWeak: false, kind: .unspecified),
                .init(name: "first", isWeak: false, kind: .function),
                .init(name: "maybe", isWeak: true, kind: .unspecified),
                .init(name: "variable", isWeak: true, kind: .object),
            ]
        )
    }

    @Test func `relocations become values`() throws {
        let words = Self.words
        let module = try module {
            $0.symbols = [
                .undefined("import"), .undefined("null", type: 1, binding: 2), .function("f", at: 0x1010),
                .init(name: "absolute", section: 0xfff1, value: 77),
            ]
            $0.relocations = [
                .init(type: 8, offset: words, addend: 0x1234), .init(type: 0, offset: 0),
                .init(type: 1, offset: words + 8, symbol: 3, addend: 4),
                .init(type: 6, offset: words + 16, symbol: 1),
                .init(type: 1, offset: words + 24, symbol: 1, addend: -1),
                .init(type: 1, offset: words + 32, symbol: 2), .init(type: 1, offset: words + 40, symbol: 4, addend: 1),
                .init(type: 1, offset: words + 51, symbol: 0, addend: 5), .init(type: 8, offset: 0x2ff8, addend: -1),
            ]
            $0.jumpSlots = [
                .init(type: 7, offset: words + 56, symbol: 1), .init(type: 7, offset: words + 64, symbol: 3),
            ]
        }
        #expect(
            module.relocations == [
                .init(offset: words, value: .image(0x1234)), .init(offset: words + 8, value: .image(0x1014)),
                .init(offset: words + 16, value: .importAddress(index: 0, addend: 0)),
                .init(offset: words + 24, value: .importAddress(index: 0, addend: -1)),
                .init(offset: words + 32, value: .constant(0)), .init(offset: words + 40, value: .constant(78)),
                .init(offset: words + 51, value: .constant(5)), .init(offset: 0x2ff8, value: .image(.max)),
                .init(offset: words + 56, value: .importAddress(index: 0, addend: 0)),
                .init(offset: words + 64, value: .image(0x1010)),
            ]
        )
        #expect(MemoryLayout<GuestModule.Relocation>.stride == 24)
    }

    @Test func `addresses are relative to an image that begins elsewhere`() throws {
        let bases: [UInt64] = [0x400000, 0x7fff_ffff_f000, 0xffff_ffff_f000_0000]
        for base in bases {
            let module = try module {
                $0.base = base
                $0.symbols = [.function("f", at: base + 0x1010)]
                $0.relocations = [
                    .init(type: 8, addend: Int64(bitPattern: base + 0x2000)), .init(type: 1, symbol: 1, addend: 1),
                ]
            }
            #expect(module.imageSize == 0x4000)
            #expect(module.export(named: "f")?.address == 0x1010)
            #expect(module.relocations.map(\.offset) == [Self.words, Self.words])
            #expect(module.relocations.map(\.value) == [.image(0x2000), .image(0x1011)])
            #expect(module.symbol(at: 0x1012)?.description == "f+0x2")
        }
    }

    @Test func `an image keeps the alignment its segments ask for`() throws {
        let module = try module {
            $0.base = 0x201000
            $0.symbols = []
            $0.changeHeaders = {
                for index in 0...3 { $0[index].offset &+= 0 }
                $0[ELFBuilder.Header.data].alignment = 1 << 12
                $0[ELFBuilder.Header.first].alignment = 0
            }
        }
        #expect(module.imageAlignment == 4096 && module.segments[0].address == 0)

        let aligned = try self.module {
            $0.base = 0x210000
            $0.symbols = []
            $0.changeHeaders = { $0[ELFBuilder.Header.code].alignment = 0x10000 }
        }
        #expect(aligned.imageAlignment == 0x10000 && aligned.segments[1].address == 0x1000)

        let early = try self.module {
            $0.base = 0x11000
            $0.symbols = []
            $0.changeHeaders = {
                for index in 0...3 { $0[index].alignment = 1 }
                $0[ELFBuilder.Header.code].alignment = 0x10000
                $0[ELFBuilder.Header.code].address += 0xf000
                $0[ELFBuilder.Header.data].address += 0x20000
                $0[ELFBuilder.Header.tables].address += 0x20000
                $0[ELFBuilder.Header.dynamic].address += 0x20000
            }
            for tag: UInt64 in [4, 5, 6] {
                let change = $0.changeDynamic
                $0.changeDynamic = { entries in
                    change(&entries)
                    entries = entries.map { $0.tag == tag ? ($0.tag, $0.value + 0x20000) : $0 }
                }
            }
        }
        // The image begins at 0x10000, a page before its first segment.
        #expect(early.segments.map(\.address) == [0x1000, 0x11000, 0x23000, 0x24000])
        #expect(early.mappings.first?.range == 0x1000..<0x2000)
    }

    @Test func `initialisers are found`() throws {
        let module = try module {
            $0.addDynamic(12, 0x1020)
            $0.addDynamic(25, Self.words)
            $0.addDynamic(27, 24)
        }
        #expect(module.initializers == .init(function: 0x1020, arrayAddress: Self.words, arrayCount: 3))
        #expect(
            try self.module {
                $0.addDynamic(25, 0); $0.addDynamic(27, 0)
            }.initializers.arrayCount == 0
        )
    }

    @Test func `thread-local variables are offsets from the thread pointer`() throws {
        let module = try module {
            $0.symbols = [.init(name: "variable", type: 6, value: 0x20)]
            $0.addHeader(
                .init(type: 7, flags: 4, offset: 0x2400, address: 0x2400, fileSize: 8, memorySize: 0x44, alignment: 64)
            )
            $0.relocations = [
                .init(type: 18, symbol: 1, addend: 4), .init(type: 18, addend: 0x10), .init(type: 16, symbol: 1),
                .init(type: 17, symbol: 1, addend: 2), .init(type: 16),
            ]
        }
        #expect(
            module.threadLocalStorage
                == .init(
                    address: 0x2400,
                    fileOffset: 0x2400,
                    fileSize: 8,
                    memorySize: 0x44,
                    alignment: 64,
                    distance: 128
                )
        )
        // The first two are relative to the thread pointer; the module's number and the offset in its block add up.
        let expected: [Int64] = [0x24 - 128, 0x10 - 128, -128, 0x22, -128]
        #expect(module.relocations.map(\.value) == expected.map { .constant(UInt64(bitPattern: $0)) })
    }

    @Test(
        arguments: [
            (0x2400, 0x40, 64, 0x40), (0x2400, 0x41, 64, 0x80), (0x2404, 0x40, 64, 0x7c), (0x243c, 4, 64, 4),
            (0x2401, 1, 1, 1), (0x2400, 1, 4096, 0xc00), (0x2400, 1 << 20, 0, 1 << 20),
        ] as [(UInt64, UInt64, UInt64, UInt64)]
    )
    func `a thread-local block keeps its alignment`(
        address: UInt64,
        size: UInt64,
        alignment: UInt64,
        distance: UInt64
    ) throws {
        let module = try module {
            $0.addHeader(
                .init(
                    type: 7,
                    flags: 4,
                    offset: address,
                    address: address,
                    fileSize: 0,
                    memorySize: size,
                    alignment: alignment
                )
            )
        }
        let storage = try #require(module.threadLocalStorage)
        #expect(storage.distance == distance && storage.memorySize == size)
        #expect((0 &- storage.distance &- address) % max(alignment, 1) == 0)
    }

    @Test(arguments: [ELFBuilder.HashStyle.systemV, .gnu, .none])
    func `symbols are counted in every way`(_ style: ELFBuilder.HashStyle) throws {
        let module = try module {
            $0.hashStyle = style
            $0.hasSections = style == .none
            $0.symbols = [.undefined("i"), .undefined("j"), .function("f"), .function("g")]
        }
        #expect(module.imports.map(\.name) == ["i", "j"])
        #expect(module.exports.map(\.name) == ["f", "g"])
    }

    @Test func `an empty GNU hash table hides no import that is used`() throws {
        let change: (inout ELFBuilder) -> Void = {
            $0.hashStyle = .gnu
            $0.symbols = [.undefined("i"), .undefined("j")]
            $0.relocations = [.init(type: 6, symbol: 1), .init(type: 6, symbol: 2)]
            // As GNU ld writes it: the first symbol is 1, and there is no chain.
            $0.changeBytes = { bytes in
                for offset in stride(from: 0x3000, to: bytes.count - 16, by: 4)
                where bytes[offset..<offset + 12] == [1, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0] {
                    bytes[offset + 4] = 1
                }
            }
        }
        #expect(try module(change).imports.map(\.name) == ["i", "j"])
    }

    @Test func `entries that only inform do no harm`() throws {
        let module = try module {
            for tag: UInt64 in [
                3, 13, 14, 16, 21, 24, 26, 28, 29, 31, 34, 0x6fff_fff9, 0x6fff_fffa, 0x6fff_fffb, 0x6fff_fffc,
                0x6fff_fffd, 0x6000_0001, 0x7000_0001, .max,
            ] {
                $0.addDynamic(tag, .max)
                $0.addDynamic(tag, .max)
            }
            $0.addDynamic(30, 0x1b)
            for type: UInt32 in [0, 4, 5, 6, 0x6474_e550, 0x6474_e553, 0x7000_0000, .max] {
                $0.addHeader(
                    .init(type: type, flags: .max, offset: .max, address: .max, fileSize: .max, memorySize: .max)
                )
            }
            $0.addHeader(.init(type: 0x6474_e551, flags: 6, offset: 0, address: 0, fileSize: 0, memorySize: 0))
            $0.addHeader(.init(type: 1, flags: 7, offset: .max, address: .max, fileSize: 0, memorySize: 0))
        }
        #expect(module.exports.count == 1 && module.segments.count == 4)
    }

    @Test func `relocations for calls may be counted twice`() throws {
        let module = try module {
            $0.symbols = [.undefined("i")]
            $0.relocations = [.init(type: 8), .init(type: 7, symbol: 1), .init(type: 7, symbol: 1)]
            let change = $0.changeDynamic
            $0.changeDynamic = { entries in
                change(&entries)
                let table = entries.first { $0.tag == 7 }?.value ?? 0
                entries += [(23, table + 24), (2, 48), (20, 7)]
            }
        }
        #expect(module.relocations.count == 3)
    }

    @Test func `an address is named after the symbol around it`() throws {
        let change: (inout ELFBuilder) -> Void = {
            $0.symbols = [.function("exported", at: 0x1000, size: 0x20)]
            $0.hasSections = true
            $0.debuggingSymbols = [
                .init(name: "file", type: 4, binding: 0, section: 0xfff1), .undefined("import"),
                .init(name: "local", type: 2, binding: 0, value: 0x1040, size: 0x40),
                .init(name: "label", type: 0, binding: 0, value: 0x1060),
                .init(name: "alias", type: 0, binding: 0, value: 0x1040),
                .function("exported", at: 0x1000, size: 0x20), .init(name: "variable", type: 1, value: 0x2700, size: 8),
                .init(name: "loose", type: 0, value: 0x1100), .init(name: "outside", value: 0x9000),
            ]
        }
        let module = try module(change)
        let names = [0x1000, 0x101f, 0x1030, 0x1040, 0x1070, 0x1090, 0x1100, 0x17ff, 0x1800, 0x2000, 0x2704, 0x2ffe]
            .map { module.symbol(at: $0)?.description }
        #expect(
            names == [
                "exported", "exported+0x1f", "exported+0x30", "local", "local+0x30", "label+0x30", "loose",
                "loose+0x6ff", nil, nil, "variable+0x4", "variable+0x8fe",
            ]
        )
        #expect(module.symbol(at: .max) == nil && module.symbol(at: 0) == nil)

        let stripped = try self.module {
            change(&$0)
            $0.debuggingSymbols = []
        }
        #expect(stripped.symbol(at: 0x1050)?.description == "exported+0x50")
    }

    @Test func `a module is known by its name`() throws {
        let bytes = ELFBuilder().build()
        #expect(try GuestModule(bytes).name == "module")
        #expect(try GuestModule(bytes, name: "guest.so").name == "guest.so")
        #expect {
            try GuestModule([1, 2, 3], name: "bad\u{1b}[31m.so")
        } throws: {
            ($0 as? SandboxError)?.message
                == #"The module "bad\u{1B}[31m.so" cannot be loaded: it is not an ELF file."#
        }
    }
}
