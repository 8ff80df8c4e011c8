/// How a snapshot's pages come into a new sandbox's memory: most by mapping files, a few by copying.
struct MappingPlan: Sendable {
    /// Pages of one kind, as they are mapped to begin with.
    struct Stretch: Sendable {
        var pages: Range<Int>
        /// Whose pages they are, private and copied on write; nobody's, and zero, unless given.
        var run: PageMap.Run?
        var isAccessible = true
    }

    /// What is mapped where, from page 0 to the end.
    private(set) var stretches: [Stretch] = []
    /// Stretches to map, private and copied on write.
    private var mapped: [PageMap.Run] = []
    /// Pages to copy afterwards, also into mapped stretches.
    private(set) var copied: [PageMap.Run] = []
    /// Pages within mapped stretches that are to be zero.
    private(set) var cleared: [Range<Int>] = []
    /// Whether anything is mapped that others may truncate.
    private(set) var isForeign = false
    /// All that are copied or cleared.
    private var privatePages: Set<Int> = []
    /// Where the heap ends: nothing is mapped across it.
    private let heapEnd: Int

    /// A gap of as many pages is mapped along with what lies around it.
    private static let bridgedGap = 16
    /// The same in a file with holes, where nothing lies in the gap: 8 MiB, enough for the arena and the stack as they
    /// usually are. A page that is touched there is the file's first, and costs twice, once for all sandboxes.
    private static let bridgedHole = 2048
    /// A run of as many pages is rather copied than mapped: about what a mapping costs.
    private static let copiedRun = 2
    /// As many pages of page tables are rather copied. They are looked at by no restore, and without a mapping of
    /// their own they are the heap's, if nothing inaccessible lies in between.
    private static let copiedTables = 16
    /// More pages than this are not copied into each sandbox: 128 KiB.
    private static let copiedMaximum = 32
    /// More stretches than this are not mapped: a process can have 65,530 mappings unless the system is told otherwise.
    private static let mappedMaximum = 64

    /// - Parameters:
    ///   - pages: the snapshot's.
    ///   - windowPages: those that come another way, because zero does not mean there that they are.
    ///   - heapEnd: where the snapshot's heap ends.
    ///   - addressSpace: the layout. Pages that host code uses without further ado are not mapped from files of others,
    ///     who may truncate them.
    /// - Throws: ``SandboxError/Code/systemCallFailed`` where pages have to be rearranged and there is no memory for
    ///   that.
    init(
        _ pages: PageMap,
        excluding windowPages: Range<Int>,
        heapEnd: UInt64,
        in addressSpace: AddressSpace
    ) throws(SandboxError) {
        self.heapEnd = Int(heapEnd) / GuestMemory.pageSize
        let tables = addressSpace.pageTables.pageRange
        var runs = pages.runs().filter { !windowPages.overlaps($0.pages) }
        var kept: [PageMap.Run] = []
        if tables.count <= Self.copiedTables {
            kept = runs.filter { $0.pages.overlaps(tables) }
            runs.removeAll { $0.pages.overlaps(tables) }
        }
        if runs.contains(where: \.store.isForeign) {
            let hostPages = addressSpace.hostPages
            let parts = runs.flatMap { $0.store.isForeign ? $0.split(at: hostPages) : [$0] }
            runs = parts.filter { run in !run.store.isForeign || !hostPages.contains { $0.overlaps(run.pages) } }
            kept += parts.filter { run in run.store.isForeign && hostPages.contains { $0.overlaps(run.pages) } }
        }
        if !mapInPlace(runs) { try mapRearranged(runs) }
        copied += kept
        isForeign = mapped.contains { $0.store.isForeign }
        privatePages = Set(copied.flatMap(\.pages) + cleared.joined())
        layOut(addressSpace, tables)
    }

    /// Fills what lies between the mapped runs.
    private mutating func layOut(_ addressSpace: AddressSpace, _ tables: Range<Int>) {
        let end = Int(addressSpace.size) / GuestMemory.pageSize
        // Where neither a part of the heap nor a window has to be kept inaccessible, the tables belong to the heap.
        let isWhole = addressSpace.windows.isEmpty && heapEnd >= addressSpace.heap.pageRange.upperBound
        let accessible = isWhole ? [0..<end] : [0..<heapEnd, max(tables.lowerBound, heapEnd)..<end]
        var position = 0
        func fill(upTo limit: Int) {
            while position < limit {
                let area = accessible.first { $0.contains(position) }
                let bound = area?.upperBound ?? accessible.first { $0.lowerBound > position }?.lowerBound ?? end
                stretches.append(Stretch(pages: position..<min(bound, limit), isAccessible: area != nil))
                position = min(bound, limit)
            }
        }
        for run in mapped {
            fill(upTo: run.pages.lowerBound)
            stretches.append(Stretch(pages: run.pages, run: run))
            position = run.pages.upperBound
        }
        fill(upTo: end)
    }

    /// Whether two stretches lie so near to each other that they are mapped as one.
    private func areNear(_ first: Range<Int>, _ second: Range<Int>, within gap: Int) -> Bool {
        second.lowerBound - first.upperBound <= gap
            && (second.lowerBound < heapEnd || first.upperBound > heapEnd)
    }

    /// Maps the runs where they are. Whether that takes few enough mappings and copies.
    private mutating func mapInPlace(_ runs: [PageMap.Run]) -> Bool {
        var copiedCount = 0
        for run in runs {
            let isSparse = run.store.isSparse
            var last = mapped.last
            if last == nil, isSparse, run.firstIndex == run.pages.lowerBound {
                // From the memory's beginning on, which is a hole.
                mapped.append(PageMap.Run(pages: 0..<0, store: run.store, firstIndex: 0))
                last = mapped.last
            }
            if let last, last.store === run.store,
                run.firstIndex - last.firstIndex == run.pages.lowerBound - last.pages.lowerBound,
                areNear(last.pages, run.pages, within: isSparse ? Self.bridgedHole : Self.bridgedGap)
            {
                // What lies in between in the store may be something else by now: then it is cleared.
                let inBetween = Set(
                    copied.lazy.filter { $0.pages.lowerBound >= last.pages.upperBound }.flatMap(\.pages)
                )
                for page in last.pages.upperBound..<run.pages.lowerBound where !inBetween.contains(page) {
                    if last.store.isZero(page: last.firstIndex + page - last.pages.lowerBound) { continue }
                    cleared.append(page..<page + 1)
                    copiedCount += 1
                }
                mapped[mapped.count - 1].pages = last.pages.lowerBound..<run.pages.upperBound
            } else if run.pages.count <= Self.copiedRun, !isSparse {
                copied.append(run)
                copiedCount += run.pages.count
            } else {
                mapped.append(run)
            }
            guard copiedCount <= Self.copiedMaximum, mapped.count <= Self.mappedMaximum else { return false }
        }
        mapped.removeAll { $0.pages.isEmpty }
        return true
    }

    /// Copies everything into one new file in which neighbours lie side by side, once for all sandboxes to come.
    private mutating func mapRearranged(_ runs: [PageMap.Run]) throws(SandboxError) {
        var clusters: [Range<Int>] = []
        var gap = Self.bridgedGap
        repeat {
            clusters.removeAll()
            for run in runs {
                if let last = clusters.last, areNear(last, run.pages, within: gap) {
                    clusters[clusters.count - 1] = last.lowerBound..<run.pages.upperBound
                } else {
                    clusters.append(run.pages)
                }
            }
            gap *= 4
        } while clusters.count > Self.mappedMaximum

        let store = try PageStore(pageCount: clusters.reduce(0) { $0 + $1.count }) { writer throws(SandboxError) in
            var rest = runs[...]
            var index = 0
            for cluster in clusters {
                while let run = rest.first, run.pages.lowerBound < cluster.upperBound {
                    try writer.write(run, atPage: index + run.pages.lowerBound - cluster.lowerBound)
                    rest.removeFirst()
                }
                index += cluster.count
            }
        }
        copied.removeAll()
        cleared.removeAll()
        mapped.removeAll()
        var index = 0
        for cluster in clusters {
            mapped.append(PageMap.Run(pages: cluster, store: store, firstIndex: index))
            index += cluster.count
        }
    }

    /// Whether a page that is dropped shows the snapshot's contents again.
    func canDrop(page: Int) -> Bool { !privatePages.contains(page) }
}

extension PageMap.Run {
    /// The same in parts, each of which lies inside one of the ranges or outside of all.
    fileprivate func split(at ranges: [Range<Int>]) -> [PageMap.Run] {
        var cuts = [pages.lowerBound, pages.upperBound]
        for range in ranges { cuts += [range.lowerBound, range.upperBound].filter { pages.contains($0) } }
        cuts = Set(cuts).sorted()
        return zip(cuts, cuts.dropFirst()).map { first, end in
            PageMap.Run(pages: first..<end, store: store, firstIndex: firstIndex + first - pages.lowerBound)
        }
    }
}

extension Range<UInt64> {
    /// The numbers of the pages that these bytes are.
    fileprivate var pageRange: Range<Int> {
        Int(lowerBound / AddressSpace.pageSize)..<Int(upperBound / AddressSpace.pageSize)
    }
}
