/// The guest's four-level page tables: written once, before the first entry, and never again.
///
/// 4 KiB pages where regions begin and end, 2 MiB pages in between. Accessed and dirty bits are set beforehand, so the
/// processor never writes to the tables either. Format: Intel SDM volume 3A, 4.5.
struct PageTables {
    private static let present: UInt64 = 1 << 0
    private static let writable: UInt64 = 1 << 1
    private static let user: UInt64 = 1 << 2
    private static let accessedAndDirty: UInt64 = 1 << 5 | 1 << 6
    private static let largePage: UInt64 = 1 << 7
    private static let noExecute: UInt64 = 1 << 63
    private static let entriesPerTable: UInt64 = 512
    private static let directorySpan: UInt64 = 1 << 30

    /// A run of pages of one size, all within one 2 MiB stretch unless they are large.
    private struct Run {
        var range: Range<UInt64>
        var isLarge: Bool
        var region: AddressSpace.Region
    }

    private static func forEachRun(of regions: [AddressSpace.Region], _ body: (Run) -> Void) {
        let large = AddressSpace.largePageSize
        for region in regions {
            var address = region.range.lowerBound
            while address < region.range.upperBound {
                let remaining = region.range.upperBound - address
                let isLarge = address % large == 0 && remaining >= large
                let end =
                    isLarge
                    ? address + remaining / large * large
                    : min(region.range.upperBound, (address + 1).roundedUp(to: large))
                body(Run(range: address..<end, isLarge: isLarge, region: region))
                address = end
            }
        }
    }

    /// How many pages the tables for these regions take: one root, one directory pointer table (the layout stays below
    /// 512 GiB), a directory for each GiB and a table for each 2 MiB that has small pages.
    static func pageCount(for regions: [AddressSpace.Region]) -> Int {
        var lastTable = UInt64.max
        var count = 2 + Int((regions.last?.range.upperBound ?? 0).roundedUp(to: directorySpan) / directorySpan)
        forEachRun(of: regions) { run in
            let table = run.range.lowerBound / AddressSpace.largePageSize
            if !run.isLarge, table != lastTable {
                lastTable = table
                count += 1
            }
        }
        return count
    }

    /// Writes the tables for an address space into its memory; the root is the first of their pages.
    static func write(for addressSpace: AddressSpace, into memory: ImageWriter) {
        var nextPage = addressSpace.pageTables.lowerBound
        func allocate() -> UInt64 {
            defer { nextPage += AddressSpace.pageSize }
            return nextPage
        }
        func setEntry(_ index: UInt64, of table: UInt64, _ value: UInt64) {
            memory.storeWord(value, at: table + index % entriesPerTable * 8)
        }
        let linked = present | writable | user | accessedAndDirty
        let root = allocate()
        let pointers = allocate()
        setEntry(0, of: root, pointers | linked)
        var directories: [UInt64] = []
        let end = addressSpace.regions.last?.range.upperBound ?? 0
        for index in 0..<end.roundedUp(to: directorySpan) / directorySpan {
            directories.append(allocate())
            setEntry(index, of: pointers, directories[Int(index)] | linked)
        }
        var table = UInt64(0)
        var tableIndex = UInt64.max
        forEachRun(of: addressSpace.regions) { run in
            let size = run.isLarge ? AddressSpace.largePageSize : AddressSpace.pageSize
            let flags = leafFlags(for: run.region) | (run.isLarge ? largePage : 0)
            let directoryIndex = run.range.lowerBound / AddressSpace.largePageSize
            if !run.isLarge, directoryIndex != tableIndex {
                tableIndex = directoryIndex
                table = allocate()
                let directory = directories[Int(run.range.lowerBound / directorySpan)]
                setEntry(directoryIndex, of: directory, table | linked)
            }
            for address in stride(from: run.range.lowerBound, to: run.range.upperBound, by: Int(size)) {
                let directory = directories[Int(address / directorySpan)]
                setEntry(address / size, of: run.isLarge ? directory : table, address | flags)
            }
        }
    }

    private static func leafFlags(for region: AddressSpace.Region) -> UInt64 {
        present | accessedAndDirty
            | (region.isUser ? user : 0)
            | (region.permissions.contains(.write) ? writable : 0)
            | (region.permissions.contains(.execute) ? 0 : noExecute)
    }
}
