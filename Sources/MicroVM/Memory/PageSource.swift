import Glibc
public import SystemPackage

/// Where the pages of lazily served memory come from: a file, bytes, or a function of the embedder.
///
/// A page is asked for when it is first accessed, and again when its memory has been dropped meanwhile; so a source
/// answers the same for the same page every time, for as long as it is in use.
///
/// The system calls behind it are described in ioctl_userfaultfd(2).
public struct PageSource: Sendable {
    /// How many bytes are asked for at once, and become present together.
    public enum Granularity: Int, Sendable, CaseIterable {
        /// 4 KiB: what a processor calls a page.
        case kibibytes4 = 4096
        /// 8 KiB.
        case kibibytes8 = 8192
        /// 16 KiB.
        case kibibytes16 = 16384
        /// 32 KiB.
        case kibibytes32 = 32768
        /// 64 KiB.
        case kibibytes64 = 65536
    }

    /// Gets bytes of a source.
    ///
    /// The offset in bytes and the count of bytes are multiples of the granularity, but for a count that ends at the
    /// source's size. Fewer bytes than asked for, or none, mean zeros after them; more are an error.
    public typealias Fetch = @Sendable (_ offset: UInt64, _ count: Int) async throws -> [UInt8]

    enum Storage: Sendable {
        case bytes([UInt8])
        case file(SourceFile, offset: UInt64)
        case custom(Fetch)
    }

    let storage: Storage
    /// How many bytes there are; whatever lies behind them is zero, and never asked for.
    public let size: UInt64
    /// The unit in which pages are asked for.
    public let granularity: Granularity
    /// How many further pages are asked for together with the one that is needed.
    public let readAhead: Int

    /// The most that ``readAhead`` can be, in pages.
    public static let maximumReadAhead = 64

    private init(_ storage: Storage, size: UInt64, granularity: Granularity, readAhead: Int) {
        self.storage = storage
        self.size = size
        self.granularity = granularity
        self.readAhead = min(max(readAhead, 0), Self.maximumReadAhead)
    }

    /// Bytes that are in memory already.
    ///
    /// - Parameters:
    ///   - bytes: what the memory begins with; zeros follow.
    ///   - granularity: how many bytes become present at once.
    ///   - readAhead: further pages for each that is needed, 0 to ``maximumReadAhead``; other numbers count as the
    ///     nearest of these.
    public static func bytes(
        _ bytes: [UInt8],
        granularity: Granularity = .kibibytes4,
        readAhead: Int = 0
    ) -> PageSource {
        PageSource(.bytes(bytes), size: UInt64(bytes.count), granularity: granularity, readAhead: readAhead)
    }

    /// The bytes of a file, which is opened now and closed with the last copy of the source.
    ///
    /// It is read, never mapped: a file that has become shorter, or that cannot be read, is a failed access of the
    /// guest and no signal.
    ///
    /// - Parameters:
    ///   - path: a file that can be read at any offset.
    ///   - offset: where the source begins in the file, in bytes.
    ///   - count: how many bytes it has; nil for all up to where the file ends now.
    ///   - granularity: how many bytes become present at once.
    ///   - readAhead: further pages for each that is needed, 0 to ``maximumReadAhead``; other numbers count as the
    ///     nearest of these.
    /// - Throws: ``SandboxError/Code/systemCallFailed`` when the file cannot be opened, or tells no size;
    ///   ``SandboxError/Code/invalidArgument`` when it ends before the source does.
    public static func file(
        _ path: FilePath,
        offset: UInt64 = 0,
        count: UInt64? = nil,
        granularity: Granularity = .kibibytes4,
        readAhead: Int = 0
    ) throws(SandboxError) -> PageSource {
        let descriptor: FileDescriptor
        do {
            descriptor = try FileDescriptor.open(path, .readOnly, options: [.closeOnExec])
        } catch {
            throw SandboxError(
                .systemCallFailed,
                "Could not open \(path) as a page source; check that the file is there and may be read.",
                underlyingError: error
            )
        }
        let file = SourceFile(owning: descriptor)
        return try source(file, offset, count, granularity, readAhead)
    }

    /// The bytes of an open file. The descriptor is duplicated, and stays the caller's to close.
    ///
    /// - Parameters:
    ///   - descriptor: a file that can be read at any offset.
    ///   - offset: where the source begins in the file, in bytes.
    ///   - count: how many bytes it has; nil for all up to where the file ends now.
    ///   - granularity: how many bytes become present at once.
    ///   - readAhead: further pages for each that is needed, 0 to ``maximumReadAhead``; other numbers count as the
    ///     nearest of these.
    /// - Throws: ``SandboxError/Code/systemCallFailed`` when the descriptor cannot be duplicated, or tells no size;
    ///   ``SandboxError/Code/invalidArgument`` when the file ends before the source does.
    public static func file(
        _ descriptor: FileDescriptor,
        offset: UInt64 = 0,
        count: UInt64? = nil,
        granularity: Granularity = .kibibytes4,
        readAhead: Int = 0
    ) throws(SandboxError) -> PageSource {
        let duplicate = fcntl(descriptor.rawValue, F_DUPFD_CLOEXEC, 0)
        guard duplicate >= 0 else {
            throw SandboxError(
                .systemCallFailed,
                "Could not duplicate a page source's file descriptor.",
                underlyingError: Errno(rawValue: errno)
            )
        }
        let file = SourceFile(owning: FileDescriptor(rawValue: duplicate))
        return try source(file, offset, count, granularity, readAhead)
    }

    private static func source(
        _ file: SourceFile,
        _ offset: UInt64,
        _ count: UInt64?,
        _ granularity: Granularity,
        _ readAhead: Int
    ) throws(SandboxError) -> PageSource {
        let end = try file.size()
        guard offset <= end, count ?? 0 <= end - offset else {
            throw SandboxError(
                .invalidArgument,
                "The page source begins at \(offset) with \(count ?? 0) bytes, but its file has \(end)."
            )
        }
        let size = count ?? end - offset
        return PageSource(.file(file, offset: offset), size: size, granularity: granularity, readAhead: readAhead)
    }

    /// Whatever a function gets, from wherever: a network, an archive, a computation.
    ///
    /// Each fetch runs in a task of its own, several at a time for different pages, and the guest stands still for as
    /// long as its page takes. The task is cancelled when nobody needs the page any more: because the guest call was
    /// killed, or its memory went; one that goes on regardless is no longer listened to. Whatever the function throws
    /// makes the guest's access fail.
    ///
    /// - Parameters:
    ///   - size: how many bytes the source has; zeros follow, for which nobody asks.
    ///   - granularity: how many bytes are asked for and become present at once.
    ///   - readAhead: further pages for each that is needed, 0 to ``maximumReadAhead``; other numbers count as the
    ///     nearest of these.
    ///   - fetch: gets bytes. It must not touch memory that is served from it.
    public static func custom(
        size: UInt64,
        granularity: Granularity = .kibibytes4,
        readAhead: Int = 0,
        _ fetch: @escaping Fetch
    ) -> PageSource {
        PageSource(.custom(fetch), size: size, granularity: granularity, readAhead: readAhead)
    }

    /// How many of `count` bytes at `offset` the source has.
    func available(at offset: UInt64, count: Int) -> Int {
        offset >= size ? 0 : Int(min(UInt64(count), size - offset))
    }
}

extension PageSource.Storage {
    /// Bytes that are at hand, or can be had from a file; for custom sources nil. All of them are there.
    func read(at offset: UInt64, count: Int) throws(SandboxError) -> [UInt8]? {
        switch self {
        case .bytes(let bytes): Array(bytes[Int(offset)..<Int(offset) + count])
        case .file(let file, let start): try file.read(at: start + offset, count: count)
        case .custom: nil
        }
    }
}

/// The file behind a source: closed when the last copy of the source goes.
final class SourceFile: Sendable {
    private let descriptor: FileDescriptor

    init(owning descriptor: FileDescriptor) { self.descriptor = descriptor }

    deinit { try? descriptor.close() }

    /// In bytes.
    func size() throws(SandboxError) -> UInt64 {
        var status = stat()
        // The structure outlives the call.
        guard unsafe fstat(descriptor.rawValue, &status) == 0, status.st_size >= 0 else {
            throw SandboxError(
                .systemCallFailed,
                "Could not find out the size of a page source's file.",
                underlyingError: Errno(rawValue: errno)
            )
        }
        return UInt64(status.st_size)
    }

    /// So many bytes, all of them.
    func read(at offset: UInt64, count: Int) throws(SandboxError) -> [UInt8] {
        do {
            // As many bytes are initialised as have been read.
            return unsafe try [UInt8](unsafeUninitializedCapacity: count) { buffer, read in
                while read < count {
                    let rest = unsafe UnsafeMutableRawBufferPointer(
                        rebasing: UnsafeMutableRawBufferPointer(buffer)[read...]
                    )
                    let part = unsafe try descriptor.read(fromAbsoluteOffset: Int64(offset) + Int64(read), into: rest)
                    guard part > 0 else { throw Errno.noData }
                    read += part
                }
            }
        } catch {
            throw SandboxError(
                .systemCallFailed,
                error as? Errno == .noData
                    ? "A page source's file has become shorter: there are no \(count) bytes at \(offset) any more."
                    : "Could not read \(count) bytes at \(offset) of a page source's file.",
                underlyingError: error
            )
        }
    }
}
