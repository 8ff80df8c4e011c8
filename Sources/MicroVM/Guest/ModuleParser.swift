/// Turns the bytes of an ELF file into the parts of a ``GuestModule``, or refuses them.
///
/// Nothing in the file is trusted. All addresses are kept relative to the image and checked against it; every table is
/// checked to be in the file before it is walked, so that no loop is longer than the file and nothing that is made is
/// larger than a small multiple of it.
struct ModuleParser {
    static let pageSize: UInt64 = 4096
    static let maximumImageSize: UInt64 = 1 << 32
    static let maximumAlignment: UInt64 = 2 << 20
    static let maximumThreadLocalSize: UInt64 = 1 << 20
    /// The length of the longest symbol name in bytes.
    static let maximumNameLength: UInt64 = 4096

    let name: String
    let file: ELFReader

    /// The address that the image's first byte has in the file's terms.
    var base: UInt64 = 0
    var imageSize: UInt64 = 0
    var imageAlignment = pageSize
    var segments: [GuestModule.Segment] = []
    var mappings: [GuestModule.Mapping] = []
    var readOnlyAfterRelocation: Range<UInt64>?
    var threadLocalStorage: GuestModule.ThreadLocalStorage?

    /// Where the table for stack walks is (PT_GNU_EH_FRAME).
    var unwindHeader: ELFProgramHeader?

    var dynamicEntries: [ELF.DynamicTag: UInt64] = [:]
    /// The dynamic strings' and symbols' bytes in the file.
    var strings: Range<UInt64> = 0..<0
    var symbols: Range<UInt64> = 0..<0
    /// The relocations' bytes in the file, one range for each table.
    var relocationTables: [Range<UInt64>] = []

    var exports: [GuestModule.Export] = []
    var imports: [GuestModule.Import] = []
    var exportIndices: [SymbolName: Int] = [:]
    /// The index of the import that a dynamic symbol is, or -1.
    var importIndices: [Int32] = []
    var relocations: [GuestModule.Relocation] = []
    var initializers = GuestModule.Initializers(function: nil, arrayAddress: 0, arrayCount: 0)
    var symbolTable: SymbolTable

    init(_ bytes: [UInt8], name: String) throws(SandboxError) {
        self.name = name
        file = ELFReader(bytes: bytes)
        symbolTable = SymbolTable()
        let programHeaders = try parseHeader()
        let special = try parseProgramHeaders(programHeaders)
        try layOutSegments()
        try protect(special.readOnlyAfterRelocation)
        try parseThreadLocalStorage(special.threadLocalStorage)
        try parseDynamicSection(special.dynamic)
        try locateRelocations()
        try locateSymbols()
        try parseSymbols()
        try parseRelocations()
        try parseInitializers()
        symbolTable = debuggingSymbols()
    }

    /// The error that says why the module is not loaded. The reason is a clause without its full stop.
    func refusal(_ reason: String) -> SandboxError {
        SandboxError(.invalidModule, "The module \(quoted(name)) cannot be loaded: \(reason).")
    }

    /// Checks the file's header and returns where the program headers are in the file.
    private func parseHeader() throws(SandboxError) -> Range<UInt64> {
        guard file.size >= 4, file.load(UInt32.self, at: 0) == ELF.magic else { throw refusal("it is not an ELF file") }
        guard file.size >= ELF.headerSize else { throw refusal("its ELF header is cut off") }
        guard file.load(UInt8.self, at: 4) == ELF.class64 else { throw refusal("it is not a 64-bit ELF file") }
        guard file.load(UInt8.self, at: 5) == ELF.littleEndian else { throw refusal("it is not little-endian") }
        guard file.load(UInt8.self, at: 6) == ELF.currentVersion,
            file.load(UInt32.self, at: 20) == UInt32(ELF.currentVersion)
        else { throw refusal("it is of an unknown version of ELF") }
        let machine = file.load(UInt16.self, at: 18)
        guard machine == ELF.machineAMD64 else {
            throw refusal("it is for another processor (e_machine \(machine)), not for x86-64")
        }
        switch file.load(UInt16.self, at: 16) {
        case ELF.FileType.sharedObject: break
        case ELF.FileType.relocatable:
            throw refusal("it is an object file (ET_REL); link it with -shared")
        case ELF.FileType.executable:
            throw refusal("it is an executable for a fixed address (ET_EXEC); link it with -shared")
        case ELF.FileType.core: throw refusal("it is a core dump (ET_CORE)")
        case let type: throw refusal("it is not a shared object (e_type \(type))")
        }
        let count = UInt64(file.load(UInt16.self, at: 56))
        guard count > 0 else { throw refusal("it has no program headers") }
        guard UInt64(file.load(UInt16.self, at: 54)) == ELF.programHeaderSize else {
            throw refusal("its program headers are not \(ELF.programHeaderSize) bytes each")
        }
        let offset = file.load(UInt64.self, at: 32)
        guard let headers = file.range(offset: offset, size: count * ELF.programHeaderSize) else {
            throw refusal("its program headers are not all in the file")
        }
        return headers
    }

    /// Where `size` bytes at an address of the image are in the file: nothing where the file does not fill all of them,
    /// or where they are not all in one segment.
    func fileRange(address: UInt64, size: UInt64) -> Range<UInt64>? {
        guard let index = segments.index(containing: address) else { return nil }
        let segment = segments[index]
        let start = address - segment.address
        guard start <= segment.fileSize, size <= segment.fileSize - start else { return nil }
        return file.range(offset: segment.fileOffset + start, size: size)
    }

    /// Whether `size` bytes at an address of the image are all in one segment, whatever fills them.
    func isInSegment(address: UInt64, size: UInt64) -> Bool {
        guard let index = segments.index(containing: address) else { return false }
        return size <= segments[index].end - address
    }
}

/// `0x1f`.
func hexadecimal(_ number: UInt64) -> String { "0x" + String(number, radix: 16) }
