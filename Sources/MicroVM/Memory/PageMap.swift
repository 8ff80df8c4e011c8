/// The contents of a memory, page by page: a table whose unchanged parts are shared by all the maps that were made from
/// one another.
struct PageMap: Sendable {
    /// How many pages one entry stands for: 2 MiB.
    static let pagesPerEntry = 512

    private enum Entry: Sendable {
        case zero
        /// Pages one after the other in a store.
        case run(PageStore, firstIndex: Int)
        case table(Table)
    }

    /// 512 pages, wherever they are.
    private final class Table: Sendable {
        let addresses: [PageAddress]
        /// The stores of all of them, which live as long as this.
        let stores: [PageStore]

        init(addresses: [PageAddress], stores: [PageStore]) {
            self.addresses = addresses
            self.stores = stores
        }
    }

    private var entries: [Entry]
    /// How many pages are not zero.
    private(set) var pageCount = 0

    /// A memory of zeros.
    init(memorySize: UInt64) {
        let span = UInt64(Self.pagesPerEntry * GuestMemory.pageSize)
        entries = Array(repeating: .zero, count: Int(memorySize.roundedUp(to: span) / span))
    }

    /// Where a page's bytes are.
    func address(ofPage page: Int) -> PageAddress {
        let (entry, index) = page.quotientAndRemainder(dividingBy: Self.pagesPerEntry)
        switch entries[entry] {
        case .zero: return .zero
        case .run(let store, let first): return store.address(ofPage: first + index)
        case .table(let table): return table.addresses[index]
        }
    }

    /// Calls `body` with each page of a range and where its bytes are, in ascending order: for less than asking for one
    /// after the other.
    @inline(__always)
    func forEachAddress(
        of range: Range<Int>,
        _ body: (Int, PageAddress) throws(SandboxError) -> Void
    ) throws(SandboxError) {
        var page = range.lowerBound
        while page < range.upperBound {
            let (entry, index) = page.quotientAndRemainder(dividingBy: Self.pagesPerEntry)
            let count = min(range.upperBound - page, Self.pagesPerEntry - index)
            switch entries[entry] {
            case .zero:
                for offset in 0..<count { try body(page + offset, .zero) }
            case .run(let store, let first):
                for offset in 0..<count { try body(page + offset, store.address(ofPage: first + index + offset)) }
            case .table(let table):
                let addresses = table.addresses
                for offset in 0..<count { try body(page + offset, addresses[index + offset]) }
            }
            page += count
        }
    }

    /// The store a page is in, and its place there; none for a page of zeros.
    func location(ofPage page: Int) -> (store: PageStore, index: Int)? {
        let (entry, index) = page.quotientAndRemainder(dividingBy: Self.pagesPerEntry)
        switch entries[entry] {
        case .zero: return nil
        case .run(let store, let first): return (store, first + index)
        case .table(let table):
            let address = table.addresses[index]
            for store in table.stores {
                if let index = store.index(of: address) { return (store, index) }
            }
            return nil
        }
    }

    /// Gives pages other contents.
    ///
    /// - Parameters:
    ///   - changes: pages in ascending order with their new addresses, in `store` or zero.
    ///   - store: where they are; it may be none when all are zero.
    mutating func replace(_ changes: [(page: Int, address: PageAddress)], in store: PageStore?) {
        var position = 0
        while position < changes.count {
            let entry = changes[position].page / Self.pagesPerEntry
            var (addresses, stores) = contents(of: entry)
            while position < changes.count, changes[position].page / Self.pagesPerEntry == entry {
                let index = changes[position].page % Self.pagesPerEntry
                pageCount += (changes[position].address.isZero ? 0 : 1) - (addresses[index].isZero ? 0 : 1)
                addresses[index] = changes[position].address
                position += 1
            }
            if let store { stores.append(store) }
            // Those that have nothing here any more need not live for this.
            stores.removeAll { store in !addresses.contains { store.index(of: $0) != nil } }
            entries[entry] = stores.isEmpty ? .zero : .table(Table(addresses: addresses, stores: stores))
        }
    }

    /// Gives a stretch of pages the contents of a stretch of a store, for hardly any cost.
    mutating func replace(_ pages: Range<Int>, with store: PageStore, firstIndex: Int) {
        var page = pages.lowerBound
        while page < pages.upperBound {
            let index = firstIndex + page - pages.lowerBound
            if page % Self.pagesPerEntry == 0, pages.upperBound - page >= Self.pagesPerEntry {
                pageCount += Self.pagesPerEntry - nonzeroCount(of: page / Self.pagesPerEntry)
                entries[page / Self.pagesPerEntry] = .run(store, firstIndex: index)
                page += Self.pagesPerEntry
            } else {
                let end = min(pages.upperBound, (page / Self.pagesPerEntry + 1) * Self.pagesPerEntry)
                replace((page..<end).map { ($0, store.address(ofPage: index + $0 - page)) }, in: store)
                page = end
            }
        }
    }

    private func contents(of entry: Int) -> (addresses: [PageAddress], stores: [PageStore]) {
        switch entries[entry] {
        case .zero: (Array(repeating: .zero, count: Self.pagesPerEntry), [])
        case .run(let store, let first):
            ((0..<Self.pagesPerEntry).map { store.address(ofPage: first + $0) }, [store])
        case .table(let table): (table.addresses, table.stores)
        }
    }

    private func nonzeroCount(of entry: Int) -> Int {
        switch entries[entry] {
        case .zero: 0
        case .run: Self.pagesPerEntry
        case .table(let table): table.addresses.count { !$0.isZero }
        }
    }

    /// Calls `body` with each page whose contents may be others than in another map of a memory of the same size, in
    /// ascending order. What the two share costs nothing.
    func forEachDifference(from other: PageMap, _ body: (Int) throws(SandboxError) -> Void) throws(SandboxError) {
        for entry in entries.indices where !isShared(entry, with: other) {
            let (ours, _) = contents(of: entry)
            let (theirs, _) = other.contents(of: entry)
            for index in ours.indices where ours[index] != theirs[index] {
                try body(entry * Self.pagesPerEntry + index)
            }
        }
    }

    /// Calls `body` with each page of a range that is not zero, in ascending order.
    func forEachPage(in range: Range<Int>, _ body: (Int) throws(SandboxError) -> Void) throws(SandboxError) {
        var page = range.lowerBound
        while page < range.upperBound {
            let entry = page / Self.pagesPerEntry
            let end = min(range.upperBound, (entry + 1) * Self.pagesPerEntry)
            if case .zero = entries[entry] {
            } else {
                for page in page..<end where !address(ofPage: page).isZero { try body(page) }
            }
            page = end
        }
    }

    private func isShared(_ entry: Int, with other: PageMap) -> Bool {
        switch (entries[entry], other.entries[entry]) {
        case (.zero, .zero): true
        case (.run(let ours, let first), .run(let theirs, let otherFirst)): ours === theirs && first == otherFirst
        case (.table(let ours), .table(let theirs)): ours === theirs
        default: false
        }
    }

    /// A stretch of pages that lie one after the other in one store.
    struct Run {
        var pages: Range<Int>
        var store: PageStore
        var firstIndex: Int
    }

    /// All pages that are not zero, as the longest runs there are, in ascending order.
    func runs() -> [Run] {
        var runs: [Run] = []
        func append(_ pages: Range<Int>, _ store: PageStore, _ index: Int) {
            if let last = runs.last, last.pages.upperBound == pages.lowerBound, last.store === store,
                last.firstIndex + last.pages.count == index
            {
                runs[runs.count - 1].pages = last.pages.lowerBound..<pages.upperBound
            } else {
                runs.append(Run(pages: pages, store: store, firstIndex: index))
            }
        }
        for (entry, content) in entries.enumerated() {
            let first = entry * Self.pagesPerEntry
            switch content {
            case .zero: break
            case .run(let store, let index): append(first..<first + Self.pagesPerEntry, store, index)
            case .table:
                for page in first..<first + Self.pagesPerEntry {
                    if let (store, index) = location(ofPage: page) { append(page..<page + 1, store, index) }
                }
            }
        }
        return runs
    }
}
