/// A guest module made on the spot, so that the machine can be tested without a file.
///
/// It exports `add`, which adds two integers; `call_host`, which calls the import `host` so many times; and
/// `extended_state`, which returns XCR0, or 0 where the processor's extended state is not switched on.
struct SelfTestModule {
    private static let code: [(name: String, bytes: [UInt8])] = [
        (
            "add",
            [
                0x48, 0x8d, 0x04, 0x37,  // lea (%rdi,%rsi), %rax
                0xc3,  // ret
            ]
        ),
        (
            "call_host",
            [
                0x53,  // push %rbx
                0x48, 0x89, 0xfb,  // mov %rdi, %rbx
                0xff, 0x15, 0, 0, 0, 0,  // 1: call *host@GOT(%rip)
                0x48, 0xff, 0xcb,  // dec %rbx
                0x75, 0xf5,  // jnz 1b
                0x5b,  // pop %rbx
                0xc3,  // ret
            ]
        ),
        (
            "extended_state",
            [
                0x53,  // push %rbx
                0xb8, 1, 0, 0, 0,  // mov $1, %eax
                0x31, 0xc9,  // xor %ecx, %ecx
                0x0f, 0xa2,  // cpuid
                0x31, 0xc0,  // xor %eax, %eax
                0x0f, 0xba, 0xe1, 27,  // bt $27, %ecx: OSXSAVE
                0x73, 12,  // jnc 1f
                0x31, 0xc9,  // xor %ecx, %ecx
                0x0f, 0x01, 0xd0,  // xgetbv
                0x48, 0xc1, 0xe2, 32,  // shl $32, %rdx
                0x48, 0x09, 0xd0,  // or %rdx, %rax
                0x5b,  // 1: pop %rbx
                0xc3,  // ret
            ]
        ),
    ]
    /// Where the address of `host` is wanted in the code of `call_host`, and which instruction it is relative to.
    private static let hostOperand = (function: 1, offset: 6, end: 10)

    private static let page = 0x1000
    private static let headersEnd = 64 + 3 * 56

    /// The ELF file: one segment of headers, tables and code, one with the dynamic section and one offset table entry.
    static let bytes: [UInt8] = {
        let strings = Array("\0host\0".utf8) + code.flatMap { Array("\($0.name)\0".utf8) }
        let symbolCount = code.count + 2
        let symbols = headersEnd
        let hash = symbols + symbolCount * 24
        let relocations = (hash + (3 + symbolCount) * 4 + 7) & ~7
        let stringTable = relocations + 24
        let codeStart = (stringTable + strings.count + 15) & ~15
        let dynamicEntries: [(tag: Int, value: Int)] = [
            (4, hash), (5, stringTable), (6, symbols), (7, relocations), (8, 24), (9, 24), (10, strings.count),
            (11, 24), (0, 0),
        ]
        let dynamicSize = dynamicEntries.count * 16
        let offsetTable = page + dynamicSize

        var starts: [Int] = []
        var text: [UInt8] = []
        for (index, function) in code.enumerated() {
            starts.append(codeStart + text.count)
            var bytes = function.bytes
            if index == hostOperand.function {
                let distance = Int32(offsetTable - (starts[index] + hostOperand.end))
                for byte in 0..<4 {
                    bytes[hostOperand.offset + byte] = UInt8(truncatingIfNeeded: distance >> (8 * byte))
                }
            }
            text += bytes
        }

        var file = LittleEndianWriter()
        // The header: ELF64, little-endian, ET_DYN, x86-64, three program headers, no sections.
        file.append([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        file.append(3, size: 2)
        file.append(62, size: 2)
        file.append(1, size: 4)
        for word in [0, 64, 0] { file.append(word, size: 8) }
        file.append(0, size: 4)
        for half in [64, 56, 3, 64, 0, 0] { file.append(half, size: 2) }
        // PT_LOAD r-x, PT_LOAD rw-, PT_DYNAMIC.
        let codeEnd = codeStart + text.count
        for (type, flags, offset, size) in [
            (1, 5, 0, codeEnd), (1, 6, page, dynamicSize + 8), (2, 6, page, dynamicSize),
        ] {
            file.append(type, size: 4)
            file.append(flags, size: 4)
            for word in [offset, offset, offset, size, size, type == 1 ? page : 8] { file.append(word, size: 8) }
        }
        // Symbols: none, the import, the functions.
        file.append([UInt8](repeating: 0, count: 24))
        var nameOffset = 1
        for index in -1..<code.count {
            let isImport = index < 0
            file.append(nameOffset, size: 4)
            file.append(isImport ? 0x10 : 0x12, size: 1)
            file.append(0, size: 1)
            file.append(isImport ? 0 : 1, size: 2)
            file.append(isImport ? 0 : starts[index], size: 8)
            file.append(isImport ? 0 : code[index].bytes.count, size: 8)
            nameOffset += (isImport ? "host" : code[index].name).utf8.count + 1
        }
        // One bucket, and a chain through all symbols.
        for word in [1, symbolCount, 1, 0] + (2..<symbolCount) + [0] { file.append(word, size: 4) }
        file.pad(to: relocations)
        // R_X86_64_GLOB_DAT of symbol 1.
        for word in [offsetTable, 1 << 32 | 6, 0] { file.append(word, size: 8) }
        file.append(strings)
        file.pad(to: codeStart)
        file.append(text)
        file.pad(to: page)
        for entry in dynamicEntries {
            file.append(entry.tag, size: 8)
            file.append(entry.value, size: 8)
        }
        file.append(0, size: 8)
        return file.bytes
    }()
}
