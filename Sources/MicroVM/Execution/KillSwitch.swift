import Synchronization

/// What ``KillSwitch/terminate()`` found and did.
public enum KillSuccess: Sendable, Hashable {
    /// The call was in guest code, which it has left by now; it ends as killed.
    case signalled
    /// The call is in a host function or held by a stop. It ends as killed, without entering the guest again: when the
    /// host function does, or at once when it is only held.
    case pending
    /// The call had not begun: it will end as killed before any guest code runs.
    case cancelled
}

/// Why ``KillSwitch/terminate()`` did nothing.
public enum KillError: Error, Sendable, Hashable {
    /// How the call ends is settled already: somebody else is terminating it, or it is just returning.
    case notTerminable
    /// The call is over, or its sandbox is gone.
    case invalid
}

/// Ends one call of a sandbox, and no other, from any thread.
///
/// A switch may be kept for as long as anybody likes: when its call is over it answers ``KillError/invalid`` for ever,
/// also while the sandbox is busy with the next call.
public struct KillSwitch: Sendable {
    let call: PendingCall
    let interruptHandle: LinuxInterruptHandle

    /// Whether the call has had its turn, and is under way or over. Also true of one that was over before its turn.
    public var hasBegun: Bool { call.hasBegun }

    /// Ends the call.
    ///
    /// Where the guest is running, blocks until it has left it.
    ///
    /// - Returns: what the call was doing. Each call is terminated at most once, by whoever gets a result here; it then
    ///   ends with ``SandboxError/Code/killed``, unless the guest had faulted just before.
    /// - Throws: ``KillError``.
    @discardableResult
    public func terminate() throws(KillError) -> KillSuccess { try terminate(for: .killed) }

    @discardableResult
    func terminate(for reason: CallState.Reason) throws(KillError) -> KillSuccess {
        switch call.cancel(for: reason) {
        case .pending: return .cancelled
        case .cancelled: throw .notTerminable
        case .over: throw .invalid
        case .begun(let number): return try interruptHandle.terminate(call: number, reason)
        }
    }
}

/// A call that may not have begun yet: who comes first, its beginning or its end?
final class PendingCall: Sendable {
    enum Stage: Equatable {
        case pending
        case cancelled(CallState.Reason)
        case over
        case begun(number: UInt64)
    }

    /// 0 while it is pending, 1 when it never began and is over, a reason shifted by one byte when it is cancelled, and
    /// its number shifted by 16 bits from its beginning on.
    private let word = Atomic<UInt64>(0)
    private let isClaimed = Atomic<Bool>(false)
    /// What the call has cost, once it is over.
    let statistics = Locked<CallStatistics?>(nil)

    private static func stage(_ word: UInt64) -> Stage {
        if word >> 16 != 0 { return .begun(number: word >> 16) }
        if let reason = CallState.Reason(rawValue: word >> 8) { return .cancelled(reason) }
        return word == 0 ? .pending : .over
    }

    /// Keeps the call from beginning, if it has not begun. What it was before.
    fileprivate func cancel(for reason: CallState.Reason) -> Stage {
        // Acquiring and releasing; partner: `begin`. model: pending_cancel
        let original = word.compareExchange(
            expected: 0,
            desired: reason.rawValue << 8,
            ordering: .acquiringAndReleasing
        ).original
        return Self.stage(original)
    }

    /// Whether it is under way or over.
    fileprivate var hasBegun: Bool {
        // Acquiring; partner: `begin`.
        switch Self.stage(word.load(ordering: .acquiring)) {
        case .begun, .over: true
        case .pending, .cancelled: false
        }
    }

    /// Whether it is the caller who makes it, and nobody else ever.
    func claim() -> Bool {
        // Relaxed: nothing else is told by it.
        isClaimed.compareExchange(expected: false, desired: true, ordering: .relaxed).exchanged
    }

    /// The call has begun under a number, and can be ended by it from now on. Why it shall end at once, if it has been
    /// cancelled.
    func begin(_ number: UInt64) -> CallState.Reason? {
        // Acquiring and releasing; partner: `cancel`. model: pending_begin
        let (exchanged, original) = word.compareExchange(
            expected: 0,
            desired: number << 16,
            ordering: .acquiringAndReleasing
        )
        guard !exchanged, case .cancelled(let reason) = Self.stage(original) else { return nil }
        return reason
    }

    /// What a call that has thrown ends with: who was told that it was cancelled was told the truth, also when its turn
    /// had never come because the sandbox was closed or poisoned by then.
    func error(insteadOf error: any Error) -> any Error {
        // Acquiring; partner: `cancel`.
        guard case .cancelled(let reason) = Self.stage(word.load(ordering: .acquiring)),
            (error as? SandboxError)?.code != reason.code
        else { return error }
        let message = "The guest call \(reason.code.ending ?? "ended") before it had begun."
        return SandboxError(reason.code, message, underlyingError: error)
    }

    /// The call is over, whether it had begun or not.
    func end() {
        // Releasing; partner: `cancel`. A call that has begun ends by the number in the virtual CPU's own word.
        word.store(1, ordering: .releasing)
    }
}
