import Testing

@testable import MicroVM

/// What is refused, and what the message calls it.
@Suite struct GuestModuleRefusalTests {
    struct Refusal: Sendable, CustomTestStringConvertible {
        let reason: String
        let change: @Sendable (inout ELFBuilder) -> Void

        init(_ reason: String, _ change: @escaping @Sendable (inout ELFBuilder) -> Void) {
            self.reason = reason
            self.change = change
        }

        /// With one more program header.
        init(_ reason: String, header: ELFBuilder.ProgramHeader) {
            self.init(reason) { $0.addHeader(header) }
        }

        /// With one of the usual program headers changed.
        init(
            _ reason: String,
            _ index: Int,
            _ change: @escaping @Sendable (inout ELFBuilder.ProgramHeader) -> Void
        ) {
            self.init(reason) { $0.changeHeaders = { change(&$0[index]) } }
        }

        /// With one more relocation.
        init(_ reason: String, relocation: ELFBuilder.Relocation) {
            self.init(reason) {
                $0.symbols = [.function("f"), .undefined("i"), .init(name: "t", type: 6)]
                $0.relocations = [relocation]
            }
        }

        /// With one more entry of the dynamic section.
        init(_ reason: String, dynamic tag: UInt64, _ value: UInt64 = 0) {
            self.init(reason) { $0.addDynamic(tag, value) }
        }

        /// With an entry of the dynamic section replaced or removed.
        init(_ reason: String, replacing tag: UInt64, _ value: UInt64?) {
            self.init(reason) {
                $0.relocations = [.init(type: 8)]
                $0.jumpSlots = [.init(type: 7, symbol: 1)]
                $0.setDynamic(tag, value)
            }
        }

        var testDescription: String { reason }
    }

    @Test(arguments: header + segments + threadLocal + dynamic + symbols + relocations)
    func `it is refused because`(_ refusal: Refusal) {
        var builder = ELFBuilder()
        refusal.change(&builder)
        let bytes = builder.build()
        #expect {
            _ = try GuestModule(bytes, name: "guest.so")
        } throws: {
            guard let error = $0 as? SandboxError else { return false }
            let prefix = "The module \"guest.so\" cannot be loaded: "
            guard error.code == .invalidModule, error.message.hasPrefix(prefix), error.message.hasSuffix(".") else {
                return false
            }
            if !error.message.contains(refusal.reason) { print(error.message) }
            return error.message.contains(refusal.reason)
        }
    }

    private static let header: [Refusal] = [
        Refusal("not an ELF file") { $0.patch(UInt8(0x7e), at: 0) },
        Refusal("not an ELF file") { $0.changeBytes = { $0 = [] } },
        Refusal("ELF header is cut off") { $0.changeBytes = { $0.removeSubrange(63...) } },
        Refusal("not a 64-bit ELF file") { $0.patch(UInt8(1), at: 4) },
        Refusal("not little-endian") { $0.patch(UInt8(2), at: 5) },
        Refusal("unknown version of ELF") { $0.patch(UInt8(2), at: 6) },
        Refusal("unknown version of ELF") { $0.patch(UInt32(2), at: 20) },
        Refusal("another processor (e_machine 183)") { $0.patch(UInt16(183), at: 18) },
        Refusal("object file (ET_REL)") { $0.patch(UInt16(1), at: 16) },
        Refusal("fixed address (ET_EXEC)") { $0.patch(UInt16(2), at: 16) },
        Refusal("core dump (ET_CORE)") { $0.patch(UInt16(4), at: 16) },
        Refusal("not a shared object (e_type 65024)") { $0.patch(UInt16(0xfe00), at: 16) },
        Refusal("no program headers") { $0.patch(UInt16(0), at: 56) },
        Refusal("program headers are not 56 bytes each") { $0.patch(UInt16(57), at: 54) },
        Refusal("program headers are not all in the file") { $0.patch(UInt64.max, at: 32) },
        Refusal("program headers are not all in the file") { $0.patch(UInt16.max, at: 56) },
    ]

    private static let segments: [Refusal] =
        [
            Refusal("(PT_INTERP)", header: .init(type: 3, flags: 4, offset: 0, address: 0, fileSize: 8, memorySize: 8)),
            Refusal(
                "executable stack (PT_GNU_STACK)",
                header: .init(type: 0x6474_e551, flags: 7, offset: 0, address: 0, fileSize: 0, memorySize: 0)
            ),
            Refusal(
                "more than one dynamic section (PT_DYNAMIC)",
                header: .init(type: 2, flags: 6, offset: 0x2000, address: 0x2000, fileSize: 16, memorySize: 16)
            ),
            Refusal("no segment to load (PT_LOAD)") { $0.changeHeaders = { $0.removeAll { $0.type == 1 } } },
            Refusal("no dynamic section (PT_DYNAMIC)") { $0.changeHeaders = { $0.removeAll { $0.type == 2 } } },
            Refusal("its segment at 0x1000 is both writable and executable", ELFBuilder.Header.code) { $0.flags = 7 },
            Refusal("its segment at 0x2000 is both writable and executable", ELFBuilder.Header.data) { $0.flags = 3 },
            Refusal("its segment at 0x1000 is larger in the file", ELFBuilder.Header.code) { $0.memorySize = 0x7ff },
            Refusal("its segment at 0x1000 is not all in the file", ELFBuilder.Header.code) { $0.offset = 1 << 40 },
            Refusal("its segment at 0x1000 is not all in the file", ELFBuilder.Header.code) {
                $0.offset = .max - 0xfff
            },
            Refusal("its segment at 0x1000 has an alignment of 4098", ELFBuilder.Header.code) { $0.alignment = 4098 },
            Refusal("its segment at 0x1000 has an alignment of 4194304", ELFBuilder.Header.code) {
                $0.alignment = 4 << 20
            },
            Refusal("its segment at 0x1001 is misaligned", ELFBuilder.Header.code) { $0.address += 1 },
            Refusal("beyond the end of the address space", ELFBuilder.Header.data) {
                $0.address = 0 &- 0x1000
                $0.memorySize = 0x1001
            },
            Refusal("segments overlap at 0x2000", ELFBuilder.Header.code) { $0.memorySize = 0x1001 },
            Refusal("segments overlap at 0x1000", ELFBuilder.Header.data) { $0.address = 0x1000 },
            Refusal("larger than 4 GiB", ELFBuilder.Header.data) { $0.address = (1 << 32) - 0xfff + 0xfff },
            Refusal(
                "larger than 4 GiB",
                header: .init(type: 1, flags: 6, offset: 0, address: 1 << 32, fileSize: 0, memorySize: 1)
            ),
            Refusal("the page at 0x1000 is shared by segments with different permissions") {
                $0.changeHeaders = {
                    $0[ELFBuilder.Header.data].address = 0x1800
                    $0[ELFBuilder.Header.data].alignment = 1
                }
            },
            Refusal("the page at 0x2000 is shared by segments with different permissions") {
                $0.changeHeaders = {
                    $0[ELFBuilder.Header.data].memorySize = 0x800
                    $0[ELFBuilder.Header.tables].address = 0x2800
                    $0[ELFBuilder.Header.tables].alignment = 1
                }
            },
        ]
        + [0, 0x1000, 0x3000, 0x5000, .max].map {
            Refusal(
                "PT_GNU_RELRO range is not inside a writable segment",
                header: .init(type: 0x6474_e552, flags: 4, offset: 0, address: $0, fileSize: 0, memorySize: 0x100)
            )
        }
        + [0x1001, .max].map {
            Refusal(
                "PT_GNU_RELRO range is not inside a writable segment",
                header: .init(type: 0x6474_e552, flags: 4, offset: 0, address: 0x2000, fileSize: 0, memorySize: $0)
            )
        } + [
            Refusal("more than one range to be read-only after relocation (PT_GNU_RELRO)") {
                for _ in 0..<2 {
                    $0.addHeader(
                        .init(type: 0x6474_e552, flags: 4, offset: 0, address: 0x2000, fileSize: 0, memorySize: 0)
                    )
                }
            }
        ]

    private static func block(
        _ address: UInt64,
        _ fileSize: UInt64,
        _ memorySize: UInt64,
        _ alignment: UInt64 = 8
    ) -> ELFBuilder.ProgramHeader {
        .init(
            type: 7,
            flags: 4,
            offset: address,
            address: address,
            fileSize: fileSize,
            memorySize: memorySize,
            alignment: alignment
        )
    }

    private static let threadLocal: [Refusal] = [
        Refusal("(PT_TLS) is larger in the file", header: block(0x2400, 9, 8)),
        Refusal("(PT_TLS) is larger in the file", header: block(0x2400, 1, 0)),
        Refusal("(PT_TLS) is larger than 1048576 bytes", header: block(0x2400, 0, 1 << 20 + 1)),
        Refusal("(PT_TLS) is larger than 1048576 bytes", header: block(0x2400, 0, .max)),
        Refusal("(PT_TLS) has an alignment of 24", header: block(0x2400, 8, 8, 24)),
        Refusal("(PT_TLS) has an alignment of 8192", header: block(0x2400, 8, 8, 8192)),
        Refusal("(PT_TLS) is not all in one segment", header: block(0x27f9, 8, 8)),
        Refusal("(PT_TLS) is not all in one segment", header: block(.max, 8, 8)),
        Refusal("more than one block of thread-local variables (PT_TLS)") {
            $0.addHeader(block(0x2400, 8, 8))
            $0.addHeader(block(0x2408, 8, 8))
        },
    ]

    private static let dynamic: [Refusal] =
        [
            Refusal("dynamic section is not all in one segment", ELFBuilder.Header.dynamic) { $0.address = 0x27f8 },
            Refusal("dynamic section is not all in one segment", ELFBuilder.Header.dynamic) { $0.fileSize = .max },
            Refusal(#"(DT_NEEDED): "libc.so.6", "libm.so.6"; link them in statically"#) {
                $0.symbols = [.undefined("libc.so.6"), .undefined("libm.so.6")]
                $0.addDynamic(1, 1)
                $0.addDynamic(1, 11)
            },
            Refusal("(DT_NEEDED): one without a name", dynamic: 1, .max),
            Refusal("(DT_NEEDED): \"f\";") {
                $0.addDynamic(36, 0)
                $0.addDynamic(1, 1)
            },
            Refusal("(DT_NEEDED): \"f\", \"f\", \"f\", \"f\", \"f\", \"f\", \"f\", \"f\", more;") {
                for _ in 0..<20 { $0.addDynamic(1, 1) }
            },
            Refusal("(DT_NEEDED): \"f\"", dynamic: 0x7fff_fffd, 1),
            Refusal("(DT_NEEDED): \"f\"", dynamic: 0x7fff_ffff, 1),
            Refusal("read-only segments (DT_TEXTREL)", dynamic: 22), Refusal("(DF_TEXTREL)", dynamic: 30, 6),
            Refusal("(DT_REL)", dynamic: 17), Refusal("(DT_RELR)", dynamic: 36),
            Refusal("(DT_PREINIT_ARRAY)", dynamic: 32),
            Refusal("two entries for strings (tag 0x5)", dynamic: 5), Refusal("two entries for hash", dynamic: 4),
            Refusal("no string table (DT_STRTAB, DT_STRSZ)", replacing: 5, nil),
            Refusal("no string table (DT_STRTAB, DT_STRSZ)", replacing: 10, nil),
            Refusal("string table (DT_STRTAB) is not all", replacing: 5, .max),
            Refusal("string table (DT_STRTAB) is not all", replacing: 10, .max),
            Refusal("no symbol table (DT_SYMTAB)", replacing: 6, nil),
            Refusal("symbol table (DT_SYMTAB) is not all", replacing: 6, 0x4000),
            Refusal("symbol table (DT_SYMTAB) is not all", replacing: 6, 0x2f00),
            Refusal("(DT_SYMENT) are not 24 bytes", replacing: 11, 16),
            Refusal("(DT_RELAENT) are not 24", replacing: 9, 25),
            Refusal("(DT_RELASZ) is not a multiple of 24", replacing: 8, 25),
            Refusal("(DT_RELASZ) is not a multiple of 24", replacing: 8, nil),
            Refusal("(DT_RELA) are not all in one segment", replacing: 7, 0x2f00),
            Refusal("(DT_RELA) are not all in one segment", replacing: 8, 24 << 32),
            Refusal("(DT_JMPREL) are not all in one segment", replacing: 2, UInt64.max / 24 * 24),
            Refusal("(DT_PLTRELSZ) is not a multiple of 24", replacing: 2, 1),
            Refusal("without addends (DT_PLTREL)", replacing: 20, 17), Refusal("(DT_PLTREL)", replacing: 20, nil),
            Refusal("(DT_HASH) is not in a segment", replacing: 4, 0x2800),
            Refusal("(DT_HASH) is not all in one segment", replacing: 4, 0x3020),
            Refusal("(DT_INIT) is not in an executable segment", dynamic: 12, 0),
            Refusal("(DT_INIT) is not in an executable segment", dynamic: 12, 0x1800),
            Refusal("(DT_INIT_ARRAYSZ) is not a multiple of 8", dynamic: 25, 0x2400),
            Refusal("(DT_INIT_ARRAYSZ) is not a multiple of 8") {
                $0.addDynamic(25, 0x2400)
                $0.addDynamic(27, 12)
            },
        ]
        + [(0x2404, 8), (0x27f8, 16), (0x2ff8, 8), (.max - 7, 8), (0x2400, .max - 7)].map { address, size in
            Refusal("(DT_INIT_ARRAY) are misaligned or not all") {
                $0.addDynamic(25, address)
                $0.addDynamic(27, size)
            }
        }

    private static let symbols: [Refusal] = [
        Refusal("\"f\" is an indirect function (STT_GNU_IFUNC)") { $0.symbols[0].type = 10 },
        Refusal("\"i\" is an indirect function") { $0.symbols = [.undefined("i", type: 10)] },
        Refusal("\"c\" has no place yet (SHN_COMMON)") { $0.symbols = [.init(name: "c", type: 1, section: 0xfff2)] },
        Refusal("needs the variable \"stdout\" from outside") { $0.symbols = [.undefined("stdout", type: 1)] },
        Refusal("needs the thread-local variable \"errno\"") { $0.symbols = [.undefined("errno", type: 6)] },
        Refusal("needs the thread-local variable \"errno\"") {
            $0.symbols = [.undefined("errno", type: 6, binding: 2)]
        },
        Refusal("undefined symbol \"s\" is of an unknown type (3)") { $0.symbols = [.undefined("s", type: 3)] },
        Refusal("undefined symbol without a name") { $0.symbols = [.undefined("")] },
        Refusal("function \"f\" is not in an executable segment") { $0.symbols = [.function("f", at: 0x2000)] },
        Refusal("function \"f\" is not in an executable segment") { $0.symbols = [.function("f", at: .max)] },
        Refusal("not in its string table") { $0.symbols[0].nameOffset = .max },
        Refusal("longer than 4096 bytes") {
            $0.symbols = [
                .function(String(repeating: "x", count: 4097)), .function(String(repeating: "y", count: 4096)),
            ]
        },
        Refusal("is not UTF-8") {
            $0.symbols[0].nameOffset = 1
            $0.extraStrings = [0xff, 0xfe, 0]
        },
        Refusal("(DT_VERSYM) are not all in one segment", dynamic: 0x6fff_fff0, 0x27fe),
        Refusal("(DT_GNU_HASH) is not all in one segment") {
            $0.hashStyle = .none
            $0.addDynamic(0x6fff_fef5, 0x27f8)
        },
    ]

    private static let relocations: [Refusal] =
        [
            (2, "R_X86_64_PC32, for \"i\""), (3, "R_X86_64_GOT32"), (4, "R_X86_64_PLT32"), (5, "R_X86_64_COPY"),
            (10, "R_X86_64_32"), (11, "R_X86_64_32S"), (23, "R_X86_64_TPOFF32"), (24, "R_X86_64_PC64"),
            (36, "R_X86_64_TLSDESC"), (38, "R_X86_64_RELATIVE64"), (99, "type 99"), (.max, "type 4294967295"),
        ].map { type, name in
            Refusal("relocation that is not supported (\(name)", relocation: .init(type: type, symbol: 2))
        } + [
            Refusal("not supported (R_X86_64_IRELATIVE)", relocation: .init(type: 37)),
            Refusal("relocation at 0x1000 is in a read-only segment", relocation: .init(type: 8, offset: 0x1000)),
            Refusal(
                "relocation at 0x3000 is in a read-only segment",
                relocation: .init(type: 1, offset: 0x3000, symbol: 1)
            ),
            Refusal("relocation at 0x5000 is outside its segments", relocation: .init(type: 8, offset: 0x5000)),
            Refusal("relocation at 0xffffffffffffffff is outside", relocation: .init(type: 8, offset: .max)),
            Refusal("relocation at 0x2ff9 reaches beyond its segment", relocation: .init(type: 8, offset: 0x2ff9)),
            Refusal("a R_X86_64_64 relocation refers to a symbol that does", relocation: .init(type: 1, symbol: 4)),
            Refusal("a R_X86_64_64 relocation refers to a symbol that does", relocation: .init(type: 1, symbol: .max)),
            Refusal("address of the thread-local variable \"t\" by R_X86_64_64", relocation: .init(type: 1, symbol: 3)),
            Refusal("R_X86_64_TPOFF64 relocation, but no thread-local", relocation: .init(type: 18, symbol: 3)),
            Refusal("R_X86_64_DTPMOD64 relocation, but no thread-local", relocation: .init(type: 16)),
            Refusal("R_X86_64_DTPOFF64 relocation, but no thread-local", relocation: .init(type: 17)),
            Refusal("\"f\" is not thread-local, but R_X86_64_TPOFF64 refers") {
                $0.addHeader(block(0x2400, 8, 8))
                $0.relocations = [.init(type: 18, symbol: 1)]
            },
            Refusal("a R_X86_64_DTPOFF64 relocation refers to a symbol that does not exist") {
                $0.addHeader(block(0x2400, 8, 8))
                $0.relocations = [.init(type: 17, symbol: 2)]
            },
            Refusal("undefined symbol \"i\" is local") {
                $0.symbols = [.undefined("i", binding: 0)]
                $0.relocations = [.init(type: 1, symbol: 1)]
            },
            Refusal("not supported (R_X86_64_PC32)") { $0.jumpSlots = [.init(type: 2, symbol: 9)] },
        ]
}
