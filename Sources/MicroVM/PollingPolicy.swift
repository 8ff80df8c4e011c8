/// Whether a guest polls for the next call after one has returned, so that callers elsewhere reach it without an exit.
///
/// An entry of the guest and the exit that ends it cost far more than a small function does. Where calls follow each
/// other closely, the virtual CPU can stay in the guest between them: the guest looks for the next request in memory, a
/// caller on another processor puts it there and looks for the answer. Neither makes a system call. That takes a
/// processor for as long as the guest polls, and one for as long as the caller does; see the article Polling.
///
/// Nothing that a call means depends on it: kills, limits, stops, cancellation, restores and debuggers work as ever.
public enum PollingPolicy: Sendable, Hashable {
    /// Each call is an entry and an exit.
    case never
    /// Polls where it has paid: for gaps between calls of up to 100 microseconds, with a processor to spare.
    case adaptive
    /// As ``adaptive``, for gaps of up to so long, at most one second. This is how long a guest may use a processor
    /// after each call, and how long a caller keeps its thread before its task is suspended.
    case upTo(Duration)

    /// How long anybody polls at most, in nanoseconds; nothing where nobody does.
    var nanoseconds: UInt64? {
        switch self {
        case .never: nil
        case .adaptive: 100_000
        case .upTo(let duration): duration > .zero ? duration.nanosecondsClamped : nil
        }
    }
}

/// How often callers have found a sandbox's guest polling.
public struct PollingStatistics: Sendable, Hashable {
    /// The calls that were made without an exit from beginning to end.
    public var hits: UInt64
    /// The times that the guest has polled and no such call came.
    public var misses: UInt64
    /// How long the virtual CPU has stayed in the guest to poll, the calls that it got there included.
    public var timePolling: Duration
}
