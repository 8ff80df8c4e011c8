/// Finds out by arithmetic alone which page of which sandbox an address is in.
///
/// A pool reserves one stretch of address space. Its sandboxes lie `stride` bytes apart; in each, regions of one size
/// lie one after another. Nothing is looked up, so that whoever serves a fault needs nothing that a sandbox could be
/// changing at that moment.
struct FaultLocator: Hashable, Sendable {
    /// A page of a region.
    struct Location: Hashable, Sendable {
        /// Which sandbox, from 0.
        var sandbox: Int
        /// Which of its regions, from 0.
        var region: Int
        /// Which page of the region, from 0.
        var page: Int
    }

    /// Sizes of pages: powers of two from 4 to 64 KiB.
    static let granularities = [4096, 8192, 16384, 32768, 65536]

    /// Where the first sandbox's memory begins.
    let start: UInt
    let sandboxCount: Int
    /// Bytes from the beginning of one sandbox's memory to that of the next.
    let stride: Int
    /// Bytes from the beginning of a sandbox's memory to its first region.
    let regionOffset: Int
    let regionCount: Int
    /// Bytes, whole pages.
    let regionSize: Int
    /// Bytes of a page, one of ``granularities``.
    let granularity: Int

    /// Takes a layout that the library made itself; traps when it makes no sense.
    init(
        start: UInt,
        sandboxCount: Int,
        stride: Int,
        regionOffset: Int = 0,
        regionCount: Int = 1,
        regionSize: Int,
        granularity: Int = 4096
    ) {
        precondition(Self.granularities.contains(granularity), "pages have 4 to 64 KiB, a power of two")
        precondition(sandboxCount > 0 && regionCount > 0 && regionSize > 0 && regionOffset >= 0, "nothing to locate")
        precondition(
            start.isMultiple(of: UInt(granularity)) && stride.isMultiple(of: granularity)
                && regionOffset.isMultiple(of: granularity) && regionSize.isMultiple(of: granularity),
            "sandboxes and regions begin and end at pages"
        )
        let (regions, tooLarge) = regionCount.multipliedReportingOverflow(by: regionSize)
        precondition(!tooLarge && stride >= regionOffset && stride - regionOffset >= regions, "sandboxes overlap")
        let (size, overflow) = UInt(stride).multipliedReportingOverflow(by: UInt(sandboxCount))
        precondition(!overflow && size <= UInt.max - start, "the stretch is longer than the address space")
        self.start = start
        self.sandboxCount = sandboxCount
        self.stride = stride
        self.regionOffset = regionOffset
        self.regionCount = regionCount
        self.regionSize = regionSize
        self.granularity = granularity
    }

    /// The whole stretch, what lies between the regions included.
    var stretch: Range<UInt> { start..<start + UInt(stride) * UInt(sandboxCount) }

    /// The page an address is in; nil for every address outside of the regions.
    func locate(_ address: UInt) -> Location? {
        guard stretch.contains(address) else { return nil }
        let (sandbox, rest) = (address - start).quotientAndRemainder(dividingBy: UInt(stride))
        guard rest >= UInt(regionOffset) else { return nil }
        let (region, offset) = (rest - UInt(regionOffset)).quotientAndRemainder(dividingBy: UInt(regionSize))
        guard region < UInt(regionCount) else { return nil }
        return Location(sandbox: Int(sandbox), region: Int(region), page: Int(offset) / granularity)
    }

    /// The addresses of a region.
    func addresses(sandbox: Int, region: Int) -> Range<UInt> {
        precondition(0..<sandboxCount ~= sandbox && 0..<regionCount ~= region, "there is no such region")
        let first = start + UInt(sandbox) * UInt(stride) + UInt(regionOffset) + UInt(region) * UInt(regionSize)
        return first..<first + UInt(regionSize)
    }

    /// The addresses of all regions of a sandbox, which lie one after another.
    func addresses(sandbox: Int) -> Range<UInt> {
        let first = addresses(sandbox: sandbox, region: 0)
        return first.lowerBound..<addresses(sandbox: sandbox, region: regionCount - 1).upperBound
    }
}
