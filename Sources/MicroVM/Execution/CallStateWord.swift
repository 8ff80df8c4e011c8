import Synchronization

/// Where a ``CallState`` is, for everybody.
///
/// A pointer, whose copies are the same word: calls that take a tenth of a microsecond count no references.
@safe struct CallStateWord: @unchecked Sendable {
    private let word: UnsafeMutablePointer<Atomic<UInt64>>

    /// - Parameter word: outlives this.
    init(_ word: UnsafeMutablePointer<Atomic<UInt64>>) { unsafe self.word = word }

    /// Changes the word in one step, acquiring and releasing, and tells what it was before. Where `change` answers with
    /// nothing the word stays as it is.
    @inline(__always) func update(_ change: (CallState) -> CallState?) -> CallState {
        var seen = unsafe word.pointee.load(ordering: .acquiring)
        while true {
            guard let desired = change(CallState(rawValue: seen)) else { return CallState(rawValue: seen) }
            let (exchanged, original) = unsafe word.pointee.compareExchange(
                expected: seen,
                desired: desired.rawValue,
                successOrdering: .acquiringAndReleasing,
                failureOrdering: .acquiring
            )
            if exchanged { return CallState(rawValue: original) }
            seen = original
        }
    }

    // MARK: Callers of a guest that polls

    /// A call begins, and is in the guest from now on. Its number; nothing where the guest is not to be called.
    @inline(__always) func beginPolledCall() -> UInt64? {
        // In one step, as in `beginCall`. model: polled_begin
        let before = update(\.beginningNextPolled)
        return before.beginningNextPolled == nil ? nil : before.number &+ 1
    }

    /// The guest has returned, and the call is over, unless it is to end for another reason, which whoever asked for
    /// that has been promised. What the word was; where that has requests, somebody is to be told
    /// (`LinuxInterruptHandle.didEndPolledCall(_:)`).
    @inline(__always) func endPolledCall() -> CallState {
        // Acquiring and releasing: partner of `end` and `terminate`. model: polled_end
        update { state in
            guard !state.has(CallState.cancel) else { return nil }
            return CallState(
                rawValue: state.rawValue & ~(CallState.running | CallState.inCall) | CallState.decided
            )
        }
    }
}
