import CShims

/// The word that everybody who ends, holds or enters a virtual CPU agrees on: eight flags, the reason why the call
/// under way shall end, and the number of that call. The article Interruption says how it is used.
struct CallState: Equatable {
    var rawValue: UInt64

    /// The call under way shall end.
    static let cancel = UInt64(SHIM_STATE_CANCEL)
    /// The virtual CPU's thread is in KVM_RUN, or past the point of no return before it.
    static let running: UInt64 = 1 << 1
    /// A debugger wants the virtual CPU out of the guest.
    static let debugInterrupt: UInt64 = 1 << 2
    /// The sandbox is held before its next entry.
    static let stop: UInt64 = 1 << 3
    /// A top-level call is under way.
    static let inCall = UInt64(SHIM_STATE_IN_CALL)
    /// Guest code of this call may have run.
    static let entered: UInt64 = 1 << 5
    /// How this call ends is settled.
    static let decided = UInt64(SHIM_STATE_DECIDED)
    /// The thread sleeps inside the call, or is about to.
    static let waiting: UInt64 = 1 << 7
    /// The virtual CPU's thread is in KVM_RUN, or past the point of no return before it, for callers who poll: also
    /// while there is no call.
    static let polling: UInt64 = 1 << 11

    static let requests = cancel | debugInterrupt | stop
    private static let reasonMask: UInt64 = 0b111 << UInt64(SHIM_STATE_REASON_SHIFT)
    private static let numberShift: UInt64 = 16

    /// Why a call is being ended.
    enum Reason: UInt64 {
        case killed = 1
        case taskCancelled = 2
        case timeLimit = 3
        case cpuTimeLimit = 4
        /// The call's thread has attempted what its confinement forbids.
        case confinement = 5

        /// What the call ends with.
        var code: SandboxError.Code {
            switch self {
            case .killed: .killed
            case .taskCancelled: .taskCancelled
            case .timeLimit: .timeLimitExceeded
            case .cpuTimeLimit: .cpuTimeLimitExceeded
            case .confinement: .confinementViolated
            }
        }
    }

    func has(_ flag: UInt64) -> Bool { rawValue & flag != 0 }

    /// Whether the virtual CPU's thread is in KVM_RUN, with a call or for those who may make one.
    var isInGuest: Bool { has(Self.running | Self.polling) }

    /// Why the call shall end, if it shall.
    var reason: Reason? {
        guard has(Self.cancel) else { return nil }
        // Whoever sets CANCEL sets one of the five along with it.
        return Reason(rawValue: (rawValue & Self.reasonMask) >> UInt64(SHIM_STATE_REASON_SHIFT)) ?? .killed
    }

    /// The number of the call under way, or of the last one. 48 bits are enough for centuries of calls.
    var number: UInt64 { rawValue >> Self.numberShift }

    /// Whether this call is under way.
    func isOf(call number: UInt64) -> Bool { self.number == number && has(Self.inCall) }

    /// The same with the call asked to end.
    func cancelled(for reason: Reason) -> CallState {
        CallState(rawValue: rawValue | Self.cancel | reason.rawValue << UInt64(SHIM_STATE_REASON_SHIFT))
    }

    /// What the next call begins with: its number, and of the requests only those that are not for one call.
    var beginningNext: CallState {
        let kept = rawValue & (Self.stop | Self.debugInterrupt)
        return CallState(rawValue: kept | Self.inCall | (number &+ 1) << Self.numberShift)
    }

    /// What a call begins with that is made while the guest polls, and is in the guest at once. Nothing where the guest
    /// does not poll, or is to be left.
    var beginningNextPolled: CallState? {
        guard has(Self.polling), !has(Self.stop | Self.debugInterrupt | Self.inCall) else { return nil }
        return CallState(rawValue: beginningNext.rawValue | Self.polling | Self.running | Self.entered)
    }
}
