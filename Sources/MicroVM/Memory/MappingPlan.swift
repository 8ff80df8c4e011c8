/// How a snapshot's pages come into a new sandbox's memory: most by mapping files, a few by copying.
struct MappingPlan: Sendable {
    /// Stretches to map, private and copied on write.
    private(set) var mapped: [PageMap.Run] = []
    /// Pages to copy afterwards, also into mapped stretches.
    private(set) var copied: [PageMap.Run] = []
    /// Pages within mapped stretches that are to be zero.
    private(set) var cleared: [Range<Int>] = []
    /// Whether anything is mapped that others may truncate.
    private(set) var isForeign = false
    /// All that are copied or cleared.
    private var privatePages: Set<Int> = []

    /// A gap of as many pages is mapped along with what lies around it.
    private static let bridgedGap = 16
    /// A run of as many pages is rather copied than mapped: about what a mapping costs.
    private static let copiedRun = 2
    /// More pages than this are not copied into each sandbox: 128 KiB.
    private static let copiedMaximum = 32
    /// More stretches than this are not mapped: a process can have 65,530 mappings unless the system is told otherwise.
    private static let mappedMaximum = 64

    /// - Parameters:
    ///   - pages: the snapshot's.
    ///   - windowPages: those that come another way, because zero does not mean there that they are.
    ///   - hostPages: those that host code uses without further ado. They are not mapped from files of others, who may
    ///     truncate them.
    /// - Throws: ``SandboxError/Code/systemCallFailed`` where pages have to be rearranged and there is no memory for
    ///   that.
    init(_ pages: PageMap, excluding windowPages: Range<Int>, hostPages: [Range<Int>]) throws(SandboxError) {
        var runs = pages.runs().filter { !windowPages.overlaps($0.pages) }
        var kept: [PageMap.Run] = []
        if runs.contains(where: \.store.isForeign) {
            let parts = runs.flatMap { $0.store.isForeign ? $0.split(at: hostPages) : [$0] }
            runs = parts.filter { run in !run.store.isForeign || !hostPages.contains { $0.overlaps(run.pages) } }
            kept = parts.filter { run in run.store.isForeign && hostPages.contains { $0.overlaps(run.pages) } }
        }
        if !mapInPlace(runs) { try mapRearranged(runs) }
        copied += kept
        isForeign = mapped.contains { $0.store.isForeign }
        privatePages = Set(copied.flatMap(\.pages) + cleared.joined())
    }

    /// Maps the runs where they are. Whether that takes few enough mappings and copies.
    private mutating func mapInPlace(_ runs: [PageMap.Run]) -> Bool {
        var copiedCount = 0
        for run in runs {
            if let last = mapped.last, last.store === run.store,
                run.firstIndex - last.firstIndex == run.pages.lowerBound - last.pages.lowerBound,
                run.pages.lowerBound - last.pages.upperBound <= Self.bridgedGap
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
            } else if run.pages.count <= Self.copiedRun {
                copied.append(run)
                copiedCount += run.pages.count
            } else {
                mapped.append(run)
            }
            guard copiedCount <= Self.copiedMaximum, mapped.count <= Self.mappedMaximum else { return false }
        }
        return true
    }

    /// Copies everything into one new file in which neighbours lie side by side, once for all sandboxes to come.
    private mutating func mapRearranged(_ runs: [PageMap.Run]) throws(SandboxError) {
        var clusters: [Range<Int>] = []
        var gap = Self.bridgedGap
        repeat {
            clusters.removeAll()
            for run in runs {
                if let last = clusters.last, run.pages.lowerBound - last.upperBound <= gap {
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
