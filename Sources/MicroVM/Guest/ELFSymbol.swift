/// An entry of a symbol table as it stands in the file (`Elf64_Sym`).
struct ELFSymbol {
    let nameOffset: UInt64
    let type: UInt8
    let binding: UInt8
    let visibility: UInt8
    let sectionIndex: UInt16
    let value: UInt64
    let size: UInt64

    init(_ file: ELFReader, at offset: UInt64) {
        nameOffset = UInt64(file.load(UInt32.self, at: offset))
        let info = file.load(UInt8.self, at: offset + 4)
        type = info & 0xf
        binding = info >> 4
        visibility = file.load(UInt8.self, at: offset + 5) & 3
        sectionIndex = file.load(UInt16.self, at: offset + 6)
        value = file.load(UInt64.self, at: offset + 8)
        size = file.load(UInt64.self, at: offset + 16)
    }

    var isUndefined: Bool { sectionIndex == ELF.SectionIndex.undefined }
}
