import Testing

@testable import MicroVM

@Suite struct FaultLocatorTests {
    /// Three sandboxes with two regions of ten pages each, which leave a page free before them and one after.
    private static func locator(granularity: Int = 65536) -> FaultLocator {
        FaultLocator(
            start: 0x7000_0000_0000,
            sandboxCount: 3,
            stride: 22 * granularity,
            regionOffset: granularity,
            regionCount: 2,
            regionSize: 10 * granularity,
            granularity: granularity
        )
    }

    @Test(arguments: FaultLocator.granularities)
    func `the first, the second and the last page of each region are found`(granularity: Int) {
        let locator = Self.locator(granularity: granularity)
        for sandbox in 0..<3 {
            for region in 0..<2 {
                let start = locator.start + UInt((22 * sandbox + 1 + 10 * region) * granularity)
                #expect(locator.addresses(sandbox: sandbox, region: region).lowerBound == start)
                for page in [0, 1, 9] {
                    let expected = FaultLocator.Location(sandbox: sandbox, region: region, page: page)
                    for offset in [0, 1, 1024, granularity - 1] {
                        #expect(locator.locate(start + UInt(page * granularity + offset)) == expected)
                    }
                }
            }
        }
    }

    @Test func `addresses outside of the stretch are nowhere`() {
        let locator = Self.locator()
        #expect(locator.stretch == 0x7000_0000_0000..<0x7000_0000_0000 + 3 * 22 * 65536)
        for address in [0, 1, locator.start - 1, locator.stretch.upperBound, locator.stretch.upperBound + 65536, .max] {
            #expect(locator.locate(address) == nil)
        }
    }

    @Test func `addresses between the regions of two sandboxes are nowhere`() {
        let locator = Self.locator()
        for sandbox in 0..<3 {
            let addresses = locator.addresses(sandbox: sandbox)
            let memory = locator.start + UInt(sandbox * 22 * 65536)
            for address in [memory, memory + 65535, addresses.upperBound, addresses.upperBound + 65535] {
                #expect(locator.locate(address) == nil)
            }
            #expect(locator.locate(addresses.lowerBound)?.sandbox == sandbox)
            #expect(locator.locate(addresses.upperBound - 1)?.sandbox == sandbox)
        }
    }

    @Test func `a stretch may be filled without a gap and end at the end of the address space`() {
        let size = UInt(4 * 4096)
        let locator = FaultLocator(
            start: UInt.max - 2 * size + 1 - 4096,
            sandboxCount: 2,
            stride: Int(size),
            regionCount: 4,
            regionSize: 4096
        )
        for number in 0..<8 {
            let location = locator.locate(locator.start + UInt(number) * 4096)
            #expect(location == FaultLocator.Location(sandbox: number / 4, region: number % 4, page: 0))
        }
        #expect(locator.locate(locator.stretch.upperBound) == nil)
    }
}
