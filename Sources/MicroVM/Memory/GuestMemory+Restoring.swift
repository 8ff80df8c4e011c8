import CShims
import Glibc

/// What a restore has done.
struct RestoredPages {
    /// Copied from the snapshot.
    var copied = 0
    /// Given back to the kernel.
    var dropped = 0
}

extension GuestMemory {
    /// The bytes of pages that are no file's any more, windows left out, where the kernel tells them. Changes nothing,
    /// and uses nothing that changes.
    var ownSize: UInt64? {
        let size = Int(addressSpace.heap.upperBound)
        var count = 0
        // Inside the memory's own place.
        let memory = unsafe UnsafeRawBufferPointer(start: base, count: size)
        guard unsafe (try? WrittenPages.find(in: memory) { count += $0.count }) == true else { return nil }
        return UInt64(count * Self.pageSize)
    }

    /// Up to as many written pages are copied back without looking at whether they need it.
    private static let fewPages = 64
    /// After as many restores in which most of the pages were idle, the idle ones are dropped.
    private static let idleRestoresMaximum = 8

    /// Gives every page the contents it has in an image.
    ///
    /// Pages that were written are found by asking the kernel; each is copied, and stays where it is. A restore costs
    /// what was written, and what is different between this image and the last one. The exception are pages beyond
    /// `limit` bytes, and those that have only been lying around for a while: they are dropped, where what lies behind
    /// them is what they shall be.
    ///
    /// The kernel need not be asked when no page can have become a written one since it was asked last. A page becomes
    /// one in a page fault, whoever writes it, and the kernel counts a thread's page faults, those among them that it
    /// has itself on the thread's behalf, in KVM_RUN or another system call. All are the virtual CPU's thread's but
    /// those that ``forgetWritten()`` is called for. Written pages stay what they are, also when they are swapped out:
    /// the same ones are put back as if the kernel had been asked. There are three other ways for a page to come, and
    /// none is open. Pages of a window come from other threads: with windows the kernel is always asked. Becoming part
    /// of a huge page, a page could be written without a fault: the memory has none. And KVM leaves page faults to
    /// threads of its own only where the interrupt controller is in the kernel: these virtual machines have none.
    ///
    /// - Parameters:
    ///   - image: of a memory of the same layout.
    ///   - limit: how many bytes of private pages may stay.
    ///   - method: how to find the pages.
    ///   - countsFaults: whether this is the virtual CPU's thread, as it always is for a memory that has one.
    func restore(
        to image: MemoryImage,
        keeping limit: UInt64,
        by method: WrittenPages.Method = WrittenPages.bestMethod,
        countsFaults: Bool = false
    ) throws(SandboxError) -> RestoredPages {
        if !served.isEmpty { while takeServedFailure() != nil {} }
        if image.heapEnd != heapEnd { try setHeapEnd(image.heapEnd) }
        let changedWindows = windows.indices.filter { windows[$0] !== image.windows[$0] }
        for index in changedWindows { try setWindow(index, image.windows[index]) }
        // Not where pages come without the thread, or go.
        let countsFaults = countsFaults && method == .scan && windows.isEmpty && !plan.isForeign
        let faults = countsFaults ? shim_thread_faults() : 0
        let found: WrittenPages.Found
        if countsFaults, knowsWritten, faults == written.faults {
            found = written
        } else if let asked = try findWrittenPages(by: method) {
            found = asked
        } else {
            return try restoreEverything(to: image)
        }

        var result = RestoredPages()
        var dropped: [Range<Int>] = []
        var idle: [Range<Int>] = []
        var idleCount = 0
        let kept = Int(min(limit, UInt64(Int.max))) / Self.pageSize
        let compares = found.count > Self.fewPages || method == .table
        let windowPages = image.windowPages
        for run in found.pages {
            try image.pages.forEachAddress(of: run) { page, address throws(SandboxError) in
                if address.isZero, windowPages.contains(page) {
                    // What is mapped there comes to light again.
                    dropped.append(page)
                } else if result.copied + idleCount >= kept, canDrop(page, for: image) {
                    dropped.append(page)
                } else if compares, isEqual(page, address) {
                    idle.append(page)
                    idleCount += 1
                } else {
                    try restore(page, address, of: image, isPrivate: true)
                    result.copied += 1
                }
            }
        }
        idleRestores = found.count > Self.fewPages && idleCount > found.count / 2 ? idleRestores + 1 : 0
        if idleRestores >= Self.idleRestoresMaximum {
            idleRestores = 0
            for page in idle.joined() where canDrop(page, for: image) { dropped.append(page) }
        }
        for run in dropped {
            result.dropped += run.count
            drop(run)
        }
        if image !== self.image {
            // Written pages have been seen to: another look at them changes nothing.
            try image.pages.forEachDifference(from: self.image.pages) { page throws(SandboxError) in
                guard writable.contains(page) || isInWindow(page) else { return }
                if !isInWindow(page), !plan.isForeign, isEqual(page, image.pages.address(ofPage: page)) { return }
                try restore(page, to: image)
                result.copied += 1
            }
        }
        for index in changedWindows { try restoreWindow(index, to: image, &result) }
        didRestore(image)
        knowsWritten = countsFaults && dropped.isEmpty
        if knowsWritten {
            written = found
            written.faults = faults
        }
        return result
    }

    /// Brings the pages of a window up to date that are not what is mapped there.
    private func restoreWindow(
        _ index: Int,
        to image: MemoryImage,
        _ result: inout RestoredPages
    ) throws(SandboxError) {
        try image.pages.forEachPage(in: addressSpace.pages(ofWindow: index)) { page throws(SandboxError) in
            try restore(page, to: image)
            result.copied += 1
        }
    }

    private func isInWindow(_ page: Int) -> Bool { image.windowPages.contains(page) }

    /// The pages that a guest or the host has written since they were last dropped; nothing where the kernel does not
    /// say.
    private func findWrittenPages(by method: WrittenPages.Method) throws(SandboxError) -> WrittenPages.Found? {
        var found = WrittenPages.Found()
        // As many as there usually are.
        found.pages.reserveCapacity(16)
        func find(in area: Range<Int>, _ body: (Range<Int>) -> Void) throws(SandboxError) -> Bool {
            let first = area.lowerBound
            return unsafe try WrittenPages.find(in: UnsafeRawBufferPointer(bytes(ofPages: area)), by: method) {
                body($0.lowerBound + first..<$0.upperBound + first)
            }
        }
        let isKnown: Bool
        if isPatched {
            isKnown = try find(in: writable) { found.add($0) }
        } else {
            // Others are private too, as copies that were made with the memory; but who could have written them?
            let first = addressSpace.writablePages.first?.lowerBound ?? writable.lowerBound
            isKnown = try find(in: first..<writable.upperBound) { run in
                addressSpace.forEachWritablePart(of: run) { found.add($0) }
            }
        }
        guard isKnown else { return nil }
        if !windows.isEmpty {
            for area in writableWindowPages { guard try find(in: area, { found.add($0) }) else { return nil } }
        }
        return found
    }

    /// Where nobody says what was written: everything goes, and what lies behind it is brought up to date.
    private func restoreEverything(to image: MemoryImage) throws(SandboxError) -> RestoredPages {
        forgetWritten()
        var result = RestoredPages()
        for area in [writable] + writableWindowPages {
            drop(area)
            result.dropped += area.count
        }
        for run in plan.copied {
            for page in run.pages {
                try restore(page, to: image)
                result.copied += 1
            }
        }
        for page in plan.cleared.joined() {
            try restore(page, to: image)
            result.copied += 1
        }
        try image.pages.forEachDifference(from: backing.pages) { page throws(SandboxError) in
            guard writable.contains(page) else { return }
            try restore(page, to: image)
            result.copied += 1
        }
        if backingEnd < writable.upperBound {
            try image.pages.forEachPage(in: backingEnd..<writable.upperBound) { page throws(SandboxError) in
                try restore(page, to: image)
                result.copied += 1
            }
        }
        for index in windows.indices { try restoreWindow(index, to: image, &result) }
        didRestore(image)
        return result
    }

    /// Whether a page that is dropped becomes what it is in an image.
    private func canDrop(_ page: Int, for image: MemoryImage) -> Bool {
        let address = image.pages.address(ofPage: page)
        if page >= backingEnd { return address.isZero }
        return plan.canDrop(page: page) && address == backing.pages.address(ofPage: page)
    }

    private func drop(_ pages: Range<Int>) {
        // Whole pages of this memory.
        let memory = unsafe bytes(ofPages: pages)
        unsafe madvise(memory.baseAddress, memory.count, MADV_DONTNEED)
    }

    private func restore(_ page: Int, to image: MemoryImage) throws(SandboxError) {
        try restore(page, image.pages.address(ofPage: page), of: image, isPrivate: false)
    }

    /// - Parameters:
    ///   - address: where the page's bytes are.
    ///   - isPrivate: whether the page is known to be no file's, so that it is there whatever happens.
    private func restore(
        _ page: Int,
        _ address: PageAddress,
        of image: MemoryImage,
        isPrivate: Bool
    ) throws(SandboxError) {
        if isInWindow(page) { return try restoreWindowPage(page, to: image) }
        let memory = unsafe bytes(ofPages: page..<page + 1)
        if address.isZero {
            try clear(page, isPrivate: isPrivate)
        } else if !address.isForeign, isPrivate || !plan.isForeign {
            // A page of a store that the image keeps alive.
            unsafe memory.copyMemory(
                from: UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: address.location), count: memory.count)
            )
        } else if let (store, index) = image.pages.location(ofPage: page) {
            unsafe try store.read(page: index, into: memory, byKernel: true)
        }
    }

    /// Whether a page has the bytes that are at an address.
    private func isEqual(_ page: Int, _ address: PageAddress) -> Bool {
        let memory = unsafe bytes(ofPages: page..<page + 1)
        if address.isZero { return UnsafeRawBufferPointer(memory).allZero }
        // A foreign page would have to be read first: it is copied, which needs no more.
        guard !address.isForeign else { return false }
        // As in `restore`.
        return unsafe memcmp(memory.baseAddress!, UnsafeRawPointer(bitPattern: address.location)!, memory.count) == 0
    }

    // MARK: - Taking an image

    /// Takes the contents of the memory as they are. Pages that are as they were in the last image are shared with it.
    func takeImage() throws(SandboxError) -> MemoryImage {
        let written = try findWrittenPages(by: WrittenPages.bestMethod)?.pages ?? [writable] + writableWindowPages
        var changes: [(page: Int, address: PageAddress)] = []
        var stored: [Int] = []
        for page in written.joined() {
            let isWindow = isInWindow(page)
            let address = image.pages.address(ofPage: page)
            let isNew = isWindow && address.isZero
            if !isNew, isEqual(page, address) { continue }
            // In a window, nothing but what is mapped is told by the absence of a page.
            if unsafe !isWindow && UnsafeRawBufferPointer(bytes(ofPages: page..<page + 1)).allZero {
                changes.append((page, .zero))
            } else {
                stored.append(page)
                changes.append((page, PageAddress(rawValue: .max)))
            }
        }
        let changedWindows = windows.indices.filter { windows[$0] !== image.windows[$0] }
        if !changedWindows.isEmpty {
            let kept = Set(written.joined())
            for index in changedWindows {
                try image.pages.forEachPage(in: addressSpace.pages(ofWindow: index)) { page in
                    if !kept.contains(page) { changes.append((page, .zero)) }
                }
            }
            changes.sort { $0.page < $1.page }
        }
        if changes.isEmpty, heapEnd == image.heapEnd, changedWindows.isEmpty { return image }
        var store: PageStore?
        if !stored.isEmpty {
            store = try PageStore(pageCount: stored.count) { writer throws(SandboxError) in
                var index = 0
                for run in Self.runs(of: stored) {
                    unsafe try writer.write(UnsafeRawBufferPointer(bytes(ofPages: run)), atPage: index)
                    index += run.count
                }
            }
            var index = 0
            for position in changes.indices where !changes[position].address.isZero {
                changes[position].address = store!.address(ofPage: index)
                index += 1
            }
        }
        // The heap has only grown since, and what is new there was zero before.
        var pages = image.pages
        pages.replace(changes, in: store)
        let taken = MemoryImage(pages: pages, heapEnd: heapEnd, windows: windows, windowPages: image.windowPages)
        didRestore(taken)
        return taken
    }

    private static func runs(of pages: [Int]) -> [Range<Int>] {
        var runs: [Range<Int>] = []
        for page in pages { runs.append(page) }
        return runs
    }
}

extension [Range<Int>] {
    /// Adds a page that lies behind all that are here.
    fileprivate mutating func append(_ page: Int) {
        if let last = last, last.upperBound == page {
            self[count - 1] = last.lowerBound..<page + 1
        } else {
            append(page..<page + 1)
        }
    }
}
