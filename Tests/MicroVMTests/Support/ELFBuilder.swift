/// Makes ELF shared objects byte by byte, good ones and bad ones.
///
/// Offsets in the file are addresses relative to `base`: headers at 0, code at 0x1000, the dynamic section and
/// data at 0x2000, of which the second half is not in the file, all tables from 0x3000 on.
struct ELFBuilder: Sendable {
    static let code: UInt64 = 0x1000
    static let data: UInt64 = 0x2000
    static let tables: UInt64 = 0x3000
    /// The first of 64 words of data that nothing else uses.
    static let words: UInt64 = 0x2500

    /// The indices of the program headers there always are.
    enum Header {
        static let first = 0
        static let code = 1
        static let data = 2
        static let tables = 3
        static let dynamic = 4
    }

    struct ProgramHeader: Sendable {
        var type: UInt32
        var flags: UInt32
        var offset: UInt64
        var address: UInt64
        var fileSize: UInt64
        var memorySize: UInt64
        var alignment: UInt64 = 0x1000
    }

    struct Symbol: Sendable {
        var name: String
        var type: UInt8 = 2
        var binding: UInt8 = 1
        var visibility: UInt8 = 0
        var section: UInt16 = 1
        var value: UInt64 = 0
        var size: UInt64 = 0
        /// Where the name is, if not where the builder puts it.
        var nameOffset: UInt32?

        static func function(_ name: String, at value: UInt64 = ELFBuilder.code, size: UInt64 = 16) -> Symbol {
            Symbol(name: name, value: value, size: size)
        }

        static func undefined(_ name: String, type: UInt8 = 0, binding: UInt8 = 1) -> Symbol {
            Symbol(name: name, type: type, binding: binding, section: 0)
        }
    }

    struct Relocation: Sendable {
        var type: UInt32
        var offset: UInt64 = ELFBuilder.words
        var symbol: UInt32 = 0
        var addend: Int64 = 0
    }

    enum HashStyle: Sendable { case systemV, gnu, none }

    var base: UInt64 = 0
    /// The dynamic symbols from index 1 on.
    var symbols: [Symbol] = [.function("f")]
    /// The symbols of .symtab; without any there is no such section.
    var debuggingSymbols: [Symbol] = []
    var relocations: [Relocation] = []
    var jumpSlots: [Relocation] = []
    var versions: [UInt16]?
    var hashStyle = HashStyle.systemV
    /// Whether there are section headers.
    var hasSections = false
    /// What comes after all other strings.
    var extraStrings: [UInt8] = []
    /// What is in the file in place of the words of data.
    var wordContents: [UInt64] = []

    var changeHeaders: @Sendable (inout [ProgramHeader]) -> Void = { _ in }
    var changeDynamic: @Sendable (inout [(tag: UInt64, value: UInt64)]) -> Void = { _ in }
    var changeBytes: @Sendable (inout [UInt8]) -> Void = { _ in }

    mutating func addHeader(_ header: ProgramHeader) {
        let change = changeHeaders
        changeHeaders = {
            change(&$0)
            $0.append(header)
        }
    }

    mutating func addDynamic(_ tag: UInt64, _ value: UInt64) {
        let change = changeDynamic
        changeDynamic = {
            change(&$0)
            $0.append((tag, value))
        }
    }

    mutating func setDynamic(_ tag: UInt64, _ value: UInt64?) {
        let change = changeDynamic
        changeDynamic = {
            change(&$0)
            $0.removeAll { $0.tag == tag }
            if let value { $0.append((tag, value)) }
        }
    }

    mutating func patch<Value: FixedWidthInteger & Sendable>(_ value: Value, at offset: Int) {
        let change = changeBytes
        changeBytes = {
            change(&$0)
            $0.store(value, at: offset)
        }
    }

    func build() -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Int(Self.tables))
        var strings: [UInt8] = [0]
        var dynamic: [(tag: UInt64, value: UInt64)] = []
        var sections: [(type: UInt32, address: UInt64, offset: UInt64, size: UInt64, link: UInt32, entry: UInt64)] = []
        let base = base

        func place(_ table: [UInt8]) -> UInt64 {
            while bytes.count % 8 != 0 { bytes.append(0) }
            bytes += table
            return UInt64(bytes.count - table.count)
        }

        let symbolTable = Self.table(of: symbols, &strings)
        let symbolOffset = place(symbolTable)
        dynamic += [(6, base &+ symbolOffset), (11, 24)]
        switch hashStyle {
        case .systemV: dynamic.append((4, base &+ place(systemVHash())))
        case .gnu: dynamic.append((0x6fff_fef5, base &+ place(gnuHash())))
        case .none: break
        }
        if let versions {
            dynamic.append((0x6fff_fff0, base &+ place(versions.flatMap { Self.littleEndian($0) })))
        }
        if !relocations.isEmpty {
            dynamic += [
                (7, base &+ place(Self.table(of: relocations, base))), (8, UInt64(relocations.count) * 24), (9, 24),
            ]
        }
        if !jumpSlots.isEmpty {
            dynamic += [
                (23, base &+ place(Self.table(of: jumpSlots, base))), (2, UInt64(jumpSlots.count) * 24), (20, 7),
            ]
        }
        strings += extraStrings
        let stringOffset = place(strings)
        dynamic += [(5, base &+ stringOffset), (10, UInt64(strings.count))]
        let tablesEnd = UInt64(bytes.count)

        if hasSections {
            sections = [
                (0, 0, 0, 0, 0, 0),
                (11, base &+ symbolOffset, symbolOffset, UInt64(symbolTable.count), 2, 24),
                (3, base &+ stringOffset, stringOffset, UInt64(strings.count), 0, 0),
            ]
        }
        if hasSections, !debuggingSymbols.isEmpty {
            var names: [UInt8] = [0]
            let table = Self.table(of: debuggingSymbols, &names)
            sections.append((2, 0, place(table), UInt64(table.count), 4, 24))
            sections.append((3, 0, place(names), UInt64(names.count), 0, 0))
        }
        let sectionOffset = hasSections ? place(sections.flatMap(Self.sectionHeader)) : 0

        changeDynamic(&dynamic)
        dynamic.append((0, 0))
        var headers = [
            ProgramHeader(type: 1, flags: 4, offset: 0, address: base, fileSize: 0x1000, memorySize: 0x1000),
            ProgramHeader(
                type: 1,
                flags: 5,
                offset: Self.code,
                address: base &+ Self.code,
                fileSize: 0x800,
                memorySize: 0x800
            ),
            ProgramHeader(
                type: 1,
                flags: 6,
                offset: Self.data,
                address: base &+ Self.data,
                fileSize: 0x800,
                memorySize: 0x1000
            ),
            ProgramHeader(
                type: 1,
                flags: 4,
                offset: Self.tables,
                address: base &+ Self.tables,
                fileSize: tablesEnd - Self.tables,
                memorySize: tablesEnd - Self.tables
            ),
            ProgramHeader(
                type: 2,
                flags: 6,
                offset: Self.data,
                address: base &+ Self.data,
                fileSize: UInt64(dynamic.count) * 16,
                memorySize: UInt64(dynamic.count) * 16,
                alignment: 8
            ),
        ]
        changeHeaders(&headers)
        bytes.store(dynamic.flatMap { Self.littleEndian($0.tag) + Self.littleEndian($0.value) }, at: Int(Self.data))
        bytes.store(wordContents.flatMap { Self.littleEndian($0) }, at: Int(Self.words))
        bytes.store(header(programHeaders: headers.count, sections: sections.count, at: sectionOffset), at: 0)
        bytes.store(headers.flatMap(Self.programHeader), at: 64)
        changeBytes(&bytes)
        return bytes
    }

    private func header(programHeaders: Int, sections: Int, at sectionOffset: UInt64) -> [UInt8] {
        var header: [UInt8] = [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        header += Self.littleEndian(UInt16(3)) + Self.littleEndian(UInt16(62)) + Self.littleEndian(UInt32(1))
        header += Self.littleEndian(UInt64(0)) + Self.littleEndian(UInt64(64)) + Self.littleEndian(sectionOffset)
        header += Self.littleEndian(UInt32(0))
        for field in [64, 56, programHeaders, sections == 0 ? 0 : 64, sections, 0] {
            header += Self.littleEndian(UInt16(field))
        }
        return header
    }

    private static func programHeader(_ header: ProgramHeader) -> [UInt8] {
        littleEndian(header.type) + littleEndian(header.flags) + littleEndian(header.offset)
            + littleEndian(header.address) + littleEndian(header.address) + littleEndian(header.fileSize)
            + littleEndian(header.memorySize) + littleEndian(header.alignment)
    }

    private static func sectionHeader(
        _ section: (type: UInt32, address: UInt64, offset: UInt64, size: UInt64, link: UInt32, entry: UInt64)
    ) -> [UInt8] {
        littleEndian(UInt32(0)) + littleEndian(section.type) + littleEndian(UInt64(0)) + littleEndian(section.address)
            + littleEndian(section.offset) + littleEndian(section.size) + littleEndian(section.link)
            + littleEndian(UInt32(0)) + littleEndian(UInt64(8)) + littleEndian(section.entry)
    }

    private static func table(of symbols: [Symbol], _ strings: inout [UInt8]) -> [UInt8] {
        var table = [UInt8](repeating: 0, count: 24)
        table.reserveCapacity(24 * (symbols.count + 1))
        for symbol in symbols {
            table += littleEndian(symbol.nameOffset ?? UInt32(strings.count))
            if symbol.nameOffset == nil { strings += Array(symbol.name.utf8) + [0] }
            table += [symbol.binding << 4 | symbol.type, symbol.visibility]
            table += littleEndian(symbol.section)
            table += littleEndian(symbol.value)
            table += littleEndian(symbol.size)
        }
        return table
    }

    private static func table(of relocations: [Relocation], _ base: UInt64) -> [UInt8] {
        var table: [UInt8] = []
        table.reserveCapacity(24 * relocations.count)
        for relocation in relocations {
            table += littleEndian(base &+ relocation.offset)
            table += littleEndian(UInt64(relocation.symbol) << 32 | UInt64(relocation.type))
            table += littleEndian(relocation.addend)
        }
        return table
    }

    /// One bucket and one chain.
    private func systemVHash() -> [UInt8] {
        let count = UInt32(symbols.count + 1)
        let chain = (1...count).map { $0 == count ? 0 : $0 }
        return ([1, count, min(1, count - 1)] + chain).flatMap { Self.littleEndian($0) }
    }

    /// One bucket, one chain, over the defined symbols, which have to come last.
    private func gnuHash() -> [UInt8] {
        let first = UInt32(symbols.prefix { $0.section == 0 }.count + 1)
        let count = symbols.count + 1 - Int(first)
        var words: [UInt32] = [1, first, 1, 6, .max, .max, count == 0 ? 0 : first]
        words += (0..<count).map { $0 == count - 1 ? 1 : 0 }
        return words.flatMap { Self.littleEndian($0) }
    }

    static func littleEndian(_ value: some FixedWidthInteger) -> [UInt8] {
        stride(from: 0, to: value.bitWidth, by: 8).map { UInt8(truncatingIfNeeded: value >> $0) }
    }
}

extension [UInt8] {
    mutating func store(_ bytes: [UInt8], at offset: Int) {
        for (index, byte) in bytes.enumerated() { self[offset + index] = byte }
    }

    mutating func store<Value: FixedWidthInteger>(_ value: Value, at offset: Int) {
        store(ELFBuilder.littleEndian(value), at: offset)
    }
}
