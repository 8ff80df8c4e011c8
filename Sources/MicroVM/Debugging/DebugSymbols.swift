import CShims

/// What a debugger is told of the code in a guest: where the module lies, and a file of symbols for the library's own
/// code around it, which is made here, because there is none.
struct DebugSymbols {
    /// The name under which a debugger finds the library's own code.
    static let libraryName = "microvm"

    let module: GuestModule
    let addressSpace: AddressSpace

    /// The distance of the module's addresses in memory from those in its file.
    var loadBias: UInt64 { addressSpace.imageBase &- fileBase }

    /// The module's name, as that of a file.
    var moduleFileName: String {
        let name = String(
            module.name.unicodeScalars.map { $0.properties.isWhitespace || $0 == "/" ? "_" : Character($0) }
        )
        return name.isEmpty ? "module" : name
    }

    private var fileBase: UInt64 {
        // The image begins with the page of the lowest segment.
        guard let first = module.segments.first else { return 0 }
        return programHeaders.first { $0.type == ELF.SegmentType.load && $0.offset == first.fileOffset }
            .map { $0.address &- first.address } ?? 0
    }

    private var programHeaders: [(type: UInt32, offset: UInt64, address: UInt64)] {
        // Parsed once already, and found to be all right.
        let file = ELFReader(bytes: module.bytes)
        let start = file.load(UInt64.self, at: 32)
        return (0..<UInt64(file.load(UInt16.self, at: 56))).map { index in
            let header = start &+ index * ELF.programHeaderSize
            return (
                file.load(UInt32.self, at: header), file.load(UInt64.self, at: header &+ 8),
                file.load(UInt64.self, at: header &+ 16)
            )
        }
    }

    /// Where the module is loaded, in the format of GDB's manual, G.3 Library List Format for SVR4 Targets.
    var libraryList: String {
        let dynamic = programHeaders.first { $0.type == ELF.SegmentType.dynamic }?.address ?? 0
        func hexadecimal(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
        return """
            <library-list-svr4 version="1.0"><library name="/\(Self.escaped(moduleFileName))" lm="0x1" lmid="0x0" \
            l_addr="\(hexadecimal(loadBias))" l_ld="\(hexadecimal(loadBias &+ dynamic))"/></library-list-svr4>
            """
    }

    private static func escaped(_ text: String) -> String {
        text.unicodeScalars.map { scalar in
            switch scalar {
            case "<", ">", "&", "\"", "'": "&#\(scalar.value);"
            default: scalar.value < 0x20 ? "_" : String(scalar)
            }
        }.joined()
    }

    // MARK: - The library's own code

    /// An ELF executable with the trampoline, a symbol for each of its parts and each import, and how to unwind it:
    /// DWARF call frame information in .eh_frame (Linux Standard Base Core, 10.6; DWARF 4, 6.4).
    var libraryFile: [UInt8] {
        let trampoline = unsafe Array(
            UnsafeRawBufferPointer(start: shim_trampoline_code().start, count: trampolineSize)
        )
        let frames = callFrames
        let symbols = symbolTable
        var file = ELFFile()
        let code = file.add(".text", type: 1, flags: 6, address: Trampoline.entry, trampoline)
        let thunks = file.add(
            ".imports",
            type: 8,
            flags: 6,
            address: Trampoline.thunk(0),
            [],
            size: UInt64(max(module.imports.count, 1)) * UInt64(SHIM_THUNK_SIZE)
        )
        file.add(".eh_frame", type: 1, flags: 2, address: Self.callFrameAddress, frames)
        var names: [UInt8] = [0]
        // The first is undefined, as it must be.
        var table = [UInt8](repeating: 0, count: Int(ELF.symbolSize))
        for symbol in symbols {
            table.append(UInt32(names.count))
            table.append(UInt8(1 << 4 | ELF.SymbolType.function))
            table.append(UInt8(0))
            table.append(UInt16(symbol.isImport ? thunks : code))
            table.append(symbol.address)
            table.append(symbol.size)
            names += Array(symbol.name.utf8) + [0]
        }
        let strings = file.add(".strtab", type: ELF.SectionType.strings, flags: 0, address: 0, names)
        file.add(
            ".symtab",
            type: ELF.SectionType.symbols,
            flags: 0,
            address: 0,
            table,
            link: UInt32(strings),
            information: 1,
            entrySize: ELF.symbolSize
        )
        return file.bytes(entry: Trampoline.entry)
    }

    private var trampolineSize: Int { unsafe shim_trampoline_code().count }

    private struct Symbol {
        var name: String
        var address: UInt64
        var size: UInt64
        var isImport = false
    }

    private var symbolTable: [Symbol] {
        let (entry, invoke, invokeEnd, hostCall) = Self.places
        let local = Trampoline.threadLocalAddress
        var symbols = [
            Symbol(name: "microvm_guest_call", address: entry, size: invoke - entry),
            Symbol(name: "microvm_invoke", address: invoke, size: invokeEnd - invoke),
            Symbol(name: "microvm_host_call", address: hostCall, size: local - hostCall),
            Symbol(name: LibraryFunction.threadLocalAddress, address: local, size: 16),
        ]
        for (index, function) in module.imports.enumerated() {
            symbols.append(
                Symbol(
                    name: function.name + "@import",
                    address: Trampoline.thunk(index),
                    size: UInt64(SHIM_THUNK_SIZE),
                    isImport: true
                )
            )
        }
        return symbols
    }

    private static var places: (entry: UInt64, invoke: UInt64, invokeEnd: UInt64, hostCall: UInt64) {
        let entry = Trampoline.entry
        return (
            entry, entry + shim_invoke_offset(), entry + shim_invoke_end_offset(), entry + shim_host_call_offset()
        )
    }

    /// Nothing is there in the guest: a debugger reads it from the file.
    private static let callFrameAddress: UInt64 = 0x1000

    private var callFrames: [UInt8] {
        let stackPointer: UInt8 = 7
        let framePointer: UInt8 = 6
        let returnAddress: UInt8 = 16
        // Addresses are absolute; a frame begins with the return address on the stack.
        var bytes: [UInt8] = []
        func append(_ content: [UInt8]) {
            let padding = (8 - (content.count + 4) % 8) % 8
            bytes.append(UInt32(content.count + padding))
            // DW_CFA_nop
            bytes += content + [UInt8](repeating: 0, count: padding)
        }
        append(
            [0, 0, 0, 0, 1] + Array("zR\0".utf8) + [1, 0x78, returnAddress, 1, 0]
                + [0x0c, stackPointer, 8, 0x80 | returnAddress, 1]
        )
        func describe(_ range: Range<UInt64>, _ instructions: [UInt8]) {
            var content: [UInt8] = []
            content.append(UInt32(bytes.count + 4))
            content.append(range.lowerBound)
            content.append(range.upperBound - range.lowerBound)
            append(content + [0] + instructions)
        }
        let (entry, invoke, invokeEnd, hostCall) = Self.places
        // DW_CFA_undefined: nobody has called that.
        describe(entry..<invoke, [0x07, returnAddress])
        // push %rbp; mov %rsp, %rbp; …; pop %rbp; ret
        let body = UInt16(invokeEnd - invoke - 5)
        describe(
            invoke..<invokeEnd,
            [0x41, 0x0e, 16, 0x80 | framePointer, 2, 0x43, 0x0d, framePointer]
                + [0x03, UInt8(body & 0xff), UInt8(body >> 8), 0x0c, stackPointer, 8, 0xc0 | framePointer]
        )
        describe(hostCall..<entry + UInt64(trampolineSize), [])
        let thunks = Trampoline.thunk(0)
        describe(thunks..<thunks + UInt64(max(module.imports.count, 1)) * UInt64(SHIM_THUNK_SIZE), [])
        bytes.append(UInt32(0))
        return bytes
    }
}

extension [UInt8] {
    /// Appends the bytes of an integer, the lowest first.
    mutating func append(_ value: some FixedWidthInteger) {
        for index in 0..<value.bitWidth / 8 { append(UInt8(truncatingIfNeeded: value >> (index * 8))) }
    }
}

/// An ELF file of sections alone (System V ABI, chapter 4).
private struct ELFFile {
    private var headers = [UInt8](repeating: 0, count: Int(ELF.sectionHeaderSize))
    private var contents: [UInt8] = []
    private var names: [UInt8] = [0]
    private var count = 1

    /// Adds a section. Its index.
    @discardableResult
    mutating func add(
        _ name: String,
        type: UInt32,
        flags: UInt64,
        address: UInt64,
        _ bytes: [UInt8],
        size: UInt64? = nil,
        link: UInt32 = 0,
        information: UInt32 = 0,
        entrySize: UInt64 = 0
    ) -> Int {
        headers.append(UInt32(names.count))
        headers.append(type)
        headers.append(flags)
        headers.append(address)
        headers.append(ELF.headerSize + UInt64(contents.count))
        headers.append(size ?? UInt64(bytes.count))
        headers.append(link)
        headers.append(information)
        headers.append(UInt64(8))
        headers.append(entrySize)
        names += Array(name.utf8) + [0]
        contents += bytes + [UInt8](repeating: 0, count: (8 - bytes.count % 8) % 8)
        defer { count += 1 }
        return count
    }

    func bytes(entry: UInt64) -> [UInt8] {
        var whole = self
        whole.add(".shstrtab", type: ELF.SectionType.strings, flags: 0, address: 0, names + Array(".shstrtab\0".utf8))
        var file: [UInt8] = []
        file.append(ELF.magic)
        file += [ELF.class64, ELF.littleEndian, ELF.currentVersion] + [UInt8](repeating: 0, count: 9)
        file.append(ELF.FileType.executable)
        file.append(ELF.machineAMD64)
        file.append(UInt32(ELF.currentVersion))
        file.append(entry)
        file.append(UInt64(0))
        file.append(ELF.headerSize + UInt64(whole.contents.count))
        file.append(UInt32(0))
        for half in [ELF.headerSize, ELF.programHeaderSize, 0, ELF.sectionHeaderSize, UInt64(whole.count)] {
            file.append(UInt16(half))
        }
        file.append(UInt16(whole.count - 1))
        return file + whole.contents + whole.headers
    }
}
