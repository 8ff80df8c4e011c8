#if canImport(Glibc)
import Glibc
#else
import Musl
#endif
public import SystemPackage

/// A guest's code: an ELF shared object for x86-64 that has been parsed and found fit to be loaded.
///
/// A module is immutable and can be instantiated by any number of sandboxes on any threads at the same time. All of its
/// addresses are relative to the start of its image, in bytes: where the image lies is a sandbox's choice.
///
/// The functions it exports are what a host may call, the symbols it leaves undefined are the functions it needs from
/// the host. Whatever would need an operating system or a dynamic linker is refused (other libraries, an interpreter,
/// indirect functions, text relocations, …), as is memory that is both writable and executable. The format is that of
/// the System V ABI, chapters 4 and 5, and its AMD64 supplement.
public final class GuestModule: Sendable {
    /// What messages call the module: the file's name, or what the embedder chose.
    public let name: String
    /// The functions and data the module offers, sorted by the bytes of their names.
    public let exports: [Export]
    /// What the module needs from its host, in the order of its symbol table. Two of them have the same name if the
    /// module asks for two versions of one symbol.
    public let imports: [Import]
    /// The parts of the file that are loaded, in ascending order of their addresses, never overlapping.
    public let segments: [Segment]
    /// The pages that are written by relocation only, and are read-only to the guest (PT_GNU_RELRO).
    public let readOnlyAfterRelocation: Range<UInt64>?
    /// The initial image of the thread-local variables (PT_TLS), if the module has any.
    public let threadLocalStorage: ThreadLocalStorage?
    /// The functions that run when the module is instantiated, before any export is called.
    public let initializers: Initializers
    /// The size of the image in bytes, a multiple of the page size, at most 4 GiB.
    public let imageSize: UInt64
    /// The alignment of the image in bytes: a power of two, from the page size of 4 KiB to 2 MiB.
    public let imageAlignment: UInt64

    /// The file. Segments' offsets are offsets into it.
    let bytes: [UInt8]
    /// What is to be written into the image before it runs, in the order in which it is to be written.
    let relocations: [Relocation]
    /// The pages of the image that exist, and what the guest may do with them: page-aligned, in ascending order, never
    /// overlapping, none both writable and executable. Pages of the image in none of them are not there.
    let mappings: [Mapping]

    /// The images that were made last, for the sandboxes to come.
    let images = Locked<[GuestImage]>([])
    static let imagesMaximum = 4

    /// What the module says of its stack frames, if it does.
    let unwindTable: UnwindTable?
    /// The address that the image's first byte has in the file's terms.
    let fileBase: UInt64
    /// Where the file is, from the root on, if the module was read from one.
    let path: String?

    private let exportIndices: [SymbolName: Int]
    private let symbols: SymbolTable

    /// Parses a module.
    ///
    /// - Parameters:
    ///   - bytes: The whole ELF file. It is kept for as long as the module lives.
    ///   - name: What messages call the module.
    /// - Throws: ``SandboxError`` with code ``SandboxError/Code/invalidModule``; its message names what is refused.
    public convenience init(_ bytes: [UInt8], name: String = "module") throws(SandboxError) {
        try self.init(bytes, name: name, path: nil)
    }

    private init(_ bytes: [UInt8], name: String, path: String?) throws(SandboxError) {
        let parser = try ModuleParser(bytes, name: name)
        self.name = name
        self.bytes = bytes
        exports = parser.exports
        imports = parser.imports
        segments = parser.segments
        readOnlyAfterRelocation = parser.readOnlyAfterRelocation
        threadLocalStorage = parser.threadLocalStorage
        initializers = parser.initializers
        imageSize = parser.imageSize
        imageAlignment = parser.imageAlignment
        relocations = parser.relocations
        mappings = parser.mappings
        exportIndices = parser.exportIndices
        symbols = parser.symbolTable
        unwindTable = UnwindTable(parser)
        fileBase = parser.base
        self.path = path
    }

    /// Reads a file and parses it as a module; the module's name is the file's.
    ///
    /// - Parameter path: A regular file of at most 1 GiB.
    /// - Throws: ``SandboxError`` with code ``SandboxError/Code/systemCallFailed`` where the file cannot be read (its
    ///   underlying error is an `Errno`), and with ``SandboxError/Code/invalidModule`` where it is no module.
    public convenience init(contentsOf path: FilePath) throws(SandboxError) {
        let bytes = try Self.read(path)
        try self.init(bytes, name: path.lastComponent?.string ?? path.string, path: Self.absolutePath(path))
    }

    /// The export of that name, in constant time and without allocating.
    ///
    /// Names are the same if their bytes are.
    public func export(named name: String) -> Export? {
        exportIndices[SymbolName(name)].map { exports[$0] }
    }

    /// The symbol that an address of the image belongs to: the function or variable around it, else the nearest symbol
    /// before it in the same segment.
    ///
    /// Where the module has not been stripped, functions it does not export are found too.
    ///
    /// - Parameter address: An address relative to the start of the image, in bytes.
    public func symbol(at address: UInt64) -> GuestSymbol? {
        symbols.symbol(at: address, segments: segments, file: ELFReader(bytes: bytes))
    }

    /// The export of a function.
    func exportedFunction(named name: String) throws(SandboxError) -> Export {
        guard let export = export(named: name) else {
            throw SandboxError(.unknownExport, "The module \(self.name) exports no function named \(name).")
        }
        guard export.kind == .function else {
            throw SandboxError(.unknownExport, "The module \(self.name) exports \(name), but it is not a function.")
        }
        return export
    }

    /// The symbol for an address in a guest's memory, where the image begins at `imageBase`.
    func symbol(at address: UInt64, imageBase: UInt64) -> GuestSymbol? {
        guard address >= imageBase, address - imageBase < imageSize else { return nil }
        return symbol(at: address - imageBase)
    }
}

extension GuestModule {
    private static func absolutePath(_ path: FilePath) -> String? {
        guard let resolved = unsafe realpath(path.string, nil) else { return nil }
        // The C library has allocated it.
        defer { unsafe free(resolved) }
        return unsafe String(cString: resolved)
    }

    /// The size of the largest file that is read, in bytes.
    private static let maximumFileSize = 1 << 30

    private static func read(_ path: FilePath) throws(SandboxError) -> [UInt8] {
        do {
            // Non-blocking, so that opening a FIFO does not wait for a writer.
            let file = try FileDescriptor.open(path, .readOnly, options: [.closeOnExec, .nonBlocking])
            defer { try? file.close() }
            let size = try regularFileSize(file, path)
            return unsafe try [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
                // The file may have shrunk since its size was asked for: what counts is what was read. Each read is
                // bounded by what is left of the buffer, and says how much of that it has initialised.
                let raw = UnsafeMutableRawBufferPointer(buffer)
                while count < size {
                    let read = unsafe try file.read(into: UnsafeMutableRawBufferPointer(rebasing: raw[count..<size]))
                    guard read > 0 else { break }
                    count += read
                }
            }
        } catch let error as SandboxError {
            throw error
        } catch {
            throw SandboxError(
                .systemCallFailed,
                "The module \(quoted(path.string)) cannot be read.",
                underlyingError: error
            )
        }
    }

    private static func regularFileSize(_ file: FileDescriptor, _ path: FilePath) throws -> Int {
        var status = stat()
        // `status` outlives the call, which writes no more than a `struct stat`.
        guard unsafe fstat(file.rawValue, &status) == 0 else { throw Errno(rawValue: errno) }
        switch status.st_mode & S_IFMT {
        case S_IFREG: break
        case S_IFDIR: throw Errno.isDirectory
        default: throw SandboxError(.invalidModule, "The module \(quoted(path.string)) is not a regular file.")
        }
        guard status.st_size <= maximumFileSize else {
            throw SandboxError(
                .invalidModule,
                "The module \(quoted(path.string)) has \(status.st_size) bytes, more than \(maximumFileSize)."
            )
        }
        return Int(status.st_size)
    }
}
