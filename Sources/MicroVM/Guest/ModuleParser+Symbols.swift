#if canImport(Glibc)
import Glibc
#else
import Musl
#endif

extension ModuleParser {
    /// Finds the table of dynamic symbols in the file. Nothing in an ELF file says how long it is: the hash tables
    /// tell, or the section headers, or else whoever uses the symbols.
    mutating func locateSymbols() throws(SandboxError) {
        guard let value = dynamicEntries[.symbols] else {
            throw refusal("its dynamic section has no symbol table (DT_SYMTAB)")
        }
        if let size = dynamicEntries[.symbolSize], size != ELF.symbolSize {
            throw refusal("its symbols (DT_SYMENT) are not \(ELF.symbolSize) bytes each")
        }
        let address = value &- base
        let count: UInt64
        if let table = dynamicEntries[.hash] {
            count = try symbolCount(hashTable: table &- base)
        } else {
            // A GNU hash table leaves out symbols that nobody looks up by name, and GNU ld makes it an empty one where
            // only such are left: so it is the least number there can be.
            let hashed = try dynamicEntries[.gnuHash].map { table throws(SandboxError) in
                try symbolCount(gnuHashTable: table &- base)
            }
            count = max(hashed ?? 0, symbolCountFromSections(tableAddress: value), symbolCountFromRelocations())
        }
        guard count <= file.size / ELF.symbolSize,
            let range = fileRange(address: address, size: count * ELF.symbolSize)
        else { throw refusal("its symbol table (DT_SYMTAB) is not all in one segment of the file") }
        symbols = range
    }

    private func symbolCount(hashTable address: UInt64) throws(SandboxError) -> UInt64 {
        guard let header = fileRange(address: address, size: 8) else {
            throw refusal("its hash table (DT_HASH) is not in a segment of the file")
        }
        let buckets = UInt64(file.load(UInt32.self, at: header.lowerBound))
        let chains = UInt64(file.load(UInt32.self, at: header.lowerBound + 4))
        guard fileRange(address: address, size: 8 + (buckets + chains) * 4) != nil else {
            throw refusal("its hash table (DT_HASH) is not all in one segment of the file")
        }
        return chains
    }

    /// One more than the last symbol of the last chain. The chains are one array in the order of the symbols, so this
    /// goes over at most the rest of that array.
    private func symbolCount(gnuHashTable address: UInt64) throws(SandboxError) -> UInt64 {
        let cutOff = refusal("its hash table (DT_GNU_HASH) is not all in one segment of the file")
        guard let header = fileRange(address: address, size: 16) else { throw cutOff }
        let bucketCount = UInt64(file.load(UInt32.self, at: header.lowerBound))
        let firstSymbol = UInt64(file.load(UInt32.self, at: header.lowerBound + 4))
        let bloomWords = UInt64(file.load(UInt32.self, at: header.lowerBound + 8))
        let size = 16 + bloomWords * 8 + bucketCount * 4
        guard let table = fileRange(address: address, size: size) else { throw cutOff }

        var last: UInt64 = 0
        var offset = table.upperBound - bucketCount * 4
        while offset < table.upperBound {
            last = max(last, UInt64(file.load(UInt32.self, at: offset)))
            offset += 4
        }
        guard last >= firstSymbol else { return firstSymbol }
        while true {
            // No overflow: an address in an image and a few numbers of 32 bits.
            let position = address + size + (last - firstSymbol) * 4
            guard let entry = fileRange(address: position, size: 4) else { throw cutOff }
            last += 1
            // The end of a chain is marked by the lowest bit.
            if file.load(UInt32.self, at: entry.lowerBound) & 1 == 1 { return last }
        }
    }

    private func symbolCountFromSections(tableAddress: UInt64) -> UInt64 {
        let table = sections.first { $0.type == ELF.SectionType.dynamicSymbols && $0.address == tableAddress }
        return table.map { $0.size / ELF.symbolSize } ?? 0
    }

    private func symbolCountFromRelocations() -> UInt64 {
        var count: UInt64 = 0
        for table in relocationTables {
            var offset = table.lowerBound
            while offset < table.upperBound {
                count = max(count, (file.load(UInt64.self, at: offset + 8) >> 32) + 1)
                offset += ELF.relocationSize
            }
        }
        return count
    }

    /// Sorts the dynamic symbols into exports and imports.
    mutating func parseSymbols() throws(SandboxError) {
        let count = (symbols.upperBound - symbols.lowerBound) / ELF.symbolSize
        let versions = try versionTable(count: count)
        importIndices = Array(repeating: -1, count: Int(count))
        // Names can overlap, so that many long ones take little room in the file. They may take twice its size here.
        var nameBudget = file.size * 2
        var candidates: [ExportCandidate] = []
        // The first symbol is none.
        for index in 0..<count where index > 0 {
            let symbol = ELFSymbol(file, at: symbols.lowerBound + index * ELF.symbolSize)
            guard symbol.type != ELF.SymbolType.indirectFunction else {
                throw refusal("\(describe(symbol)) is an indirect function (STT_GNU_IFUNC)")
            }
            guard symbol.sectionIndex != ELF.SectionIndex.common, symbol.type != ELF.SymbolType.common else {
                throw refusal("\(describe(symbol)) has no place yet (SHN_COMMON)")
            }
            if symbol.isUndefined {
                guard symbol.binding != ELF.SymbolBinding.local else { continue }
                importIndices[Int(index)] = Int32(truncatingIfNeeded: imports.count)
                imports.append(try makeImport(symbol, &nameBudget))
            } else {
                let isHidden = versions.map {
                    file.load(UInt16.self, at: $0.lowerBound + index * 2) & ELF.hiddenVersion != 0
                }
                if isHidden != true, let candidate = try makeExport(symbol, &nameBudget) {
                    candidates.append(candidate)
                }
            }
        }
        try indexExports(&candidates)
    }

    /// The version of each symbol, where the module has versions: an older version of a function is no export.
    private func versionTable(count: UInt64) throws(SandboxError) -> Range<UInt64>? {
        guard let address = dynamicEntries[.versions] else { return nil }
        guard let range = fileRange(address: address &- base, size: count * 2) else {
            throw refusal("its symbols' versions (DT_VERSYM) are not all in one segment of the file")
        }
        return range
    }

    private func makeImport(_ symbol: ELFSymbol, _ budget: inout UInt64) throws(SandboxError) -> GuestModule.Import {
        let isWeak = symbol.binding == ELF.SymbolBinding.weak
        let kind: GuestModule.SymbolKind
        switch symbol.type {
        case ELF.SymbolType.unspecified: kind = .unspecified
        case ELF.SymbolType.function: kind = .function
        case ELF.SymbolType.object where isWeak: kind = .object
        case ELF.SymbolType.object:
            throw refusal("it needs the variable \(describe(symbol)) from outside; only functions can be imported")
        case ELF.SymbolType.threadLocal:
            throw refusal("it needs the thread-local variable \(describe(symbol)) from outside")
        case let type: throw refusal("its undefined symbol \(describe(symbol)) is of an unknown type (\(type))")
        }
        let name = try text(try nameBytes(of: symbol, &budget))
        guard !name.isEmpty else { throw refusal("it has an undefined symbol without a name") }
        return GuestModule.Import(name: name, isWeak: isWeak, kind: kind)
    }

    private func makeExport(_ symbol: ELFSymbol, _ budget: inout UInt64) throws(SandboxError) -> ExportCandidate? {
        switch symbol.binding {
        case ELF.SymbolBinding.global, ELF.SymbolBinding.weak, ELF.SymbolBinding.unique: break
        default: return nil
        }
        switch symbol.visibility {
        case ELF.SymbolVisibility.internal, ELF.SymbolVisibility.hidden: return nil
        default: break
        }
        guard symbol.sectionIndex != ELF.SectionIndex.absolute else { return nil }

        let address = symbol.value &- base
        let segment = segments.index(containing: address).map { segments[$0] }
        let isExecutable = segment?.permissions.contains(.execute) ?? false
        let kind: GuestModule.SymbolKind
        switch symbol.type {
        case ELF.SymbolType.function:
            guard isExecutable else {
                throw refusal("its function \(describe(symbol)) is not in an executable segment")
            }
            kind = .function
        // An assembler's labels have no type unless they are given one.
        case ELF.SymbolType.unspecified: kind = isExecutable ? .function : .object
        case ELF.SymbolType.object: kind = .object
        default: return nil
        }
        // Linkers define symbols that mark an end, and so are in no segment: those are not the module's variables.
        guard let segment else { return nil }
        let name = try nameBytes(of: symbol, &budget)
        guard !name.isEmpty else { return nil }
        let size = min(symbol.size, segment.end - address)
        return ExportCandidate(
            nameStart: name.startIndex,
            nameEnd: name.endIndex,
            kind: kind,
            address: address,
            size: size
        )
    }

    private func nameBytes(of symbol: ELFSymbol, _ budget: inout UInt64) throws(SandboxError) -> ArraySlice<UInt8> {
        guard let bytes = file.string(at: symbol.nameOffset, in: strings, limit: Self.maximumNameLength) else {
            throw refusal(
                "the name of one of its symbols is not in its string table,"
                    + " or longer than \(Self.maximumNameLength) bytes"
            )
        }
        guard UInt64(bytes.count) <= budget else {
            throw refusal("the names of its symbols are longer than twice the file")
        }
        budget -= UInt64(bytes.count)
        return bytes
    }

    private func text(_ bytes: ArraySlice<UInt8>) throws(SandboxError) -> String {
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw refusal("the name \(quoted(String(decoding: bytes, as: UTF8.self))) of a symbol is not UTF-8")
        }
        return text
    }

    /// What a refusal calls a symbol.
    func describe(_ symbol: ELFSymbol) -> String {
        file.string(at: symbol.nameOffset, in: strings, limit: Self.maximumNameLength)
            .map { quoted(String(decoding: $0, as: UTF8.self)) } ?? "a symbol without a name"
    }

    /// Sorts the exports by name, the first in memory of each name coming first, and keeps that one.
    private mutating func indexExports(_ candidates: inout [ExportCandidate]) throws(SandboxError) {
        // The names are in the file, as ``ELFReader/string(at:in:limit:)`` has checked, and the file stays where it is
        // inside the closure.
        unsafe file.bytes.withUnsafeBufferPointer { bytes in
            candidates.sort { left, right in
                unsafe left.precedes(right, in: bytes)
            }
        }
        exports.reserveCapacity(candidates.count)
        exportIndices.reserveCapacity(candidates.count)
        for candidate in candidates {
            let name = try text(file.bytes[candidate.nameStart..<candidate.nameEnd])
            let index = exports.count
            if let known = exportIndices.updateValue(index, forKey: SymbolName(name)) {
                exportIndices[SymbolName(name)] = known
                continue
            }
            exports.append(
                GuestModule.Export(name: name, kind: candidate.kind, address: candidate.address, size: candidate.size)
            )
        }
    }
}

/// An export whose name is still in the file.
private struct ExportCandidate {
    var nameStart: Int
    var nameEnd: Int
    var kind: GuestModule.SymbolKind
    var address: UInt64
    var size: UInt64

    /// The order by the bytes of the names, then by address. The names have to be in `bytes`.
    @unsafe
    func precedes(_ other: Self, in bytes: UnsafeBufferPointer<UInt8>) -> Bool {
        guard let start = bytes.baseAddress else { return false }
        let count = nameEnd - nameStart
        let otherCount = other.nameEnd - other.nameStart
        let order = unsafe memcmp(start + nameStart, start + other.nameStart, min(count, otherCount))
        return (Int(order), count, address) < (0, otherCount, other.address)
    }
}
