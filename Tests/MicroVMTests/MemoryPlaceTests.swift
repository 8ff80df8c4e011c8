import CShims
import Glibc
import SystemCallCounter
import Testing

@testable import MicroVM

/// Where the memories of sandboxes lie, and what making one costs all the others.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct MemoryPlaceTests {
    private static func place(_ sandbox: Sandbox) async throws -> Range<UInt> {
        try await sandbox.run { sandbox in
            let memory = try sandbox.memory
            let base = unsafe UInt(bitPattern: memory.base)
            return base..<base + UInt(memory.count)
        }
    }

    @Test(.enabled(if: mapping_changes_are_counted(), "A sanitizer counts for itself."))
    func `making a sandbox changes no mapping there is, and closing one takes two away`() async {
        await #expect(processExitsWith: .success) {
            // Whatever is made once.
            let first = try await Guest.arithmetic.sandbox()
            let snapshot = try await first.snapshot()
            #expect(try await Sandbox(from: snapshot).call("add", 2, 3) == 5)
            _ = await Resources.settled { $0.sandboxThreads == 1 }
            let before = mapping_changes()
            var sandboxes: [Sandbox] = []
            for _ in 0..<10 {
                sandboxes.append(try await Guest.arithmetic.sandbox())
                sandboxes.append(try await Sandbox(from: snapshot))
            }
            for sandbox in sandboxes { #expect(try await sandbox.call("add", 2, 3) == 5) }
            #expect(mapping_changes() == before)
            for sandbox in sandboxes { await sandbox.close() }
            // The memory, and the page that is shared with the virtual CPU.
            #expect(mapping_changes() == before + 40)
        }
    }

    @Test func `a sandbox is three mappings, and those of its thread's stack`() async {
        await #expect(processExitsWith: .success) {
            let first = try await Guest.arithmetic.sandbox()
            let snapshot = try await first.snapshot()
            _ = try await Sandbox(from: snapshot)
            let before = Resources().mappings
            var sandboxes: [Sandbox] = []
            for _ in 0..<20 { sandboxes.append(try await Guest.arithmetic.sandbox()) }
            for _ in 0..<20 { sandboxes.append(try await Sandbox(from: snapshot)) }
            let each = Double(Resources().mappings - before) / Double(sandboxes.count)
            // A few are the allocator's.
            #expect(each < 5.5, "\(each) mappings each")
        }
    }

    @Test func `nothing lies within a mebibyte of a memory`() async throws {
        var sandboxes: [Sandbox] = []
        for _ in 0..<8 { sandboxes.append(try await Guest.arithmetic.sandbox()) }
        let mappings = MemoryMapping.all.filter { $0.access != "---p" }
        for sandbox in sandboxes {
            let place = try await Self.place(sandbox)
            let boundary = try await sandbox.run { UInt(try $0.memory.addressSpace.hostBoundary) }
            #expect((place.lowerBound + boundary) % UInt(AddressSpace.largePageSize) == 0)
            let size = UInt(MemoryReservation.guardSize)
            for range in [place.lowerBound - size..<place.lowerBound, place.upperBound..<place.upperBound + size] {
                #expect(!mappings.contains { $0.range.overlaps(range) })
            }
            // It is this test that was looking at the right addresses.
            #expect(mappings.contains { $0.range.overlaps(place) })
        }
    }

    @Test func `addresses are used again`() async throws {
        await #expect(processExitsWith: .success) {
            var bases: Set<UInt> = []
            for _ in 0..<20 {
                let sandbox = try await Guest.arithmetic.sandbox()
                bases.insert(try await MemoryPlaceTests.place(sandbox).lowerBound)
                await sandbox.close()
            }
            #expect(bases.count <= 2)
        }
    }

    @Test func `addresses that somebody else has taken are left alone`() async throws {
        await #expect(processExitsWith: .success) {
            let sandbox = try await Guest.arithmetic.sandbox()
            let place = try await MemoryPlaceTests.place(sandbox)
            await sandbox.close()
            // A page in the middle of where the next memory would lie.
            let address = place.lowerBound + 5 << 20
            let taken = unsafe mmap(
                UnsafeMutableRawPointer(bitPattern: address),
                4096,
                PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
                -1,
                0
            )
            // Where there are no unused addresses the place was the kernel's choice, and may be somebody's by now.
            guard let taken = unsafe taken, unsafe taken != MAP_FAILED else { return }
            // This test's page.
            unsafe taken.storeBytes(of: 0x1234_5678, as: UInt64.self)
            for _ in 0..<3 {
                let other = try await Guest.arithmetic.sandbox()
                #expect(try await other.call("add", 2, 3) == 5)
                let otherPlace = try await MemoryPlaceTests.place(other)
                #expect(!otherPlace.contains(address))
            }
            #expect(unsafe taken.load(as: UInt64.self) == 0x1234_5678)
        }
    }

    @Test func `the stack of a sandbox's thread ends in a guard`() async throws {
        let sandboxes = [try await Guest.arithmetic.sandbox(), try await Guest.arithmetic.sandbox()]
        for sandbox in sandboxes {
            let (first, next) = await Self.accessStackEnd(sandbox)
            // The page at the end is the guard, and the one above it the stack's own.
            #expect(first == EFAULT && next == 0)
        }
    }

    /// Whether the kernel has guards that are part of a mapping, as Linux has since 6.13.
    private static func hasGuards() -> Bool {
        let page = unsafe mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        guard let page = unsafe page, unsafe page != MAP_FAILED else { return false }
        // This function's own page.
        defer { unsafe _ = munmap(page, 4096) }
        let install: Int32 = 102
        return unsafe madvise(page, 4096, install) == 0
    }

    /// The errors of reading the guard's page of the thread's stack and the one above it.
    private static func accessStackEnd(_ sandbox: isolated Sandbox) -> (Int32, Int32) {
        guard var end = unsafe stack_end_of_thread() else { return (-1, -1) }
        // The C library's own guard is no part of what it calls the stack.
        if !hasGuards() { unsafe end -= 4096 }
        var byte: UInt8 = 0
        // By way of the kernel, which says where there is nothing.
        return unsafe (shim_copy(&byte, end, 1), shim_copy(&byte, end + 4096, 1))
    }
}
