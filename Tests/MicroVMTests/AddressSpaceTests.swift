import Testing

@testable import MicroVM

/// Where things lie, and who may use them: the map the host checks every pointer against, and the page tables.
@Suite struct AddressSpaceTests {
    private static let page: UInt64 = 4096

    /// Layouts of different kinds of modules, among them every one of guest-images.
    private static let layouts: [(name: String, sizes: AddressSpace.Sizes)] = {
        var layouts: [(String, AddressSpace.Sizes)] = [
            ("smallest", .init(importCount: 0, stackSize: page, arenaSize: page, memoryLimit: 3 * page)),
            (
                "with thousands of imports",
                .init(importCount: 5000, stackSize: 1 << 20, arenaSize: 4 << 20, memoryLimit: 64 << 20)
            ),
            (
                "with a large thread-local block",
                .init(
                    importCount: 1,
                    threadLocalSize: 1 << 20,
                    threadLocalAlignment: 4096,
                    stackSize: page,
                    arenaSize: page,
                    memoryLimit: 16 << 20
                )
            ),
            (
                "with an aligned image",
                .init(
                    importCount: 3,
                    imageSize: 6 << 20,
                    imageAlignment: 2 << 20,
                    image: [
                        .init(range: 0..<page, permissions: .read),
                        .init(range: page..<2 << 20, permissions: [.read, .execute]),
                        .init(range: (2 << 20) + page..<6 << 20, permissions: [.read, .write]),
                    ],
                    stackSize: 3 << 20,
                    arenaSize: 5 << 20,
                    memoryLimit: 100 << 20
                )
            ),
            ("of sixteen GiB", .init(importCount: 0, stackSize: 1 << 30, arenaSize: 3 << 30, memoryLimit: 16 << 30)),
        ]
        for guest in Guest.allCases {
            guard let module = try? guest.module() else { continue }
            layouts.append((guest.rawValue, module.addressSpaceSizes(SandboxConfiguration())))
        }
        return layouts
    }()

    private static func layout(_ name: String) throws -> AddressSpace {
        try AddressSpace(#require(layouts.first { $0.name == name }).sizes)
    }

    @Test(arguments: layouts.map(\.name))
    func `regions are in order, on whole pages, and never writable and executable`(_ name: String) throws {
        let layout = try Self.layout(name)
        var end: UInt64 = 0x10000
        for region in layout.regions {
            #expect(region.range.lowerBound >= end && !region.range.isEmpty)
            #expect(region.range.lowerBound % Self.page == 0 && region.range.upperBound % Self.page == 0)
            #expect(!region.permissions.isSuperset(of: [.write, .execute]))
            end = region.range.upperBound
        }
        #expect(layout.pageTables.lowerBound >= end + AddressSpace.guardSize)
        #expect(layout.size == layout.pageTables.upperBound)
        // The stack and what it could run into.
        let others = layout.regions.map(\.range).filter { $0 != layout.stack }
        for range in others {
            #expect(
                range.upperBound + AddressSpace.stackGuardSize <= layout.stack.lowerBound
                    || range.lowerBound >= layout.stack.upperBound + AddressSpace.guardSize
            )
        }
        for range in [layout.arena, layout.heap] {
            for other in layout.regions.map(\.range) where other != range {
                #expect(
                    other.upperBound + AddressSpace.guardSize <= range.lowerBound
                        || other.lowerBound >= range.upperBound + AddressSpace.guardSize
                )
            }
        }
    }

    @Test(arguments: layouts.map(\.name))
    func `what is permitted is exactly what the regions say`(_ name: String) throws {
        let layout = try Self.layout(name)
        let borders = Set(
            layout.regions.flatMap { [$0.range.lowerBound, $0.range.upperBound] } + [0, layout.size, .max]
        )
        let all: [GuestModule.Permissions] = [.read, .write, .execute, [.read, .write], [.read, .execute], []]
        // Byte by byte, from the definition.
        func isPermitted(_ permissions: GuestModule.Permissions, _ address: UInt64) -> Bool {
            layout.regions.contains {
                $0.isGuestOwned && $0.range.contains(address) && $0.permissions.isSuperset(of: permissions)
            }
        }
        for border in borders {
            for distance in [-9, -8, -1, 0, 1, 8] {
                let address = border &+ UInt64(bitPattern: Int64(distance))
                for count in [1, 2, 8, 9] as [UInt64] {
                    let (end, overflow) = address.addingReportingOverflow(count)
                    for permissions in all {
                        let expected = !overflow && (address..<end).allSatisfy { isPermitted(permissions, $0) }
                        if layout.permits(permissions, address: address, count: count) != expected {
                            Issue.record("\(permissions) of \(count) at \(String(address, radix: 16))")
                        }
                    }
                }
                #expect(layout.permits(.write, address: address, count: 0))
                for count: UInt64 in [.max, .max - 1, 1 << 63] {
                    #expect(!layout.permits(.read, address: address, count: count))
                }
            }
        }
    }

    @Test func `a range may span regions that touch, for what all of them permit`() throws {
        let layout = try Self.layout("with an aligned image")
        let start = layout.imageBase
        #expect(start % (2 << 20) == 0)
        #expect(layout.permits(.read, address: start, count: 2 << 20))
        #expect(layout.permits(.execute, address: start + Self.page, count: (2 << 20) - Self.page))
        #expect(!layout.permits(.execute, address: start, count: 2 << 20))
        // A page that is not there.
        #expect(!layout.permits(.read, address: start, count: (2 << 20) + 1))
        #expect(!layout.permits(.read, address: start, count: 6 << 20))
    }

    @Test(arguments: [0, 1, 63, 64, 65, 4096, 100_000], [1, 8, 64, 4096] as [UInt64])
    func `the thread pointer is aligned, and the block before it is mapped`(_ size: UInt64, _ alignment: UInt64) throws
    {
        let layout = try AddressSpace(
            .init(
                importCount: 2,
                threadLocalSize: size,
                threadLocalAlignment: alignment,
                stackSize: Self.page,
                arenaSize: Self.page,
                memoryLimit: 1 << 20
            )
        )
        #expect(layout.threadPointer % alignment == 0 && layout.threadPointer % 64 == 0)
        #expect(layout.permits([.read, .write], address: layout.threadPointer - size, count: size + 64))
    }

    // MARK: - Where the host finds what was written

    @Test(arguments: layouts.map(\.name))
    func `the writable pages are those of the writable regions outside of windows`(_ name: String) throws {
        let layout = try Self.layout(name)
        var end = 0
        for pages in layout.writablePages {
            // In order, and joined where they touch.
            #expect(!pages.isEmpty && pages.lowerBound > end)
            end = pages.upperBound
        }
        let lastPage = layout.regions.map { Int($0.range.upperBound / Self.page) }.max() ?? 0
        func isWritable(_ page: Int) -> Bool {
            let address = UInt64(page) * Self.page
            return layout.window(at: address) == nil
                && layout.regions.contains { $0.range.contains(address) && $0.permissions.contains(.write) }
        }
        let borders = Set(layout.regions.flatMap { [$0.range.lowerBound, $0.range.upperBound] } + [0])
        for border in borders.map({ Int($0 / Self.page) }) {
            for count in [1, 2, 40] {
                for first in max(border - count, 0)...border {
                    var found: [Int] = []
                    layout.forEachWritablePart(of: first..<first + count) { found += $0 }
                    #expect(found == (first..<first + count).filter(isWritable))
                }
            }
        }
        var all = 0
        layout.forEachWritablePart(of: 0..<lastPage) { all += $0.count }
        #expect(all == layout.writablePages.reduce(0) { $0 + $1.count })
    }

    @Test(arguments: layouts.map(\.name))
    func `what calls usually write lies in two stretches of the host's`(_ name: String) throws {
        let layout = try Self.layout(name)
        let large = AddressSpace.largePageSize
        #expect(layout.hostBoundary < large && layout.hostBoundary % AddressSpace.guardSize == 0)
        func stretch(_ address: UInt64) -> UInt64 { (address + large - layout.hostBoundary) / large }
        // The mailbox, and the arena as far as most arguments get: the last pages of the first stretch, unless there
        // are so many imports that it takes several.
        let mailbox = UInt64(0x21000)
        let arena = min(UInt64(layout.arena.count), 256 << 10)
        #expect(layout.sizes.importCount > 1000 || stretch(layout.arena.lowerBound) == stretch(mailbox))
        #expect(stretch(layout.arena.lowerBound + arena - 1) == stretch(layout.arena.lowerBound))
        let behind = stretch(layout.arena.lowerBound) + 1
        #expect(behind * large - (large - layout.hostBoundary) <= layout.arena.lowerBound + arena + 64 << 10)
        // The stack as far as most calls get, and the thread-local block, unless that is large.
        let stack = min(UInt64(layout.stack.count), 128 << 10)
        #expect(stretch(layout.stack.upperBound - stack) == stretch(layout.stack.upperBound - 1))
        #expect(stretch(layout.threadPointer) == stretch(layout.stack.upperBound))
        guard layout.sizes.imageAlignment < large, layout.sizes.imageSize < 1 << 20 else { return }
        #expect(stretch(layout.heap.lowerBound) == stretch(layout.stack.upperBound))
        // Nor do the guest's own page tables need more for it.
        #expect(layout.heap.lowerBound / large == (layout.stack.upperBound - stack) / large)
    }

    @Test func `memories lie where their layout wants them`() throws {
        for name in ["smallest", "with thousands of imports"] {
            let layout = try Self.layout(name)
            let image = MemoryImage(pages: PageMap(memorySize: layout.size), heapEnd: layout.initialHeapEnd)
            let reservation = try MemoryReservation(
                memorySize: Int(layout.size),
                boundary: layout.hostBoundary,
                count: 3
            )
            let memories = try [nil, reservation, reservation, reservation].map { reservation in
                try GuestMemory(addressSpace: layout, image: image, reservation: reservation)
            }
            for memory in memories {
                let address = unsafe UInt64(UInt(bitPattern: memory.base)) + layout.hostBoundary
                #expect(address % AddressSpace.largePageSize == 0)
            }
        }
    }

    // MARK: - Page tables

    /// What the processor would find for one page.
    private struct Leaf {
        var isWritable, isUser, isExecutable: Bool
        var target: UInt64
    }

    /// Walks tables as a processor does; every table must lie in the tables' own region.
    private func walk(_ address: UInt64, _ memory: GuestMemory) -> Leaf? {
        let tables = memory.addressSpace.pageTables
        var table = tables.lowerBound
        var leaf = Leaf(isWritable: true, isUser: true, isExecutable: true, target: 0)
        for level in stride(from: 3, through: 0, by: -1) {
            guard tables.contains(table), table % Self.page == 0 else {
                Issue.record("a table at \(String(table, radix: 16))")
                return nil
            }
            let entry = memory.loadWord(at: table + (address >> UInt64(12 + 9 * level)) % 512 * 8)
            guard entry & 1 != 0 else { return nil }
            // Accessed, and dirty where that means something: the processor has nothing left to write.
            if entry & 1 << 5 == 0 { Issue.record("an entry not marked accessed") }
            leaf.isWritable = leaf.isWritable && entry & 1 << 1 != 0
            leaf.isUser = leaf.isUser && entry & 1 << 2 != 0
            leaf.isExecutable = leaf.isExecutable && entry & 1 << 63 == 0
            table = entry & 0x000f_ffff_ffff_f000
            if level == 0 || (level == 1 && entry & 1 << 7 != 0) {
                if entry & 1 << 6 == 0 { Issue.record("an entry not marked dirty") }
                let size = UInt64(level == 0 ? 4096 : 2 << 20)
                leaf.target = table & ~(size - 1) | address & (size - 1)
                return leaf
            }
        }
        return nil
    }

    private static func memoryWithTables(_ layout: AddressSpace) throws -> GuestMemory {
        // All of it accessible, the tables behind the heap too.
        let image = MemoryImage(pages: PageMap(memorySize: layout.size), heapEnd: layout.size)
        let memory = try GuestMemory(addressSpace: layout, image: image)
        PageTables.write(for: layout, into: unsafe ImageWriter(memory: memory.bytes))
        return memory
    }

    @Test(arguments: layouts.map(\.name))
    func `the page tables say what the regions say, page by page`(_ name: String) throws {
        let layout = try Self.layout(name)
        let memory = try Self.memoryWithTables(layout)
        // All pages of small memories; of large ones those around each border, and a sample.
        var addresses: Set<UInt64> = []
        if layout.size < 32 << 20 {
            addresses.formUnion(stride(from: 0, to: layout.size, by: 4096))
        } else {
            addresses.formUnion(stride(from: 0, to: layout.size, by: Int(layout.size / 4096 / 4096 * 4096 + 4096)))
            for region in layout.regions {
                for border in [region.range.lowerBound, region.range.upperBound] {
                    for distance in [-2, -1, 0, 1] {
                        addresses.insert(border &+ UInt64(bitPattern: Int64(distance * 4096)))
                    }
                }
            }
        }
        for address in addresses {
            let region = layout.regions.first { $0.range.contains(address) }
            let leaf = walk(address, memory)
            guard let region else {
                if leaf != nil { Issue.record("\(String(address, radix: 16)) is mapped") }
                continue
            }
            guard let leaf else {
                Issue.record("\(String(address, radix: 16)) is not mapped")
                continue
            }
            let isRight =
                leaf.target == address && leaf.isUser == region.isUser
                && leaf.isWritable == region.permissions.contains(.write)
                && leaf.isExecutable == region.permissions.contains(.execute)
            if !isRight { Issue.record("\(String(address, radix: 16)): \(leaf) for \(region)") }
        }
        // Guards, the null pages, and the tables themselves are nobody's.
        for address in [
            0, 0xf000, layout.stack.lowerBound - Self.page, layout.stack.upperBound, layout.heap.upperBound,
            layout.heap.lowerBound - Self.page, layout.arena.lowerBound - Self.page, layout.arena.upperBound,
            layout.pageTables.lowerBound, layout.pageTables.upperBound - Self.page, layout.size, 1 << 47, 1 << 46,
        ] {
            #expect(walk(address, memory) == nil)
        }
    }

    @Test(arguments: layouts.map(\.name))
    func `the tables take the pages that were set aside for them, and no others`(_ name: String) throws {
        let layout = try Self.layout(name)
        let memory = try Self.memoryWithTables(layout)
        var pages = 0
        for page in stride(from: layout.pageTables.lowerBound, to: layout.pageTables.upperBound, by: 4096) {
            let isUsed = stride(from: page, to: page + 4096, by: 8).contains { memory.loadWord(at: $0) != 0 }
            pages += isUsed ? 1 : 0
        }
        // Directories for a GiB without any region stay empty.
        #expect(pages > 0 && pages <= PageTables.pageCount(for: layout.regions))
        #expect(UInt64(PageTables.pageCount(for: layout.regions)) * Self.page == UInt64(layout.pageTables.count))
        for region in layout.regions.prefix(8) {
            #expect(memory.loadWord(at: region.range.lowerBound) == 0)
        }
    }
}
