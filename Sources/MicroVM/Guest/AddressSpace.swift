import CShims

/// Where everything lies in a guest's memory.
///
/// Guest virtual and guest physical addresses are the same, in one KVM memory slot that begins at 0. From low to high:
/// the null guard, the supervisor's pages, trampoline, mailbox and import thunks, the argument arena, the stack between
/// its guards, the thread-local block, the module's image, the heap, the windows, and last the page tables, which are
/// not mapped at all. Regions never touch unless they belong together, so running off one of them faults.
///
/// To find the pages that were written costs time for each stretch of 2 MiB of the host's addresses that has any, and
/// for each page of it, written or not. So the host places a memory where ``hostBoundary`` begins a stretch: what calls
/// write of the library's pages, and the arena's beginning, are the few last pages of one; the stack's top, the
/// variables of a small module and the heap's beginning lie in another.
final class AddressSpace: Sendable {
    /// One contiguous stretch of guest memory with the same permissions.
    struct Region: Sendable {
        var range: Range<UInt64>
        var permissions: GuestModule.Permissions
        /// Whether ring 3 may use it at all.
        var isUser = true
        /// Whether pointers that the guest hands to the host may point there.
        var isGuestOwned = true
    }

    static let pageSize: UInt64 = 4096
    static let largePageSize: UInt64 = 2 << 20
    /// More than any stack probe skips, and what Linux keeps free below a process's stack.
    static let stackGuardSize: UInt64 = 1 << 20
    /// Separates regions that must not run into each other.
    static let guardSize: UInt64 = 64 << 10
    /// Where the trampoline saves the extended state of a call that is held.
    static let vectorState = UInt64(SHIM_VECTOR_STATE)..<UInt64(SHIM_VECTOR_STATE + SHIM_VECTOR_STATE_SIZE)
    /// Below it nothing is mapped, and nothing above ``heap`` is ever written by a guest but windows.
    static let lowestPage = UInt64(SHIM_SUPERVISOR_CODE)
    /// The part of the argument arena, and of the stack, that is to lie near to what else calls write.
    private static let usualArenaSize: UInt64 = 256 << 10
    private static let usualStackSize: UInt64 = 128 << 10
    /// Room behind the thread pointer: its own address, and the canary at +0x28.
    static let threadControlBlockSize: UInt64 = 64

    /// Every mapped region, by ascending address, without overlap.
    let regions: [Region]
    let imageBase: UInt64
    let imageSize: UInt64
    /// The thread pointer (FS base): the thread-local block ends here, the thread control block begins.
    let threadPointer: UInt64
    private let threadLocal: Range<UInt64>
    let stack: Range<UInt64>
    let arena: Range<UInt64>
    /// As large as it can become.
    let heap: Range<UInt64>
    /// Where the heap ends as long as nobody has grown it.
    let initialHeapEnd: UInt64
    /// Where files and memory of the host can be mapped.
    let windows: [Range<UInt64>]
    let pageTables: Range<UInt64>
    /// The address that the host is to place at a multiple of 2 MiB: less than that, and a multiple of 64 KiB. Nothing
    /// but time depends on it.
    let hostBoundary: UInt64
    /// The pages that ring 3 or an exception can write, outside of windows, in ascending order; those that touch are
    /// one.
    let writablePages: [Range<Int>]
    /// What it was laid out for.
    let sizes: Sizes

    /// The bytes of guest physical memory, page tables included.
    var size: UInt64 { pageTables.upperBound }

    /// Everything the layout depends on.
    struct Sizes: Hashable, Sendable {
        var importCount: Int
        var threadLocalSize: UInt64 = 0
        var threadLocalAlignment: UInt64 = 1
        var imageSize: UInt64 = 0
        var imageAlignment: UInt64 = pageSize
        var image: [GuestModule.Mapping] = []
        var stackSize: UInt64
        var arenaSize: UInt64
        /// Image, stack, arena and heap together.
        var memoryLimit: UInt64
        /// How much of ``memoryLimit`` is there to begin with.
        var initialMemorySize: UInt64?
        var windowCount = 0
        /// Of each of them.
        var windowSize: UInt64 = 0
    }

    /// Lays out an address space, or throws `.invalidConfiguration` when the parts do not fit into the limit.
    ///
    /// Sizes come from a validated module and a validated configuration, so none of the sums can overflow.
    init(_ sizes: Sizes) throws(SandboxError) {
        self.sizes = sizes
        let fixed = sizes.imageSize + sizes.stackSize + sizes.arenaSize
        let initialSize = sizes.initialMemorySize ?? sizes.memoryLimit
        guard fixed + Self.pageSize <= min(initialSize, sizes.memoryLimit) else {
            throw SandboxError(
                .invalidConfiguration,
                """
                The module's image (\(sizes.imageSize) bytes), the stack (\(sizes.stackSize)) and the argument arena \
                (\(sizes.arenaSize)) leave no heap within \(min(initialSize, sizes.memoryLimit)) bytes of memory; \
                raise memoryLimit and initialMemorySize or lower the others.
                """
            )
        }
        let page = Self.pageSize
        func supervisor(_ address: Int32, _ permissions: GuestModule.Permissions) -> Region {
            let start = UInt64(address)
            return Region(range: start..<start + page, permissions: permissions, isUser: false, isGuestOwned: false)
        }
        let thunks = UInt64(SHIM_THUNKS)
        let thunksEnd = (thunks + UInt64(max(sizes.importCount, 1)) * UInt64(SHIM_THUNK_SIZE)).roundedUp(to: page)
        var regions = [
            supervisor(SHIM_SUPERVISOR_CODE, [.read, .execute]),
            supervisor(SHIM_SUPERVISOR_TABLES, [.read]),
            supervisor(SHIM_EXCEPTION_STACK, [.read, .write]),
            supervisor(SHIM_DOUBLE_FAULT_STACK, [.read, .write]),
            Region(range: Self.vectorState, permissions: [.read, .write], isGuestOwned: false),
            Region(
                range: UInt64(SHIM_TRAMPOLINE)..<UInt64(SHIM_TRAMPOLINE) + page,
                permissions: [.read, .execute],
                isGuestOwned: false
            ),
            Region(
                range: UInt64(SHIM_MAILBOX)..<UInt64(SHIM_MAILBOX) + page,
                permissions: [.read, .write],
                isGuestOwned: false
            ),
            Region(range: thunks..<thunksEnd, permissions: [.read, .execute], isGuestOwned: false),
        ]

        let arenaBase = thunksEnd + Self.guardSize
        arena = arenaBase..<arenaBase + sizes.arenaSize
        regions.append(Region(range: arena, permissions: [.read, .write]))

        let boundary = (arenaBase + min(sizes.arenaSize, Self.usualArenaSize)).roundedUp(to: Self.guardSize)
        hostBoundary = boundary % Self.largePageSize
        // As low as the guard allows, with its usual part at the beginning of a stretch.
        let lowestEnd = arena.upperBound + Self.stackGuardSize + sizes.stackSize
        let hotBase = boundary + (lowestEnd - Self.usualStackSize - boundary).roundedUp(to: Self.largePageSize)
        let stackEnd = hotBase + Self.usualStackSize
        stack = stackEnd - sizes.stackSize..<stackEnd
        regions.append(Region(range: stack, permissions: [.read, .write]))

        let threadLocalBase = stack.upperBound + Self.guardSize
        threadPointer = threadLocalBase + sizes.threadLocalSize.roundedUp(to: max(sizes.threadLocalAlignment, 64))
        threadLocal = threadLocalBase..<(threadPointer + Self.threadControlBlockSize).roundedUp(to: page)
        regions.append(Region(range: threadLocal, permissions: [.read, .write]))

        imageBase = (threadLocal.upperBound + page).roundedUp(to: max(sizes.imageAlignment, page))
        imageSize = sizes.imageSize
        for mapping in sizes.image {
            let mapped = mapping.range.lowerBound + imageBase..<mapping.range.upperBound + imageBase
            regions.append(Region(range: mapped, permissions: mapping.permissions))
        }

        let heapBase = imageBase + sizes.imageSize + Self.guardSize
        heap = heapBase..<heapBase + (sizes.memoryLimit - fixed) / page * page
        initialHeapEnd = min(heap.upperBound, heapBase + (initialSize - fixed) / page * page)
        regions.append(Region(range: heap, permissions: [.read, .write]))

        var end = heap.upperBound
        var windows: [Range<UInt64>] = []
        for _ in 0..<sizes.windowCount {
            let base = (end + Self.guardSize).roundedUp(to: Self.largePageSize)
            end = base + sizes.windowSize
            windows.append(base..<end)
            regions.append(Region(range: base..<end, permissions: [.read, .write]))
        }
        self.windows = windows

        let tablesBase = end + Self.guardSize
        pageTables = tablesBase..<tablesBase + UInt64(PageTables.pageCount(for: regions)) * page
        self.regions = regions
        writablePages = Self.writablePages(of: regions, below: heap.upperBound)
    }

    private static func writablePages(of regions: [Region], below end: UInt64) -> [Range<Int>] {
        var writable: [Range<Int>] = []
        for region in regions where region.permissions.contains(.write) && region.range.upperBound <= end {
            let pages = Int(region.range.lowerBound / pageSize)..<Int(region.range.upperBound / pageSize)
            if let last = writable.last, last.upperBound == pages.lowerBound {
                writable[writable.count - 1] = last.lowerBound..<pages.upperBound
            } else {
                writable.append(pages)
            }
        }
        return writable
    }

    /// Whether an address lies in one of the unmapped stretches around the stack.
    func isStackGuard(_ address: UInt64) -> Bool {
        (arena.upperBound..<stack.lowerBound).contains(address)
            || (stack.upperBound..<threadLocal.lowerBound).contains(address)
    }

    /// Calls `body` with each part of a stretch of pages that is writable, in ascending order.
    func forEachWritablePart(of pages: Range<Int>, _ body: (Range<Int>) -> Void) {
        // By bisection, as in `permits`.
        var low = 0
        var high = writablePages.count
        while low < high {
            let middle = (low + high) / 2
            if writablePages[middle].upperBound <= pages.lowerBound { low = middle + 1 } else { high = middle }
        }
        while low < writablePages.count, writablePages[low].lowerBound < pages.upperBound {
            body(writablePages[low].clamped(to: pages))
            low += 1
        }
    }

    /// The pages that ring 3 can write, outside of windows, in ascending order.
    var pagesWritableByGuest: [Range<Int>] {
        regions.filter { $0.isUser && $0.permissions.contains(.write) && window(at: $0.range.lowerBound) == nil }
            .map { Int($0.range.lowerBound / Self.pageSize)..<Int($0.range.upperBound / Self.pageSize) }
    }

    /// The numbers of all pages from the first window's to the last one's.
    var windowPages: Range<Int> {
        guard let first = windows.first, let last = windows.last else { return 0..<0 }
        return Int(first.lowerBound / Self.pageSize)..<Int(last.upperBound / Self.pageSize)
    }

    /// The pages that calls go through, which the host writes and reads all the time.
    var hostPages: [Range<Int>] {
        let page = UInt64(Self.pageSize)
        let mailbox = UInt64(SHIM_MAILBOX)
        return [Self.vectorState, mailbox..<mailbox + page, arena].map {
            Int($0.lowerBound / page)..<Int($0.upperBound / page)
        }
    }

    func pages(ofWindow index: Int) -> Range<Int> {
        Int(windows[index].lowerBound / Self.pageSize)..<Int(windows[index].upperBound / Self.pageSize)
    }

    /// The window that an address lies in.
    func window(at address: UInt64) -> Int? {
        guard let first = windows.first, address >= first.lowerBound else { return nil }
        // All are as large, and as far apart.
        let distance = windows.count > 1 ? windows[1].lowerBound - first.lowerBound : UInt64(first.count)
        let index = (address - first.lowerBound) / max(distance, 1)
        guard index < UInt64(windows.count), windows[Int(index)].contains(address) else { return nil }
        return Int(index)
    }

    /// Whether the guest itself may use all of these bytes that way, and they are its own; none at all are always
    /// permitted.
    ///
    /// The range may span neighbouring regions that touch, such as a module's constants and its variables.
    func permits(_ permissions: GuestModule.Permissions, address: UInt64, count: UInt64) -> Bool {
        guard count > 0 else { return true }
        let (end, overflow) = address.addingReportingOverflow(count)
        guard !overflow else { return false }
        // The last region that begins at or before the address, found by bisection: a hostile module can have tens of
        // thousands of them.
        var low = 0
        var high = regions.count
        while low < high {
            let middle = (low + high) / 2
            if regions[middle].range.lowerBound <= address { low = middle + 1 } else { high = middle }
        }
        guard low > 0 else { return false }
        var covered = address
        for index in (low - 1)..<regions.count {
            let region = regions[index]
            guard region.range.contains(covered), region.isGuestOwned, region.permissions.isSuperset(of: permissions)
            else { return false }
            covered = region.range.upperBound
            if covered >= end { return true }
        }
        return false
    }
}

extension UInt64 {
    /// The smallest multiple of a power of two that is not below this value.
    func roundedUp(to alignment: UInt64) -> UInt64 { (self + alignment - 1) & ~(alignment - 1) }
}
