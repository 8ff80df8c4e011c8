/// A program header as it stands in the file (`Elf64_Phdr`).
struct ELFProgramHeader {
    let type: UInt32
    let flags: UInt32
    let offset: UInt64
    let address: UInt64
    let fileSize: UInt64
    let memorySize: UInt64
    let alignment: UInt64

    init(_ file: ELFReader, at offset: UInt64) {
        type = file.load(UInt32.self, at: offset)
        flags = file.load(UInt32.self, at: offset + 4)
        self.offset = file.load(UInt64.self, at: offset + 8)
        address = file.load(UInt64.self, at: offset + 16)
        fileSize = file.load(UInt64.self, at: offset + 32)
        memorySize = file.load(UInt64.self, at: offset + 40)
        alignment = file.load(UInt64.self, at: offset + 48)
    }

    /// The alignment as a power of two, or nothing where it is none. Zero means no alignment (System V ABI, 5-3).
    var alignmentOrOne: UInt64? {
        let alignment = max(alignment, 1)
        return alignment & (alignment - 1) == 0 ? alignment : nil
    }

    var permissions: GuestModule.Permissions {
        var permissions: GuestModule.Permissions = []
        if flags & ELF.SegmentFlags.read != 0 { permissions.insert(.read) }
        if flags & ELF.SegmentFlags.write != 0 { permissions.formUnion([.read, .write]) }
        if flags & ELF.SegmentFlags.execute != 0 { permissions.formUnion([.read, .execute]) }
        return permissions
    }
}
