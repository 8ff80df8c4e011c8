/// Reads numbers one after another from a stretch of a file, as DWARF writes them. Nothing in them is trusted: what
/// would be beyond the stretch is not there.
struct DWARFCursor {
    let file: ELFReader
    /// Offsets in the file.
    var position: UInt64
    let end: UInt64
    /// What makes an offset in the file an address in the image, when it is added.
    let slide: UInt64
    /// The address that the image's first byte has in the file's terms.
    let base: UInt64

    /// - Parameter range: a stretch that is in the file.
    init(_ file: ELFReader, _ range: Range<UInt64>, slide: UInt64, base: UInt64) {
        self.file = file
        position = range.lowerBound
        end = range.upperBound
        self.slide = slide
        self.base = base
    }

    var isAtEnd: Bool { position >= end }

    mutating func read<Value: FixedWidthInteger & BitwiseCopyable>(_ type: Value.Type) -> Value? {
        let size = UInt64(MemoryLayout<Value>.size)
        guard position <= end, end - position >= size else { return nil }
        defer { position += size }
        return file.load(type, at: position)
    }

    /// Whether so many bytes were there to be passed over.
    mutating func skip(_ count: UInt64) -> Bool {
        guard position <= end, count <= end - position else { return false }
        position += count
        return true
    }

    /// Bits beyond the 64th are dropped (DWARF 5, 7.6).
    mutating func unsignedLEB() -> UInt64? {
        var value: UInt64 = 0
        for shift in stride(from: UInt64(0), to: 70, by: 7) {
            guard let byte = read(UInt8.self) else { return nil }
            value |= UInt64(byte & 0x7f) << shift
            if byte & 0x80 == 0 { return value }
        }
        return nil
    }

    mutating func signedLEB() -> Int64? {
        var value: UInt64 = 0
        for shift in stride(from: UInt64(0), to: 70, by: 7) {
            guard let byte = read(UInt8.self) else { return nil }
            value |= UInt64(byte & 0x7f) << shift
            if byte & 0x80 == 0 {
                if byte & 0x40 != 0, shift + 7 < 64 { value |= ~0 << (shift + 7) }
                return Int64(bitPattern: value)
            }
        }
        return nil
    }

    /// A pointer in one of the encodings of exception tables (Linux Standard Base, 10.5), as an address in the image.
    /// Those that point to where the pointer is are refused.
    mutating func pointer(_ encoding: UInt8) -> UInt64? {
        let place = position &+ slide
        guard let value = number(encoding) else { return nil }
        switch encoding & 0xf0 {
        case 0: return value &- base
        case 0x10: return value &+ place
        default: return nil
        }
    }

    /// The number that a pointer is made of.
    mutating func number(_ encoding: UInt8) -> UInt64? {
        switch encoding & 0xf {
        case 0, 4: read(UInt64.self)
        case 1: unsignedLEB()
        case 2: read(UInt16.self).map { UInt64($0) }
        case 3: read(UInt32.self).map { UInt64($0) }
        case 9: signedLEB().map { UInt64(bitPattern: $0) }
        case 0xa: read(Int16.self).map { UInt64(bitPattern: Int64($0)) }
        case 0xb: read(Int32.self).map { UInt64(bitPattern: Int64($0)) }
        case 0xc: read(Int64.self).map { UInt64(bitPattern: $0) }
        default: nil
        }
    }
}
