/// Something that has happened in a supervisor.
public struct SupervisorEvent: Sendable, Hashable {
    /// What has happened.
    public enum Kind: Sendable, Hashable {
        /// A call was accepted.
        case queued
        /// A call was given a sandbox and begins.
        case started
        /// A call's function has returned.
        case exited
        /// A call's guest has done something illegal: what, in a word.
        case faulted(String)
        /// A call was ended by somebody.
        case killed(CallKiller)
        /// A call has failed: the error's code or type, in a word.
        case failed(String)
        /// A call is held.
        case stopped
        /// A call goes on.
        case continued
        /// A call has reached a limit and is over.
        case limitHit(CallLimit)
        /// A call is held because CPU time for the minute is used up.
        case throttled
        /// A call goes on, as there is CPU time again.
        case unthrottled
        /// A call did not end at its time limit, and has been ended from outside.
        case overdue
        /// A snapshot of a call was taken.
        case snapshotTaken(SnapshotID)
        /// A module was registered.
        case moduleRegistered
        /// A module was removed.
        case moduleRemoved
        /// The pool of a module has another size.
        case poolResized(minimum: Int, maximum: Int)
        /// The reader was too slow: so many events are missing here.
        case missed(Int)
    }

    /// The number of the event: without gaps but for those of ``Kind/missed(_:)``.
    public var number: UInt64
    /// When it happened.
    public var time: WallTime
    /// What has happened.
    public var kind: Kind
    /// The call that it happened to.
    public var call: CallID?
    /// The module that it happened to, or whose call it is.
    public var module: String?
    /// The function of the call.
    public var function: String?
}

extension SupervisorEvent.Kind {
    /// The kind in a word.
    public var name: String {
        switch self {
        case .queued: "queued"
        case .started: "started"
        case .exited: "exited"
        case .faulted: "faulted"
        case .killed: "killed"
        case .failed: "failed"
        case .stopped: "stopped"
        case .continued: "continued"
        case .limitHit: "limitHit"
        case .throttled: "throttled"
        case .unthrottled: "unthrottled"
        case .overdue: "overdue"
        case .snapshotTaken: "snapshotTaken"
        case .moduleRegistered: "moduleRegistered"
        case .moduleRemoved: "moduleRemoved"
        case .poolResized: "poolResized"
        case .missed: "missed"
        }
    }

    /// What there is to be said beyond the name, in a word or two.
    public var detail: String? {
        switch self {
        case .faulted(let kind): kind
        case .killed(let killer): killer.rawValue
        case .failed(let code): code
        case .limitHit(let limit): limit.rawValue
        case .snapshotTaken(let id): id.description
        case .poolResized(let minimum, let maximum): "\(minimum)...\(maximum)"
        case .missed(let count): "\(count)"
        default: nil
        }
    }
}
