/// A stop that a sandbox's own host call has begun, as ``HostCallContext/beginInternalStop(_:)`` is given it.
public struct TaskStop: Sendable, Hashable {
    /// What it is for, to be shown to people.
    public var purpose: String
    /// Whether a kill ends the stop. Where it does not, the call ends as killed once the stop has ended.
    public var killable: Bool

    /// Makes a stop.
    public init(_ purpose: String, killable: Bool = true) {
        self.purpose = purpose
        self.killable = killable
    }
}

/// Why a stop could not be begun or ended.
public enum StopError: Error, Sendable, Hashable {
    /// There are 65,535 external stops of this sandbox already.
    case overflow
    /// An external stop was ended that nobody had begun.
    case underflow
    /// An internal stop was begun while there is one, or ended while there is none.
    case internalStop
    /// The sandbox is closed or gone.
    case dropped
}

/// Why a sandbox is being held.
struct StopCounts {
    static let maximum: UInt16 = .max

    var external: UInt16 = 0
    var `internal`: TaskStop?

    var isStopped: Bool { external > 0 || self.internal != nil }
}

extension LinuxInterruptHandle {
    /// Whether a stop is in force: the guest is not entered before all have ended, unless a kill overrides them.
    public var isStopped: Bool { stops.withLock { $0.isStopped } }

    /// Begins a stop from outside. Stops are counted: the sandbox goes on when each one has been ended. A running guest
    /// has left when this returns, which takes tens of microseconds as a rule; host functions go on until they enter
    /// the guest again.
    ///
    /// - Throws: ``StopError/overflow`` or ``StopError/dropped``.
    public func beginExternalStop() throws(StopError) {
        // After the lock is free: others may begin and end stops while this one waits for the guest to leave.
        kick(try setExternalStop())
    }

    /// Begins a stop without waiting. What the word was, for ``kick(_:)``: where another stop is in force already, the
    /// guest may still be about to leave for that.
    func setExternalStop() throws(StopError) -> CallState {
        guard !isDropped else { throw .dropped }
        let before = try changeStops { counts throws(StopError) in
            guard counts.external < StopCounts.maximum else { throw .overflow }
            counts.external += 1
        }
        return before ?? currentState
    }

    /// Ends a stop from outside; the last one lets the guest go on.
    ///
    /// - Throws: ``StopError/underflow`` when none is in force.
    public func endExternalStop() throws(StopError) {
        _ = try changeStops { counts throws(StopError) in
            guard counts.external > 0 else { throw .underflow }
            counts.external -= 1
        }
    }

    /// Ends the stop that a host call of this sandbox has begun; from any thread.
    ///
    /// - Throws: ``StopError/internalStop`` when there is none.
    public func endInternalStop() throws(StopError) {
        _ = try changeStops { counts throws(StopError) in
            guard counts.internal != nil else { throw .internalStop }
            counts.internal = nil
        }
        // Also where an external stop goes on: a kill that this one held back overrides that.
        wakeIfWaiting()
    }

    /// Begins a stop from inside a host call of one call.
    ///
    /// - Throws: ``StopError/dropped`` when that call is over; what comes after it is not held.
    func beginInternalStop(_ stop: TaskStop, call number: UInt64) throws(StopError) {
        try stops.withLock { counts throws(StopError) in
            guard currentState.isOf(call: number) else { throw .dropped }
            guard counts.internal == nil else { throw .internalStop }
            // The call may end at any time: whether it is there, and that it is held, is one step.
            guard setStop(duringCall: number).isOf(call: number) else { throw .dropped }
            counts.internal = stop
        }
    }

    /// Ends a stop that a call has left behind when a kill overrode it.
    func clearInternalStop() {
        if stops.withLock({ $0.internal != nil }) { try? endInternalStop() }
    }

    /// Whether a kill has to wait for the end of an internal stop.
    var isHeldAgainstKills: Bool { stops.withLock { $0.internal?.killable == false } }

    /// Changes the counts, and the word's flag with them while the lock is held, so that the two always agree. What the
    /// word was before, where the flag has changed.
    private func changeStops(_ change: (inout StopCounts) throws(StopError) -> Void) throws(StopError) -> CallState? {
        try stops.withLock { counts throws(StopError) in
            let wasStopped = counts.isStopped
            try change(&counts)
            return counts.isStopped == wasStopped ? nil : setStop(counts.isStopped)
        }
    }
}
