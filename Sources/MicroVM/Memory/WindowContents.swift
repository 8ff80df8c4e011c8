import CShims
import Glibc
public import SystemPackage

/// What a guest is shown in one of its windows.
public struct WindowContents: Sendable {
    /// What a guest may do with it.
    public enum Access: Sendable, Hashable {
        /// Read it. All guests that it is mapped to share its pages.
        case readOnly
        /// Read and write it; what a guest writes is its own, and nobody else sees it.
        case copyOnWrite
    }

    enum Kind: Sendable {
        case file(MappedFile, offset: Int)
        case shared(SharedMemory)
        case lazy(PageSource)
    }

    let kind: Kind
    /// The bytes that are shown, more than zero. The rest of their last page of 4 KiB is zero.
    public let count: Int

    /// A part of a file, mapped and not read: its pages come as the guest touches them.
    ///
    /// When the file is truncated while it is mapped, the guest call that touches what is gone ends in a fault
    /// (``GuestFault/Kind/memoryUnavailable``).
    ///
    /// - Parameters:
    ///   - path: a regular file that may be read.
    ///   - offset: where in the file to begin, in bytes; a multiple of 4096.
    ///   - count: how many bytes; up to the end of the file unless given.
    /// - Throws: ``SandboxError``: `.systemCallFailed` when the file cannot be opened; `.invalidArgument` when it is no
    ///   regular file, or has not so many bytes there, or none at all.
    public static func file(
        _ path: FilePath,
        offset: Int = 0,
        count: Int? = nil
    ) throws(SandboxError) -> WindowContents {
        let file = try MappedFile(path)
        guard offset >= 0, offset % GuestMemory.pageSize == 0, offset < file.count else {
            throw SandboxError(
                .invalidArgument,
                "\(path) has \(file.count) bytes; \(offset) is no multiple of \(GuestMemory.pageSize) within them."
            )
        }
        let count = count ?? file.count - offset
        guard count > 0, count <= file.count - offset else {
            throw SandboxError(.invalidArgument, "\(path) has not \(count) bytes from \(offset) on.")
        }
        return WindowContents(kind: .file(file, offset: offset), count: count)
    }

    /// Memory of the host, all of it.
    public static func shared(_ memory: SharedMemory) -> WindowContents {
        WindowContents(kind: .shared(memory), count: memory.count)
    }

    /// Pages that come from a source when the guest first touches them, through a ``PageFaultHandler``.
    ///
    /// A source that fails ends the guest call that needed the page, in a fault
    /// (``GuestFault/Kind/memoryUnavailable``). With ``Access/readOnly``, pages that have come stay through a restore;
    /// with ``Access/copyOnWrite``, a restore drops those that came since the snapshot.
    ///
    /// - Throws: ``SandboxError/Code/invalidArgument`` for an empty source.
    public static func lazy(_ source: PageSource) throws(SandboxError) -> WindowContents {
        guard source.size > 0, source.size <= UInt64(Int.max / 2) else {
            throw SandboxError(.invalidArgument, "A page source of \(source.size) bytes cannot be mapped.")
        }
        return WindowContents(kind: .lazy(source), count: Int(source.size))
    }

    /// Whether host code may follow pointers into it: nothing can take its pages away.
    var isLasting: Bool {
        switch kind {
        case .file, .lazy: false
        case .shared: true
        }
    }

    var file: (descriptor: FileDescriptor, offset: Int)? {
        switch kind {
        case .file(let file, let offset): (file.descriptor, offset)
        case .shared(let memory): (memory.file, 0)
        case .lazy: nil
        }
    }

    /// Whether the file has become shorter than it was.
    var hasShrunk: Bool {
        guard case .file(let file, let offset) = kind else { return false }
        return (file.currentCount ?? 0) < offset + count
    }
}

/// An open file that lives as long as somebody maps it.
final class MappedFile: Sendable {
    let descriptor: FileDescriptor
    /// Its bytes when it was opened.
    let count: Int

    init(_ path: FilePath) throws(SandboxError) {
        do {
            // Non-blocking, so that opening a FIFO does not wait for a writer.
            descriptor = try FileDescriptor.open(path, .readOnly, options: [.closeOnExec, .nonBlocking])
        } catch {
            throw SandboxError(.systemCallFailed, "\(path) cannot be opened.", underlyingError: error)
        }
        var status = stat()
        guard unsafe fstat(descriptor.rawValue, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            try? descriptor.close()
            throw SandboxError(.invalidArgument, "\(path) is not a regular file, so it cannot be mapped.")
        }
        count = Int(status.st_size)
    }

    deinit { try? descriptor.close() }

    var currentCount: Int? {
        var status = stat()
        return unsafe fstat(descriptor.rawValue, &status) == 0 ? Int(status.st_size) : nil
    }
}

/// Memory of the host that guests can be shown without copying it, in any number of sandboxes at the same time.
///
/// What the host writes is seen by guests that have it mapped as ``WindowContents/Access/readOnly``, at once and
/// without any order; those with a copy of their own see it where they have not written themselves.
@safe public final class SharedMemory: Sendable {
    let file: FileDescriptor
    /// Its bytes.
    public let count: Int
    /// The host's mapping, until `deinit`.
    private nonisolated(unsafe) let base: UnsafeMutableRawPointer

    /// Makes memory that is zero.
    ///
    /// - Parameter count: the bytes, more than zero.
    /// - Throws: ``SandboxError``: `.invalidArgument`, `.systemCallFailed`.
    public init(count: Int) throws(SandboxError) {
        guard count > 0, count <= Int.max / 2 else {
            throw SandboxError(.invalidArgument, "There is no memory of \(count) bytes.")
        }
        let descriptor = unsafe shim_memory_file("microvm-shared")
        guard descriptor >= 0 else { throw Self.failure(-descriptor, count) }
        let size = Int(UInt64(count).roundedUp(to: AddressSpace.pageSize))
        guard ftruncate(descriptor, off_t(size)) == 0,
            case let mapping = unsafe mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0),
            let mapping = unsafe mapping, unsafe mapping != MAP_FAILED
        else {
            let error = errno
            close(descriptor)
            throw Self.failure(error, count)
        }
        file = FileDescriptor(rawValue: descriptor)
        self.count = count
        unsafe base = mapping
    }

    /// Makes memory with these bytes.
    ///
    /// - Throws: as ``init(count:)``.
    public convenience init(_ bytes: [UInt8]) throws(SandboxError) {
        try self.init(count: bytes.count)
        unsafe UnsafeMutableRawBufferPointer(start: base, count: count).copyBytes(from: bytes)
    }

    deinit {
        // Made in `init`, of that size.
        unsafe munmap(base, Int(UInt64(count).roundedUp(to: AddressSpace.pageSize)))
        try? file.close()
    }

    private static func failure(_ error: Int32, _ count: Int) -> SandboxError {
        SandboxError(
            .systemCallFailed,
            "Could not make \(count) bytes of shared memory.",
            underlyingError: Errno(rawValue: error)
        )
    }

    /// Lends the bytes for reading.
    public func withBytes<Result>(_ body: (RawSpan) throws -> Result) rethrows -> Result {
        try body(unsafe UnsafeRawBufferPointer(start: base, count: count).bytes)
    }

    /// Lends the bytes for writing. Whoever else reads or writes them at the same time sees some of it.
    public func withMutableBytes<Result>(_ body: (inout MutableRawSpan) throws -> Result) rethrows -> Result {
        var span = unsafe UnsafeMutableRawBufferPointer(start: base, count: count).mutableBytes
        return try body(&span)
    }
}

/// One mapping of something into a window: the same object in all snapshots and sandboxes that have it.
final class WindowMapping: Sendable {
    let contents: WindowContents
    let access: WindowContents.Access

    init(_ contents: WindowContents, _ access: WindowContents.Access) {
        self.contents = contents
        self.access = access
    }

    /// Whole pages.
    var size: UInt64 { UInt64(contents.count).roundedUp(to: AddressSpace.pageSize) }
}
