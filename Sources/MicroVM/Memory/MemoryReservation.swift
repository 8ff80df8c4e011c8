import Glibc
import SystemPackage

/// Address space for the memories of some sandboxes, reserved in few stretches, with inaccessible pages before, between
/// and behind the memories.
@safe final class MemoryReservation: Sendable {
    static let guardSize = 1 << 20

    /// What was reserved at once. The mapping is the reservation's own until that goes.
    @safe private struct Stretch: Sendable {
        /// The first memory's first byte. ``boundary`` bytes behind it and all others is a multiple of 2 MiB.
        nonisolated(unsafe) let start: UnsafeMutableRawPointer
        /// What the kernel gave.
        nonisolated(unsafe) let mapping: UnsafeMutableRawPointer
        let mappingSize: Int
        let places: Range<Int>
    }

    private struct Places {
        var stretches: [Stretch] = []
        /// The places that no memory has.
        var free: [Int] = []
        var count = 0
    }

    /// How many bytes lie between the beginnings of two memories of one stretch.
    private let stride: Int
    private let boundary: UInt64
    /// The bytes of each memory.
    let memorySize: Int
    private let places = Locked(Places())

    /// - Parameter boundary: which byte of each memory lies at a multiple of 2 MiB; less than that.
    init(memorySize: Int, boundary: UInt64 = 0, count: Int = 1) throws(SandboxError) {
        guard memorySize > 0, UInt64(memorySize) < 1 << 40 else { throw Self.failure(.noMemory, memorySize, count) }
        // Cannot happen: it is a remainder of that, of the library's own layout (`AddressSpace.hostBoundary`).
        precondition(boundary < AddressSpace.largePageSize)
        self.boundary = boundary
        // Cannot overflow.
        stride = Int(UInt64(memorySize + Self.guardSize).roundedUp(to: AddressSpace.largePageSize))
        self.memorySize = memorySize
        try reserve(count)
    }

    deinit {
        places.withLock { places in
            // The whole of each, whatever has been mapped into it since.
            for stretch in places.stretches { unsafe munmap(stretch.mapping, stretch.mappingSize) }
        }
    }

    /// How many memories there is room for.
    var count: Int { places.withLock { $0.count } }

    /// Sees to it that there is room for so many memories. What there is stays where it is.
    func reserve(_ count: Int) throws(SandboxError) {
        try places.withLock { places throws(SandboxError) in
            let more = count - places.count
            guard more > 0 else { return }
            guard count < 1 << 20 else { throw Self.failure(.noMemory, memorySize, count) }
            let stretch = try map(places.count..<count)
            places.stretches.append(stretch)
            places.free.insert(contentsOf: stretch.places.reversed(), at: 0)
            places.count = count
        }
    }

    private func map(_ places: Range<Int>) throws(SandboxError) -> Stretch {
        let alignment = AddressSpace.largePageSize
        let size = stride * places.count + Self.guardSize + Int(alignment)
        let mapping = unsafe mmap(nil, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let mapping = unsafe mapping, unsafe mapping != MAP_FAILED else {
            throw Self.failure(Errno(rawValue: errno), memorySize, places.count)
        }
        let first = UInt64(UInt(bitPattern: mapping)) + UInt64(Self.guardSize) + boundary
        return unsafe Stretch(
            start: mapping + Self.guardSize + Int(first.roundedUp(to: alignment) - first),
            mapping: mapping,
            mappingSize: size,
            places: places
        )
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
        let stretch = places.withLock { $0.stretches.first { $0.places.contains(index) } }
        // Cannot happen: whoever asks has been given the place by this, and stretches stay as long as it does.
        guard let stretch else { preconditionFailure("no such place") }
        // Inside the stretch, which is as long as its places are.
        return unsafe stretch.start + (index - stretch.places.lowerBound) * stride
    }

    /// Gives a memory one of the places. It keeps it until ``clear(at:)``.
    func takePlace() throws(SandboxError) -> Int {
        let (index, count) = places.withLock { ($0.free.popLast(), $0.count) }
        guard let index else {
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
        places.withLock { $0.free.append(index) }
    }
}
