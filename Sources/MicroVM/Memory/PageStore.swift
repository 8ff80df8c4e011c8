import CShims
import Glibc
import SystemPackage

/// The bytes of some pages, one after the other in a file, mapped for reading: what snapshots are made of.
///
/// The file is one in memory that nobody else can reach, or a snapshot's file on disk. It is never written once the
/// store has been made.
@safe final class PageStore: Sendable {
    /// The descriptor, for mapping pages into guests. Closed in `deinit`.
    let file: FileDescriptor
    /// Where in the file the first page lies.
    let fileOffset: Int
    let pageCount: Int
    /// Whether others may truncate the file, so that reading through the mapping could raise SIGBUS.
    let isForeign: Bool
    /// The pages that the file had when the store was made, where it was made with holes. Those in holes are zero, also
    /// when the kernel gives the file pages there because a guest touches them.
    private let written: [Range<Int>]?
    /// The mapping of all pages, until `deinit`.
    private nonisolated(unsafe) let base: UnsafeMutableRawPointer

    /// Takes over a file that already has the pages.
    ///
    /// - Parameters:
    ///   - fileOffset: a multiple of the page size.
    ///   - written: where the file is not all holes, in ascending order, if that is known.
    init(
        file: FileDescriptor,
        fileOffset: Int,
        pageCount: Int,
        isForeign: Bool,
        written: [Range<Int>]? = nil
    ) throws(SandboxError) {
        let count = max(pageCount, 1) * GuestMemory.pageSize
        let mapping = unsafe mmap(nil, count, PROT_READ, MAP_SHARED, file.rawValue, fileOffset)
        guard let mapping = unsafe mapping, unsafe mapping != MAP_FAILED else {
            let error = Errno(rawValue: errno)
            try? file.close()
            throw SandboxError(.systemCallFailed, "A snapshot's pages could not be mapped.", underlyingError: error)
        }
        unsafe base = mapping
        self.file = file
        self.fileOffset = fileOffset
        self.pageCount = pageCount
        self.isForeign = isForeign
        self.written = written
    }

    /// Fills a new file in memory; pages that `fill` does not write are zero.
    convenience init(
        pageCount: Int,
        _ fill: (PageWriter) throws(SandboxError) -> Void
    ) throws(SandboxError) {
        let descriptor = unsafe shim_memory_file("microvm-snapshot")
        guard descriptor >= 0 else { throw PageWriter.failure(Errno(rawValue: -descriptor)) }
        let file = FileDescriptor(rawValue: descriptor)
        do throws(SandboxError) {
            guard ftruncate(descriptor, off_t(max(pageCount, 1) * GuestMemory.pageSize)) == 0 else {
                throw PageWriter.failure(Errno(rawValue: errno))
            }
            try fill(PageWriter(file: file))
        } catch {
            try? file.close()
            throw error
        }
        try self.init(file: file, fileOffset: 0, pageCount: pageCount, isForeign: false)
    }

    deinit {
        // Made in `init`, of that size.
        unsafe munmap(base, max(pageCount, 1) * GuestMemory.pageSize)
        try? file.close()
    }

    /// Throws `.invalidSnapshot` where somebody has truncated the file by now.
    func checkSize() throws(SandboxError) {
        guard isForeign else { return }
        var status = stat()
        guard unsafe fstat(file.rawValue, &status) == 0,
            Int(status.st_size) >= fileOffset + pageCount * GuestMemory.pageSize
        else { throw Self.truncated(nil) }
    }

    private static func truncated(_ error: Errno?) -> SandboxError {
        SandboxError(
            .invalidSnapshot,
            "The snapshot's file has become shorter or cannot be read any more, or that of a window.",
            underlyingError: error
        )
    }

    /// Where a page lies in this process.
    func address(ofPage index: Int) -> PageAddress {
        unsafe PageAddress(rawValue: UInt(bitPattern: base) + UInt(index * GuestMemory.pageSize) | (isForeign ? 1 : 0))
    }

    /// The bytes of some pages of a store that is nobody else's, as long as it lives.
    func bytes(_ index: Int, count: Int) -> UnsafeRawBufferPointer {
        precondition(!isForeign && index >= 0 && index + count <= pageCount)
        return unsafe UnsafeRawBufferPointer(
            start: base + index * GuestMemory.pageSize,
            count: count * GuestMemory.pageSize
        )
    }

    /// Whether the file has holes that are known, so that it can be mapped with what lies between its pages.
    var isSparse: Bool { written != nil }

    /// Whether a page is known to be zero; of a foreign file nobody knows.
    func isZero(page index: Int) -> Bool {
        guard !isForeign else { return false }
        // Not even looked at: the kernel would give the file a page for it.
        if let written, !written.contains(where: { $0.contains(index) }) { return true }
        return unsafe bytes(index, count: 1).allZero
    }

    /// Which page lies at an address, if it is one of this store's.
    func index(of address: PageAddress) -> Int? {
        let (distance, isBelow) = address.location.subtractingReportingOverflow(unsafe UInt(bitPattern: base))
        guard !isBelow, distance < UInt(pageCount * GuestMemory.pageSize) else { return nil }
        return Int(distance) / GuestMemory.pageSize
    }

    /// Copies a page's bytes, and fails where somebody has truncated the file.
    ///
    /// - Parameter byKernel: whether `destination` may turn out not to be there, which is an error then.
    func read(
        page index: Int,
        into destination: UnsafeMutableRawBufferPointer,
        byKernel: Bool = false
    ) throws(SandboxError) {
        precondition(index < pageCount && destination.count == GuestMemory.pageSize)
        guard isForeign || byKernel else {
            unsafe destination.copyMemory(
                from: UnsafeRawBufferPointer(start: base + index * GuestMemory.pageSize, count: destination.count)
            )
            return
        }
        var read = 0
        while read < destination.count {
            let rest = unsafe UnsafeMutableRawBufferPointer(rebasing: destination[read...])
            let offset = off_t(fileOffset + index * GuestMemory.pageSize + read)
            let result = unsafe pread(file.rawValue, rest.baseAddress, rest.count, offset)
            if result < 0, errno == EINTR { continue }
            guard result > 0 else {
                throw Self.truncated(result == 0 ? nil : Errno(rawValue: errno))
            }
            read += result
        }
    }
}

/// Writes pages into a file.
struct PageWriter {
    let file: FileDescriptor
    /// Where in the file the first page lies.
    var fileOffset = 0

    static func failure(_ error: Errno) -> SandboxError {
        SandboxError(.systemCallFailed, "There is no room for a snapshot's pages.", underlyingError: error)
    }

    /// Writes whole pages from one page of the file on.
    func write(_ pages: UnsafeRawBufferPointer, atPage index: Int) throws(SandboxError) {
        var written = 0
        while written < pages.count {
            let rest = unsafe UnsafeRawBufferPointer(rebasing: pages[written...])
            let offset = off_t(fileOffset + index * GuestMemory.pageSize + written)
            let result = unsafe pwrite(file.rawValue, rest.baseAddress, rest.count, offset)
            if result < 0, errno == EINTR { continue }
            guard result > 0 else { throw Self.failure(result == 0 ? .noSpace : Errno(rawValue: errno)) }
            written += result
        }
    }

    /// Writes the pages of a snapshot.
    func write(_ run: PageMap.Run, atPage index: Int) throws(SandboxError) {
        if !run.store.isForeign {
            return unsafe try write(run.store.bytes(run.firstIndex, count: run.pages.count), atPage: index)
        }
        let page = UnsafeMutableRawBufferPointer.allocate(byteCount: GuestMemory.pageSize, alignment: 16)
        defer { unsafe page.deallocate() }
        for offset in 0..<run.pages.count {
            unsafe try run.store.read(page: run.firstIndex + offset, into: page)
            unsafe try write(UnsafeRawBufferPointer(page), atPage: index + offset)
        }
    }
}

/// Where the bytes of one page of a snapshot are: an address in a ``PageStore``'s mapping, or nowhere for a page of
/// zeros. Two pages with the same address have the same bytes.
struct PageAddress: Hashable {
    /// The address; bit 0 where the store's file is others' as well.
    var rawValue: UInt

    static let zero = PageAddress(rawValue: 0)

    var isZero: Bool { rawValue == 0 }
    /// Whether it must be read with ``PageStore/read(page:into:)``.
    var isForeign: Bool { rawValue & 1 != 0 }
    var location: UInt { rawValue & ~1 }
}

extension UnsafeRawBufferPointer {
    /// Whether all bytes of a page are zero.
    var allZero: Bool {
        // The first word is zero, and each byte is equal to the one eight before it.
        unsafe load(as: UInt64.self) == 0 && memcmp(baseAddress!, baseAddress! + 8, count - 8) == 0
    }
}
