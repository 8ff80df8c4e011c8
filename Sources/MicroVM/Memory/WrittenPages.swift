import CShims
import Glibc
import SystemPackage

/// Finds the pages of a private mapping that were written, and so are not its file's any more.
///
/// A page that was swapped out counts as written. The page tables of this process are asked, not the guest's: under
/// shadow paging the guest's dirty bits say nothing.
@safe struct WrittenPages {
    /// Which of the kernel's ways there is.
    enum Method: Sendable, CaseIterable {
        /// The ioctl PAGEMAP_SCAN, Linux 6.7 and later.
        case scan
        /// The file /proc/self/pagemap: eight bytes for each page, written or not.
        case table
        /// None: /proc is not there. Every page has to be taken for a written one.
        case none
    }

    /// The best way there is on this kernel.
    static let bestMethod: Method = {
        let descriptor = shim_pagemap()
        guard descriptor >= 0 else { return .none }
        var run = shim_page_run()
        var walked: UInt64 = 0
        // An empty range: the answer says only whether the kernel knows the request.
        let result = unsafe shim_pagemap_scan(descriptor, 0, 0, &run, 1, &walked)
        return result >= 0 ? .scan : .table
    }()

    private static let capacity = 128

    /// What was found.
    struct Found {
        var pages: [Range<Int>] = []
        var count = 0
        /// The page faults that the thread had had before.
        var faults: UInt64 = 0

        mutating func add(_ run: Range<Int>) {
            pages.append(run)
            count += run.count
        }
    }

    /// Calls `body` with each stretch of written pages in a memory, as page numbers from its beginning, in ascending
    /// order.
    ///
    /// - Returns: whether they could be found out.
    static func find(
        in memory: UnsafeRawBufferPointer,
        by method: Method = bestMethod,
        _ body: (Range<Int>) -> Void
    ) throws(SandboxError) -> Bool {
        guard let start = memory.baseAddress else { return true }
        let address = UInt64(UInt(bitPattern: start))
        let pagemap = shim_pagemap()
        guard method != .none, pagemap >= 0 else { return false }
        switch method {
        case .scan: try scan(pagemap, address, address + UInt64(memory.count), body)
        case .table: try readTable(pagemap, address, memory.count / GuestMemory.pageSize, body)
        case .none: break
        }
        return true
    }

    private static func scan(
        _ pagemap: Int32,
        _ start: UInt64,
        _ end: UInt64,
        _ body: (Range<Int>) -> Void
    ) throws(SandboxError) {
        let pageSize = UInt64(GuestMemory.pageSize)
        var position = start
        var error: Int32 = 0
        unsafe withUnsafeTemporaryAllocation(of: shim_page_run.self, capacity: capacity) { runs in
            while position < end {
                var walked: UInt64 = 0
                let found = unsafe shim_pagemap_scan(
                    pagemap,
                    position,
                    end,
                    runs.baseAddress!,
                    capacity,
                    &walked
                )
                guard found >= 0 else {
                    if found == -EINTR { continue }
                    error = -found
                    return
                }
                for index in 0..<Int(found) {
                    let run = unsafe runs[index]
                    body(Int((run.start - start) / pageSize)..<Int((run.end - start) / pageSize))
                }
                // A full buffer ends the walk before the end: it goes on from there.
                guard walked > position else { return }
                position = walked
            }
        }
        if error != 0 { throw failure(error) }
    }

    private static let present: UInt64 = 1 << 63
    private static let swapped: UInt64 = 1 << 62
    private static let fileOrShared: UInt64 = 1 << 61

    /// The page of zeros, which has been read and not written, looks like a written one here: to restore that one too
    /// is no mistake.
    private static func readTable(
        _ pagemap: Int32,
        _ start: UInt64,
        _ count: Int,
        _ body: (Range<Int>) -> Void
    ) throws(SandboxError) {
        let first = Int(start) / GuestMemory.pageSize
        var page = 0
        var open: Int?
        var error: Int32 = 0
        unsafe withUnsafeTemporaryAllocation(of: UInt64.self, capacity: 4096) { words in
            while page < count {
                let wanted = min(count - page, words.count) * 8
                let read = unsafe pread(pagemap, words.baseAddress, wanted, off_t((first + page) * 8))
                if read < 0, errno == EINTR { continue }
                guard read >= 8 else {
                    error = read < 0 ? errno : EIO
                    return
                }
                for index in 0..<read / 8 {
                    let word = unsafe words[index]
                    let isWritten = word & (present | swapped) != 0 && word & fileOrShared == 0
                    if isWritten, open == nil { open = page }
                    if !isWritten, let begun = open {
                        body(begun..<page)
                        open = nil
                    }
                    page += 1
                }
            }
        }
        if error != 0 { throw failure(error) }
        if let open { body(open..<count) }
    }

    private static func failure(_ error: Int32) -> SandboxError {
        SandboxError(
            .systemCallFailed,
            "The kernel does not say which pages were written.",
            underlyingError: Errno(rawValue: error)
        )
    }
}
