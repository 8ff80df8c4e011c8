/// What a module says of its functions' stack frames: the section `.eh_frame` (Linux Standard Base, 10.6; AMD64 ABI
/// supplement, 3.7), found by way of PT_GNU_EH_FRAME or of the section headers.
///
/// It is read from the module's file and not from the guest's memory, where it is read-only and the same. All of it can
/// be lies: nothing here takes longer than the file is long, and finding one function's frame is a bisection.
final class UnwindTable: Sendable {
    /// What is known of the frames of one function.
    struct Description {
        /// Where the function begins, in the image.
        var start: UInt64
        var codeAlignment: UInt64
        var dataAlignment: Int64
        /// The instructions that hold for all functions of its kind, and then those for this one.
        var instructions: [DWARFCursor]
        /// How pointers in the instructions are encoded.
        var pointerEncoding: UInt8
    }

    /// What some descriptions have in common.
    private struct Common {
        var codeAlignment: UInt64
        var dataAlignment: Int64
        var pointerEncoding: UInt8
        var isAugmented: Bool
        var instructions: DWARFCursor
    }

    /// Where a function begins, and where its description is.
    private struct Entry {
        var start: UInt64
        var offset: UInt64
    }

    private let file: ELFReader
    private let base: UInt64
    /// The section's bytes in the file.
    private let section: Range<UInt64>
    private let sectionSlide: UInt64
    /// The sorted table that linkers make: eight bytes for each function.
    private let table: (range: Range<UInt64>, address: UInt64)?
    /// The same, made here where there is none.
    private let entries = Locked<[Entry]?>(nil)

    private static let signed32Bits: UInt8 = 0xb
    private static let relativeToHeader: UInt8 = 0x30
    private static let augmentationMaximum = 16

    /// None where the module has nothing of the kind.
    init?(_ parser: ModuleParser) {
        file = parser.file
        base = parser.base
        let header = parser.unwindHeader.flatMap { header in
            parser.fileRange(address: header.address &- parser.base, size: header.fileSize)
        }
        if let header, let found = Self.read(header, parser) {
            (section, sectionSlide, table) = found
        } else if let found = parser.unwindSection {
            section = found.range
            sectionSlide = found.address &- found.range.lowerBound
            table = nil
        } else {
            return nil
        }
    }

    /// Reads `.eh_frame_hdr`.
    private static func read(
        _ range: Range<UInt64>,
        _ parser: ModuleParser
    ) -> (Range<UInt64>, UInt64, (range: Range<UInt64>, address: UInt64)?)? {
        guard let header = parser.unwindHeader else { return nil }
        let address = header.address &- parser.base
        var cursor = DWARFCursor(parser.file, range, slide: address &- range.lowerBound, base: parser.base)
        guard cursor.read(UInt8.self) == 1, let pointerEncoding = cursor.read(UInt8.self),
            let countEncoding = cursor.read(UInt8.self), let tableEncoding = cursor.read(UInt8.self),
            let start = cursor.pointer(pointerEncoding),
            let index = parser.segments.index(containing: start)
        else { return nil }
        let segment = parser.segments[index]
        // Up to the end of the segment; the section itself says where it ends.
        guard start - segment.address < segment.fileSize,
            let section = parser.fileRange(address: start, size: segment.fileSize - (start - segment.address))
        else { return nil }
        let slide = start &- section.lowerBound
        guard tableEncoding == Self.relativeToHeader | Self.signed32Bits, countEncoding & 0xf0 == 0,
            let count = cursor.number(countEncoding), count > 0, cursor.position <= cursor.end,
            count <= (cursor.end - cursor.position) / 8
        else { return (section, slide, nil) }
        return (section, slide, (cursor.position..<cursor.position + count * 8, address))
    }

    /// The description of the function that an address of the image lies in.
    func description(of address: UInt64) -> Description? {
        guard let offset = descriptionOffset(of: address),
            let (description, end) = readDescription(at: offset),
            address >= description.start, address < end
        else { return nil }
        return description
    }

    private func descriptionOffset(of address: UInt64) -> UInt64? {
        guard let table else {
            let entries = scannedEntries()
            var low = 0
            var high = entries.count
            while low < high {
                let middle = (low + high) / 2
                if entries[middle].start <= address { low = middle + 1 } else { high = middle }
            }
            return low > 0 ? entries[low - 1].offset : nil
        }
        func word(_ index: UInt64, _ field: UInt64) -> UInt64 {
            let word = file.load(Int32.self, at: table.range.lowerBound + index * 8 + field)
            return table.address &+ UInt64(bitPattern: Int64(word))
        }
        var low: UInt64 = 0
        var high = UInt64(table.range.count) / 8
        while low < high {
            let middle = (low + high) / 2
            if word(middle, 0) <= address { low = middle + 1 } else { high = middle }
        }
        return low > 0 ? word(low - 1, 4) &- sectionSlide : nil
    }

    private func cursor(_ range: Range<UInt64>) -> DWARFCursor {
        DWARFCursor(file, range, slide: sectionSlide, base: base)
    }

    /// The bytes of a record, behind its length: nothing at the end of the section.
    private func record(at offset: UInt64) -> Range<UInt64>? {
        guard section.contains(offset) else { return nil }
        var cursor = cursor(offset..<section.upperBound)
        // The 64-bit form is for sections that no module has.
        guard let length = cursor.read(UInt32.self), length != 0, length != .max,
            UInt64(length) <= section.upperBound - cursor.position
        else { return nil }
        return cursor.position..<cursor.position + UInt64(length)
    }

    /// Reads a frame description entry. The second value is where its function ends.
    private func readDescription(at offset: UInt64) -> (Description, end: UInt64)? {
        guard let record = record(at: offset) else { return nil }
        var cursor = cursor(record)
        guard let distance = cursor.read(UInt32.self), distance != 0,
            let common = readCommon(at: record.lowerBound &- UInt64(distance)),
            let start = cursor.pointer(common.pointerEncoding),
            let size = cursor.number(common.pointerEncoding & 0xf), size <= ModuleParser.maximumImageSize
        else { return nil }
        if common.isAugmented {
            guard let count = cursor.unsignedLEB(), cursor.skip(count) else { return nil }
        }
        let description = Description(
            start: start,
            codeAlignment: common.codeAlignment,
            dataAlignment: common.dataAlignment,
            instructions: [common.instructions, cursor],
            pointerEncoding: common.pointerEncoding
        )
        return (description, start &+ size)
    }

    /// Reads a common information entry.
    private func readCommon(at offset: UInt64) -> Common? {
        guard let record = record(at: offset) else { return nil }
        var cursor = cursor(record)
        guard cursor.read(UInt32.self) == 0, let version = cursor.read(UInt8.self), version == 1 || version == 3 else {
            return nil
        }
        var augmentation: [UInt8] = []
        while let byte = cursor.read(UInt8.self), byte != 0 {
            augmentation.append(byte)
            guard augmentation.count <= Self.augmentationMaximum else { return nil }
        }
        guard let codeAlignment = cursor.unsignedLEB(), let dataAlignment = cursor.signedLEB(),
            let column = version == 1 ? cursor.read(UInt8.self).map({ UInt64($0) }) : cursor.unsignedLEB(),
            column == UInt64(FrameRules.returnAddress)
        else { return nil }
        var common = Common(
            codeAlignment: codeAlignment,
            dataAlignment: dataAlignment,
            pointerEncoding: 0,
            isAugmented: augmentation.first == UInt8(ascii: "z"),
            instructions: cursor
        )
        guard common.isAugmented else { return augmentation.isEmpty ? common : nil }
        guard let count = cursor.unsignedLEB() else { return nil }
        let parameters = cursor
        guard cursor.skip(count) else { return nil }
        common.instructions = cursor
        cursor = self.cursor(parameters.position..<cursor.position)
        for letter in augmentation.dropFirst() {
            switch letter {
            case UInt8(ascii: "R"):
                guard let encoding = cursor.read(UInt8.self) else { return nil }
                common.pointerEncoding = encoding
            case UInt8(ascii: "P"):
                guard let encoding = cursor.read(UInt8.self), cursor.number(encoding) != nil else { return nil }
            case UInt8(ascii: "L"):
                guard cursor.read(UInt8.self) != nil else { return nil }
            case UInt8(ascii: "S"), UInt8(ascii: "B"): break
            default: return nil
            }
        }
        return common
    }

    /// All functions of the section in ascending order, found by one walk through it.
    private func scannedEntries() -> [Entry] {
        if let entries = entries.withLock({ $0 }) { return entries }
        var found: [Entry] = []
        var offset = section.lowerBound
        while let record = record(at: offset) {
            // Those for functions that the linker has dropped begin at 0 or nowhere.
            if let (description, end) = readDescription(at: offset), description.start < end {
                found.append(Entry(start: description.start, offset: offset))
            }
            offset = record.upperBound
        }
        found.sort { $0.start < $1.start }
        entries.withLock { $0 = found }
        return found
    }
}

extension ModuleParser {
    /// The section `.eh_frame`, where the section headers tell.
    var unwindSection: (range: Range<UInt64>, address: UInt64)? {
        let all = sections
        guard let names = all.dropFirst(Int(file.load(UInt16.self, at: 62))).first(where: { _ in true }),
            names.type == ELF.SectionType.strings,
            let strings = file.range(offset: names.offset, size: names.size)
        else { return nil }
        let name = Array(".eh_frame".utf8)
        for section in all
        where section.type == ELF.SectionType.contents || section.type == ELF.SectionType.unwindTable {
            guard let found = file.string(at: UInt64(section.name), in: strings, limit: 32), found.elementsEqual(name),
                let range = fileRange(address: section.address &- base, size: section.size)
            else { continue }
            return (range, section.address &- base)
        }
        return nil
    }
}
