import Glibc
import Testing

@testable import MicroVM

/// A written page that was swapped out is not in memory, and a written page all the same.
///
/// Needs the right to switch a swap file on, which as a rule is root's.
@Suite(.requiresKVM, .enabled(if: SwapFile.isPossible), .serialized, .timeLimit(.minutes(5)))
struct SwappedPageTests {
    @Test(arguments: [(WrittenPages.Method.scan, false), (.scan, true), (.table, false)])
    func `what was swapped out is put back like any other page`(
        _ method: WrittenPages.Method,
        _ countsFaults: Bool
    ) async throws {
        guard method == .table || WrittenPages.bestMethod == .scan else { return }
        let swap = try #require(SwapFile())
        defer { withExtendedLifetime(swap) {} }
        let sandbox = try await Guest.state.sandbox { $0.memoryLimit = 16 << 20 }
        try await sandbox.call("set_state", 4 as UInt64)
        let snapshot = try await sandbox.snapshot()
        for round in 1...5 as ClosedRange<UInt64> {
            try await sandbox.call("write_pages", 0 as UInt64, 200 as UInt64, round, 999 as UInt64)
            try await sandbox.call("set_state", 9 as UInt64)
            let swapped = try await sandbox.run { sandbox in
                let memory = try sandbox.memory
                let range = unsafe memory.bytes(ofPages: memory.writable)
                // MADV_PAGEOUT
                unsafe madvise(range.baseAddress, range.count, 21)
                let swapped = Self.swappedPages(of: memory)
                func restore() throws {
                    _ = try memory.restore(
                        to: snapshot.memory,
                        keeping: 16 << 20,
                        by: method,
                        countsFaults: countsFaults
                    )
                }
                try restore()
                // The first one had page faults of its own, which would have the next one ask the kernel.
                try restore()
                return swapped
            }
            #expect(swapped > 0)
            #expect(try await sandbox.call("get_state") == 4_004_004_004_004 as UInt64)
            // The heap's first word is state, too.
            let sum: UInt64 = try await sandbox.call("read_pages", 0 as UInt64, 1000 as UInt64, 1 as UInt64)
            #expect(sum == 4)
        }
    }

    /// How many pages /proc/self/pagemap says are in the swap file.
    private static func swappedPages(of memory: GuestMemory) -> Int {
        let descriptor = unsafe open("/proc/self/pagemap", O_RDONLY)
        defer { close(descriptor) }
        let first = unsafe Int(bitPattern: memory.base) / GuestMemory.pageSize
        return memory.writable.count { page in
            var word: UInt64 = 0
            return unsafe pread(descriptor, &word, 8, off_t((first + page) * 8)) == 8 && word & 1 << 62 != 0
        }
    }
}

/// A small swap file, switched on as long as this is there.
private final class SwapFile {
    private let workshop: Workshop

    static var isPossible: Bool { SwapFile() != nil }

    init?() {
        guard geteuid() == 0, let workshop = try? Workshop() else { return nil }
        let make = "fallocate -l 64M swap && chmod 600 swap && mkswap swap > /dev/null && swapon swap"
        guard workshop.run(make) else { return nil }
        self.workshop = workshop
    }

    deinit { _ = workshop.run("swapoff swap") }
}
