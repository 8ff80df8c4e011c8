import Glibc

/// Addresses at which nothing is mapped, and nothing will be that does not come from here.
///
/// They lie far below those that the kernel gives out by itself, from the highest downwards: it would have to give out
/// all of ``distance`` before it came here. So what is left free between two memories stays free, and guards them as a
/// mapping without access would, but costs nothing: each mapping of the process, and each change of one, costs time
/// whenever a virtual machine is made.
final class UnusedAddresses: Sendable {
    static let shared = UnusedAddresses()

    /// From the addresses that the kernel gives out to the highest one here.
    private static let distance: UInt = 1 << 40
    /// As far down as this goes. More sandboxes at once than fit get address space that is reserved for each.
    private static let extent: UInt = 16 << 40

    private struct State {
        /// All below it, down to `lowest`, have not been given out yet.
        var next: UInt
        let lowest: UInt
        /// Those that have been given back, by size.
        var free: [Int: [UInt]] = [:]
    }

    private let state: Locked<State>

    private init() {
        // Any mapping shows where the kernel puts them; this one is gone again at once.
        let probe = unsafe mmap(nil, GuestMemory.pageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        var next: UInt = 0
        if let probe = unsafe probe, unsafe probe != MAP_FAILED {
            next = UInt(bitPattern: probe)
            unsafe munmap(probe, GuestMemory.pageSize)
        }
        next = next > Self.distance + Self.extent ? (next - Self.distance) & ~(1 << 30 - 1) : 0
        state = Locked(State(next: next, lowest: next - min(next, Self.extent)))
    }

    /// Addresses for one owner, until ``giveBack(_:size:)``.
    ///
    /// - Parameter size: a multiple of 2 MiB.
    /// - Returns: the first of them, a multiple of 2 MiB; nothing when there are no more.
    func take(_ size: Int) -> UInt? {
        state.withLock { state in
            if let address = state.free[size]?.popLast() { return address }
            guard UInt(size) <= state.next - state.lowest else { return nil }
            state.next -= UInt(size)
            return state.next
        }
    }

    /// Gives addresses back, with nothing mapped there any more.
    func giveBack(_ address: UInt, size: Int) { state.withLock { $0.free[size, default: []].append(address) } }
}
