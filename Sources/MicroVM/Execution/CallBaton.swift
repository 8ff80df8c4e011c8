import CShims
import Synchronization

/// Who may make calls of a sandbox, and use all that belongs to them: its thread, or a caller elsewhere while the guest
/// polls for calls. One at a time, and what the one before has done is seen by the next.
///
/// A pointer, whose copies are the same baton: calls that take a tenth of a microsecond count no references.
@safe struct CallBaton: @unchecked Sendable {
    /// The thread has it.
    private static let own: UInt32 = 0
    /// The guest polls, and whoever comes may take it.
    private static let offered: UInt32 = 1
    /// A caller has it.
    private static let taken: UInt32 = 2
    /// The thread has something else to do: nobody may take it, and who has it gives it back.
    private static let recalled: UInt32 = 4

    /// What the thread sleeps on until it is its own.
    private let word: UnsafeMutablePointer<Atomic<UInt32>>

    init() {
        unsafe word = .allocate(capacity: 1)
        unsafe word.initialize(to: Atomic(Self.own))
    }

    /// After the thread's end, and that of everybody who may make calls.
    func deallocate() {
        unsafe word.deinitialize(count: 1)
        unsafe word.deallocate()
    }

    @inline(__always) private func change(
        _ expected: UInt32,
        to desired: UInt32
    ) -> (exchanged: Bool, original: UInt32) {
        unsafe word.pointee.compareExchange(expected: expected, desired: desired, ordering: .acquiringAndReleasing)
    }

    // MARK: The thread

    /// Offers what the thread has. Whether it may be taken: not where somebody has recalled it meanwhile.
    func offer() -> Bool {
        // Releasing: partner of `take`. model: polling_offer
        if change(Self.own, to: Self.offered).exchanged { return true }
        unsafe word.pointee.store(Self.own, ordering: .relaxed)
        return false
    }

    /// Takes back what was offered, and waits for whoever has taken it. Only here is a recall forgotten: until then it
    /// keeps the thread from going on polling.
    func takeBack() {
        while true {
            // Acquiring: partner of `putDown`. model: baton_take_back
            let found = unsafe word.pointee.load(ordering: .acquiring)
            if found & Self.taken == 0 {
                if change(found, to: Self.own).exchanged { return }
            } else if found & Self.recalled != 0 || change(found, to: found | Self.recalled).exchanged {
                unsafe word.withMemoryRebound(to: UInt32.self, capacity: 1) {
                    unsafe shim_futex_wait($0, Self.taken | Self.recalled, 0)
                }
            }
        }
    }

    // MARK: Others

    /// The thread is wanted for something else.
    func recall() {
        // Releasing: partner of `isRecalled`. model: recall
        unsafe word.pointee.bitwiseOr(Self.recalled, ordering: .acquiringAndReleasing)
    }

    /// How often a caller looks for the end of another one's call, which is about as long as a short call takes.
    private static let looks = 40

    /// Whether it is the caller's now: ``giveBack()`` or ``putDown()`` must follow.
    @inline(__always) func take() -> Bool {
        // Not written to where there is nothing to be had.
        guard unsafe word.pointee.load(ordering: .relaxed) & (Self.offered | Self.taken) != 0 else { return false }
        for _ in 0..<Self.looks {
            // Acquiring: partner of `offer` and `giveBack`. model: baton_take
            let (exchanged, found) = change(Self.offered, to: Self.taken)
            if exchanged { return true }
            // Only another caller's call is waited for.
            guard found == Self.taken else { return false }
            shim_pause()
        }
        return false
    }

    /// The caller's call is over, or was none. Others may make the next one, unless the thread wants it.
    @inline(__always) func giveBack() {
        // Releasing: partner of `take` and `takeBack`. model: baton_give_back
        if !change(Self.taken, to: Self.offered).exchanged { putDown() }
    }

    /// The caller does not have it any more, and the thread is to take it.
    func putDown() {
        // Releasing: partner of `takeBack`. model: hand_over
        let before = unsafe word.pointee.bitwiseAnd(~Self.taken, ordering: .acquiringAndReleasing).oldValue
        if before & Self.recalled != 0 {
            unsafe word.withMemoryRebound(to: UInt32.self, capacity: 1) { unsafe shim_futex_wake_all($0) }
        }
    }

    /// Whether the thread wants it, for who has it.
    var isRecalled: Bool { unsafe word.pointee.load(ordering: .acquiring) & Self.recalled != 0 }
}
