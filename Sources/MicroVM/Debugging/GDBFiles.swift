/// The two files of symbols that a GDB finds at its target, to be read only (GDB manual, E.7 File-I/O Remote Protocol;
/// `vFile`): the module, and the one for the library's own code.
struct GDBFiles {
    private static let libraryDescriptor = 3
    private static let moduleDescriptor = 4

    private let symbols: DebugSymbols
    /// Made when it is first asked for.
    private var libraryFile: [UInt8]?

    init(_ symbols: DebugSymbols) { self.symbols = symbols }

    /// Answers what follows `vFile:`; nothing where that is not known.
    mutating func answer(_ text: inout GDBText) -> [UInt8]? {
        if text.take("setfs:") || text.take("close:") { return Array("F0".utf8) }
        if text.take("open:") { return Array(open(&text).utf8) }
        if text.take("fstat:") { return file(text.takeCount()).map(Self.status(of:)) ?? Self.badDescriptor }
        if text.take("pread:") { return read(&text) ?? Self.badDescriptor }
        return nil
    }

    private static let badDescriptor = Array("F-1,9".utf8)

    private func open(_ text: inout GDBText) -> String {
        let name = String(decoding: (GDBText.bytes(text.take(until: ",")) ?? []).compactMap(\.self), as: UTF8.self)
        switch name {
        case "/\(DebugSymbols.libraryName)": return "F\(Self.libraryDescriptor)"
        case "/\(symbols.moduleFileName)": return "F\(Self.moduleDescriptor)"
        // There is no such file.
        default: return "F-1,2"
        }
    }

    private mutating func read(_ text: inout GDBText) -> [UInt8]? {
        guard let file = file(text.takeCount()), text.take(","), let count = text.takeCount(), text.take(","),
            let offset = text.takeCount()
        else { return nil }
        return Self.contents(GDBPackets.part(of: file, from: offset, count: count))
    }

    private static func status(of file: [UInt8]) -> [UInt8] {
        var status: [UInt8] = []
        func append(_ value: UInt64, _ size: Int) {
            for index in (0..<size).reversed() { status.append(UInt8(truncatingIfNeeded: value >> (index * 8))) }
        }
        // Device, inode, mode (a regular file that can be read), links, owner, group, device.
        for value: UInt64 in [0, 0, 0o100444, 1, 0, 0, 0] { append(value, 4) }
        append(UInt64(file.count), 8)
        append(4096, 8)
        append(UInt64(file.count + 511) / 512, 8)
        for _ in 0..<3 { append(0, 4) }
        return contents(status[...])
    }

    private static func contents(_ bytes: ArraySlice<UInt8>) -> [UInt8] {
        Array("F\(String(bytes.count, radix: 16));".utf8) + GDBPackets.escape(bytes)
    }

    private mutating func file(_ descriptor: Int?) -> [UInt8]? {
        switch descriptor {
        case Self.libraryDescriptor:
            let file = libraryFile ?? symbols.libraryFile
            libraryFile = file
            return file
        case Self.moduleDescriptor: return symbols.module.bytes
        default: return nil
        }
    }
}
