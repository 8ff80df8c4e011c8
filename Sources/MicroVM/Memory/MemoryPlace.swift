import Glibc
import SystemPackage

/// The stretch of address space that one memory lies in, and what has been mapped there to begin with.
///
/// A memory by itself is mapped at addresses where nothing is. What replaces other mappings would have every virtual
/// machine of the process told, one by one, and be split off from them besides. Only where there are no such addresses,
/// and in a pool, whose memories lie side by side, the address space is reserved beforehand.
@safe final class MemoryPlace {
    /// The memory's first byte; its ``AddressSpace/hostBoundary`` lies at a multiple of 2 MiB. Nothing but guards lies
    /// within ``MemoryReservation/guardSize`` bytes before it and behind its end. Valid until `deinit`.
    let base: UnsafeMutableRawPointer
    private let origin: Origin

    private enum Origin {
        case unused(UInt, size: Int, mapped: Int)
        case reserved(MemoryReservation, index: Int, isShared: Bool)
    }

    /// - Parameters:
    ///   - addressSpace: the memory's layout.
    ///   - stretches: what to map, from page 0 to the end.
    ///   - shared: a pool's reservation, which has a place for this memory.
    convenience init(
        for addressSpace: AddressSpace,
        _ stretches: [MappingPlan.Stretch],
        in shared: MemoryReservation?
    ) throws(SandboxError) {
        for stretch in stretches { try stretch.run?.store.checkSize() }
        let size = Int(addressSpace.size)
        let boundary = addressSpace.hostBoundary
        // From a multiple of 2 MiB to the memory.
        let distance = UInt((AddressSpace.largePageSize - boundary) % AddressSpace.largePageSize)
        let stride = Self.stride(size + Int(distance))
        if shared == nil, let address = UnusedAddresses.shared.take(stride),
            let base = unsafe UnsafeMutableRawPointer(bitPattern: address + distance)
        {
            if unsafe Self.mapUnused(base, stretches) {
                unsafe self.init(base, .unused(address, size: stride, mapped: size))
                return
            }
            // They are somebody else's, and stay out of use. Whatever else may have been the matter comes to light with
            // a reservation.
        }
        let reservation: MemoryReservation
        if let shared {
            reservation = shared
        } else {
            reservation = try MemoryReservation(memorySize: size, boundary: boundary)
        }
        precondition(reservation.memorySize >= size, "a place too small for the memory")
        let index = try reservation.takePlace()
        // From here on `deinit` gives the place back.
        unsafe self.init(
            reservation.memory(at: index),
            .reserved(reservation, index: index, isShared: shared != nil)
        )
        for stretch in stretches where stretch.isAccessible {
            // Inside this memory's own place.
            guard unsafe Self.map(stretch, at: base, MAP_FIXED) else {
                throw GuestMemory.failure("map what a guest's memory is to be")
            }
        }
    }

    private init(_ base: UnsafeMutableRawPointer, _ origin: Origin) {
        unsafe self.base = base
        self.origin = origin
    }

    deinit {
        switch origin {
        case .unused(let address, let size, let mapped):
            // All that is mapped there is this memory's.
            unsafe munmap(base, mapped)
            UnusedAddresses.shared.giveBack(address, size: size)
        case .reserved(let reservation, let index, let isShared):
            if isShared { reservation.clear(at: index) }
        }
    }

    /// A memory with its guards, and room between them for the page that its virtual CPU shares.
    private static func stride(_ size: Int) -> Int {
        let guards = 2 * MemoryReservation.guardSize
        return Int(UInt64(size + guards + GuestMemory.pageSize * 16).roundedUp(to: AddressSpace.largePageSize))
    }

    /// Where the page that the virtual CPU shares is best mapped, for the kernel to place the stacks of threads side by
    /// side; between two guards.
    func neighbour(size: Int) -> UnsafeMutableRawPointer? {
        guard case .unused = origin else { return nil }
        return unsafe base + size + MemoryReservation.guardSize
    }

    /// Maps everything where nothing is, or nothing at all.
    private static func mapUnused(_ base: UnsafeMutableRawPointer, _ stretches: [MappingPlan.Stretch]) -> Bool {
        for stretch in stretches {
            if unsafe map(stretch, at: base, MAP_FIXED_NOREPLACE) { continue }
            let mapped = stretch.pages.lowerBound * GuestMemory.pageSize
            // Just mapped, by this function.
            if mapped > 0 { unsafe munmap(base, mapped) }
            return false
        }
        return true
    }

    /// - Parameters:
    ///   - base: where page 0 lies.
    ///   - placement: `MAP_FIXED` where the addresses are this memory's, otherwise `MAP_FIXED_NOREPLACE`.
    private static func map(
        _ stretch: MappingPlan.Stretch,
        at base: UnsafeMutableRawPointer,
        _ placement: Int32
    ) -> Bool {
        let page = GuestMemory.pageSize
        let address = unsafe base + stretch.pages.lowerBound * page
        let size = stretch.pages.count * page
        let protection = stretch.isAccessible ? PROT_READ | PROT_WRITE : PROT_NONE
        var flags = MAP_PRIVATE | MAP_NORESERVE | placement
        var file: Int32 = -1
        var offset: off_t = 0
        if let run = stretch.run {
            file = run.store.file.rawValue
            offset = off_t(run.store.fileOffset + run.firstIndex * page)
        } else {
            flags |= MAP_ANONYMOUS
        }
        // The caller's, or where nothing is.
        let mapped = unsafe mmap(address, size, protection, flags, file, offset)
        guard unsafe mapped != MAP_FAILED else { return false }
        guard unsafe mapped == address else {
            // Linux before 4.17 takes the address for a mere hint.
            unsafe munmap(mapped, size)
            return false
        }
        // Pages are restored one by one: none is to become 512 because it was touched.
        if stretch.run == nil, stretch.isAccessible { unsafe madvise(address, size, MADV_NOHUGEPAGE) }
        return true
    }
}
