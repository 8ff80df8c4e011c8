/// The symbols of a module by address, to tell what an address belongs to. Names stay in the file until asked for.
struct SymbolTable: Sendable {
    private struct Entry {
        // Half the width of the file's fields: an image is at most 4 GiB, and so is a string table's index.
        var address: UInt32
        var size: UInt32
        var nameOffset: UInt32
        /// Which of the symbols at one address gives its name to it.
        var rank: UInt8
    }

    /// At most one symbol an address, in ascending order.
    private var entries: [Entry] = []
    private var strings: Range<UInt64> = 0..<0

    /// A symbol with a longer name goes without: this table serves people who read a report.
    private static let nameLimit: UInt64 = 4096
    /// How many symbols before the nearest one may be asked whether they reach as far as the address.
    private static let searchLimit = 32

    /// No symbols.
    init() {}

    /// The symbols in a part of the file that is a whole table.
    ///
    /// - Parameters:
    ///   - symbols: The bytes of the table in the file.
    ///   - strings: The bytes of the table of their names.
    ///   - base: The address that the image's first byte has in the file's terms.
    init(
        _ file: ELFReader,
        symbols: Range<UInt64>,
        strings: Range<UInt64>,
        base: UInt64,
        segments: [GuestModule.Segment]
    ) {
        self.strings = strings
        let count = (symbols.upperBound - symbols.lowerBound) / ELF.symbolSize
        for index in 0..<count {
            let symbol = ELFSymbol(file, at: symbols.lowerBound + index * ELF.symbolSize)
            let address = symbol.value &- base
            guard let rank = Self.rank(of: symbol), segments.index(containing: address) != nil else { continue }
            guard let address = UInt32(exactly: address), let nameOffset = UInt32(exactly: symbol.nameOffset) else {
                continue
            }
            entries.append(
                Entry(address: address, size: UInt32(clamping: symbol.size), nameOffset: nameOffset, rank: rank)
            )
        }
        entries.sort { ($0.address, $1.rank, $0.nameOffset) < ($1.address, $0.rank, $1.nameOffset) }
        // The best of each address comes first.
        var kept = 0
        for entry in entries where kept == 0 || entries[kept - 1].address != entry.address {
            entries[kept] = entry
            kept += 1
        }
        entries.removeSubrange(kept...)
    }

    /// Functions before data before labels, global before local, those with a size before those without; nothing for
    /// what is no place in the image.
    private static func rank(of symbol: ELFSymbol) -> UInt8? {
        guard !symbol.isUndefined, symbol.nameOffset != 0 else { return nil }
        switch symbol.sectionIndex {
        case ELF.SectionIndex.absolute, ELF.SectionIndex.common: return nil
        default: break
        }
        let kind: UInt8
        switch symbol.type {
        case ELF.SymbolType.function: kind = 8
        case ELF.SymbolType.object: kind = 4
        case ELF.SymbolType.unspecified: kind = 0
        default: return nil
        }
        return kind + (symbol.binding != ELF.SymbolBinding.local ? 2 : 0) + (symbol.size != 0 ? 1 : 0)
    }

    func symbol(at address: UInt64, segments: [GuestModule.Segment], file: ELFReader) -> GuestSymbol? {
        guard let segment = segments.index(containing: address) else { return nil }
        // The number of entries at or before the address.
        var low = 0
        var high = entries.count
        while low < high {
            let middle = (low + high) / 2
            if UInt64(entries[middle].address) <= address { low = middle + 1 } else { high = middle }
        }
        guard low > 0 else { return nil }
        let candidates = entries[max(0, low - Self.searchLimit)..<low]
        let start = segments[segment].address
        // A label in the middle of a function is not what a report should name.
        let around = candidates.last {
            $0.rank >= 4 && UInt64($0.address) >= start && address - UInt64($0.address) < UInt64($0.size)
        }
        guard let entry = around ?? candidates.last, UInt64(entry.address) >= start else { return nil }
        guard
            let name = file.string(at: UInt64(entry.nameOffset), in: strings, limit: Self.nameLimit)
        else { return nil }
        return GuestSymbol(name: String(decoding: name, as: UTF8.self), offset: address - UInt64(entry.address))
    }
}

extension [GuestModule.Segment] {
    /// The segment that an address lies in, for segments in ascending order.
    func index(containing address: UInt64) -> Int? {
        var low = 0
        var high = count
        while low < high {
            let middle = (low + high) / 2
            if self[middle].address <= address { low = middle + 1 } else { high = middle }
        }
        guard low > 0, address - self[low - 1].address < self[low - 1].memorySize else { return nil }
        return low - 1
    }
}
