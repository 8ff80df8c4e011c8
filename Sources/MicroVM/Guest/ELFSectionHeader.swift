/// A section header as it stands in the file (`Elf64_Shdr`).
struct ELFSectionHeader {
    /// Where its name is in the section of names.
    let name: UInt32
    let type: UInt32
    let address: UInt64
    let offset: UInt64
    let size: UInt64
    let link: UInt32
    let entrySize: UInt64

    init(_ file: ELFReader, at offset: UInt64) {
        name = file.load(UInt32.self, at: offset)
        type = file.load(UInt32.self, at: offset + 4)
        address = file.load(UInt64.self, at: offset + 16)
        self.offset = file.load(UInt64.self, at: offset + 24)
        size = file.load(UInt64.self, at: offset + 32)
        link = file.load(UInt32.self, at: offset + 40)
        entrySize = file.load(UInt64.self, at: offset + 56)
    }
}
