extension ModuleParser {
    /// How many names a message lists.
    private static let listLimit = 8

    /// Collects the dynamic section's entries and refuses those a module may not have.
    mutating func parseDynamicSection(_ header: ELFProgramHeader?) throws(SandboxError) {
        guard let header else { throw refusal("it has no dynamic section (PT_DYNAMIC); link it with -shared") }
        guard let section = fileRange(address: header.address &- base, size: header.fileSize) else {
            throw refusal("its dynamic section is not all in one segment of the file")
        }
        var libraries: [UInt64] = []
        var refused: String?
        var offset = section.lowerBound
        while section.upperBound - offset >= ELF.dynamicEntrySize {
            let number = file.load(UInt64.self, at: offset)
            let value = file.load(UInt64.self, at: offset + 8)
            offset += ELF.dynamicEntrySize
            if number == ELF.DynamicTag.end { break }
            guard let tag = ELF.DynamicTag(rawValue: number) else { continue }
            switch tag {
            case .needed, .auxiliary, .filter:
                if libraries.count <= Self.listLimit { libraries.append(value) }
            case .textRelocations: refused = refused ?? "it has relocations in read-only segments (DT_TEXTREL)"
            case .implicitRelocations: refused = refused ?? "it has relocations without addends (DT_REL)"
            case .relativeRelocations:
                refused = refused ?? "it has packed relocations (DT_RELR); link without -z pack-relative-relocs"
            case .earlyInitializers: refused = refused ?? "it has initialisers for an executable (DT_PREINIT_ARRAY)"
            case .flags where value & ELF.textRelocationsFlag != 0:
                refused = refused ?? "it has relocations in read-only segments (DF_TEXTREL)"
            default:
                guard dynamicEntries.updateValue(value, forKey: tag) == nil else {
                    throw refusal("its dynamic section has two entries for \(tag) (tag \(hexadecimal(number)))")
                }
            }
        }
        strings = try stringTable()
        // Who has linked against the system's libraries should hear of that first.
        guard libraries.isEmpty else { throw neededLibraries(libraries) }
        if let refused { throw refusal(refused) }
    }

    private func stringTable() throws(SandboxError) -> Range<UInt64> {
        guard let address = dynamicEntries[.strings], let size = dynamicEntries[.stringsSize] else {
            throw refusal("its dynamic section has no string table (DT_STRTAB, DT_STRSZ)")
        }
        guard let range = fileRange(address: address &- base, size: size) else {
            throw refusal("its string table (DT_STRTAB) is not all in one segment of the file")
        }
        return range
    }

    private func neededLibraries(_ offsets: [UInt64]) -> SandboxError {
        var names = offsets.prefix(Self.listLimit).map { offset in
            file.string(at: offset, in: strings, limit: Self.maximumNameLength)
                .map { quoted(String(decoding: $0, as: UTF8.self)) } ?? "one without a name"
        }
        if offsets.count > Self.listLimit { names.append("more") }
        return refusal(
            "it needs other libraries (DT_NEEDED): \(names.joined(separator: ", "));"
                + " link them in statically, and link with -nostdlib"
        )
    }

    /// Finds the tables of relocations in the file.
    mutating func locateRelocations() throws(SandboxError) {
        if let size = dynamicEntries[.relocationSize], size != ELF.relocationSize {
            throw refusal("its relocations (DT_RELAENT) are not \(ELF.relocationSize) bytes each")
        }
        if let range = try relocationTable(.relocations, .relocationsSize, "DT_RELA", "DT_RELASZ") {
            relocationTables.append(range)
        }
        guard let range = try relocationTable(.procedureLinkage, .procedureLinkageSize, "DT_JMPREL", "DT_PLTRELSZ")
        else { return }
        guard dynamicEntries[.procedureLinkageKind] == ELF.DynamicTag.relocations.rawValue else {
            throw refusal("it has relocations without addends (DT_PLTREL)")
        }
        // Some linkers count this table as part of the other one.
        if let whole = relocationTables.first, whole.clamped(to: range) == range { return }
        relocationTables.append(range)
    }

    private func relocationTable(
        _ tag: ELF.DynamicTag,
        _ sizeTag: ELF.DynamicTag,
        _ name: String,
        _ sizeName: String
    ) throws(SandboxError) -> Range<UInt64>? {
        guard let address = dynamicEntries[tag] else { return nil }
        guard let size = dynamicEntries[sizeTag], size % ELF.relocationSize == 0 else {
            throw refusal("the size of its relocations (\(sizeName)) is not a multiple of \(ELF.relocationSize)")
        }
        guard size > 0 else { return nil }
        guard let range = fileRange(address: address &- base, size: size) else {
            throw refusal("its relocations (\(name)) are not all in one segment of the file")
        }
        return range
    }

    /// Checks where the functions that run first are.
    mutating func parseInitializers() throws(SandboxError) {
        var function: UInt64?
        if let value = dynamicEntries[.initializer] {
            let address = value &- base
            guard let index = segments.index(containing: address), segments[index].permissions.contains(.execute) else {
                throw refusal("its initialiser (DT_INIT) is not in an executable segment")
            }
            function = address
        }
        var array: (address: UInt64, count: UInt64) = (0, 0)
        if let value = dynamicEntries[.initializers] {
            guard let size = dynamicEntries[.initializersSize], size % 8 == 0 else {
                throw refusal("the size of its initialisers (DT_INIT_ARRAYSZ) is not a multiple of 8")
            }
            if size > 0 {
                array = (value &- base, size / 8)
                // From the file, so that there are not more of them than it has bytes.
                guard fileRange(address: array.address, size: size) != nil, array.address % 8 == 0 else {
                    throw refusal(
                        "its initialisers (DT_INIT_ARRAY) are misaligned or not all in one segment of the file"
                    )
                }
            }
        }
        initializers = GuestModule.Initializers(
            function: function,
            arrayAddress: array.address,
            arrayCount: Int(array.count)
        )
    }
}
