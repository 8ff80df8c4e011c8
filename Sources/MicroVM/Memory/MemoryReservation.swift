import Glibc
import SystemPackage

/// A stretch of address space for the memories of some sandboxes, reserved at once, with inaccessible pages before,
/// between and behind them.
@safe final class MemoryReservation: Sendable {
    static let guardSize = 1 << 20

    /// The first memory's first byte, at a multiple of 2 MiB, as all of them are.
    nonisolated(unsafe) let start: UnsafeMutableRawPointer
    /// What the kernel gave: this object's until `deinit`.
    private nonisolated(unsafe) let mapping: UnsafeMutableRawPointer
    private let mappingSize: Int
    /// How many bytes lie between the beginnings of two memories.
    let stride: Int
    /// The bytes of each memory.
    let memorySize: Int
    let count: Int
    /// The places that no memory has.
    private let free: Locked<[Int]>

    init(memorySize: Int, count: Int = 1) throws(SandboxError) {
        let alignment = AddressSpace.largePageSize
        guard memorySize > 0, count > 0, UInt64(memorySize) < 1 << 40, count < 1 << 20 else {
            throw Self.failure(.noMemory, memorySize, count)
        }
        // Neither can overflow.
        let stride = Int(UInt64(memorySize + Self.guardSize).roundedUp(to: alignment))
        mappingSize = stride * count + Self.guardSize + Int(alignment)
        let mapping = unsafe mmap(nil, mappingSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let mapping = unsafe mapping, unsafe mapping != MAP_FAILED else {
            throw Self.failure(Errno(rawValue: errno), memorySize, count)
        }
        unsafe self.mapping = mapping
        let first = UInt64(UInt(bitPattern: mapping)) + UInt64(Self.guardSize)
        unsafe start = mapping + Self.guardSize + Int(first.roundedUp(to: alignment) - first)
        self.stride = stride
        self.memorySize = memorySize
        self.count = count
        free = Locked((0..<count).reversed())
    }

    deinit {
        // The whole reservation, whatever has been mapped into it since.
        unsafe munmap(mapping, mappingSize)
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
