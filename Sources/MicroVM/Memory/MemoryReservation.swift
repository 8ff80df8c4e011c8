import Glibc
import SystemPackage

/// A stretch of address space for the memories of some sandboxes, reserved at once, with inaccessible pages before,
/// between and behind them.
@safe final class MemoryReservation: Sendable {
    static let guardSize = 1 << 20

    /// The first memory's first byte. The whole reservation is this object's until `deinit`.
    nonisolated(unsafe) let start: UnsafeMutableRawPointer
    /// How many bytes lie between the beginnings of two memories.
    let stride: Int
    /// The bytes of each memory.
    let memorySize: Int
    let count: Int
    /// The places that no memory has.
    private let free: Locked<[Int]>

    init(memorySize: Int, count: Int = 1) throws(SandboxError) {
        let (stride, isTooLarge) = memorySize.addingReportingOverflow(Self.guardSize)
        let (size, isTooMuch) = stride.multipliedReportingOverflow(by: count)
        let (reserved, isFarTooMuch) = size.addingReportingOverflow(Self.guardSize)
        guard !isTooLarge, !isTooMuch, !isFarTooMuch else { throw Self.failure(.noMemory, memorySize, count) }
        let mapping = unsafe mmap(nil, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let mapping = unsafe mapping, unsafe mapping != MAP_FAILED else {
            throw Self.failure(Errno(rawValue: errno), memorySize, count)
        }
        unsafe start = mapping + Self.guardSize
        self.stride = stride
        self.memorySize = memorySize
        self.count = count
        free = Locked((0..<count).reversed())
    }

    deinit {
        // The whole reservation, whatever has been mapped into it since.
        unsafe munmap(start - Self.guardSize, stride * count + Self.guardSize)
    }

    private static func failure(_ error: Errno, _ memorySize: Int, _ count: Int) -> SandboxError {
        SandboxError(
            .systemCallFailed,
            "Could not reserve address space for \(count) times \(memorySize) bytes of guest memory.",
            underlyingError: error
        )
    }

    /// Where a memory begins.
    func memory(at index: Int) -> UnsafeMutableRawPointer {
        precondition(index >= 0 && index < count)
        return unsafe start + index * stride
    }

    /// Gives a memory one of the places. It keeps it until ``clear(at:)``.
    func takePlace() throws(SandboxError) -> Int {
        guard let index = free.withLock({ $0.popLast() }) else {
            throw SandboxError(
                .systemCallFailed,
                "All \(count) places for guest memory are taken: memory of a closed sandbox is still in use somewhere."
            )
        }
        return index
    }

    /// Gives everything back that has been mapped for a memory, and leaves it reserved, for another memory to take.
    func clear(at index: Int) {
        let memory = unsafe memory(at: index)
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
        // Only this object's own reservation is replaced. Should there be no memory for that, the pages go at least.
        if unsafe mmap(memory, memorySize, PROT_NONE, flags, -1, 0) == MAP_FAILED {
            unsafe madvise(memory, memorySize, MADV_DONTNEED)
        }
        free.withLock { $0.append(index) }
    }
}
