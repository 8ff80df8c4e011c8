extension ModuleParser {
    /// The section headers. Nothing that is loaded depends on them, so where they are missing or wrong there are none.
    var sections: some Sequence<ELFSectionHeader> {
        let count = UInt64(file.load(UInt16.self, at: 60))
        let hasKnownSize = UInt64(file.load(UInt16.self, at: 58)) == ELF.sectionHeaderSize
        let table = file.range(offset: file.load(UInt64.self, at: 40), size: count * ELF.sectionHeaderSize) ?? 0..<0
        return stride(
            from: table.lowerBound,
            to: hasKnownSize ? table.upperBound : table.lowerBound,
            by: Int(ELF.sectionHeaderSize)
        ).lazy.map { [file] in ELFSectionHeader(file, at: $0) }
    }

    /// The symbols that reports name functions by: all of them where the module was not stripped, else the dynamic
    /// ones.
    func debuggingSymbols() -> SymbolTable {
        if let section = sections.first(where: { $0.type == ELF.SectionType.symbols }),
            section.entrySize == ELF.symbolSize,
            let symbols = file.range(offset: section.offset, size: section.size),
            let names = sections.dropFirst(Int(section.link)).first(where: { _ in true }),
            names.type == ELF.SectionType.strings,
            let strings = file.range(offset: names.offset, size: names.size)
        {
            return SymbolTable(file, symbols: symbols, strings: strings, base: base, segments: segments)
        }
        return SymbolTable(file, symbols: symbols, strings: strings, base: base, segments: segments)
    }
}
