/// When a sandbox in a call may be stopped to look at it, so that the guest gets on however often somebody looks.
///
/// Without it, looks that follow each other at once could hold the guest for ever: on one processor the one who looks
/// may always come before the virtual CPU's thread, which is about to enter the guest.
final class LookSchedule: Sendable {
    private struct Times {
        /// When the next look may begin, in nanoseconds of the monotonic clock.
        var next: UInt64 = 0
        /// How long the last one took.
        var length: UInt64 = 0
    }

    /// A look that took longer has waited for something else.
    private static let longestLook: UInt64 = 50_000_000

    private let times = Locked(Times())

    /// Takes the next time there is. In how many nanoseconds that is.
    func reserve() -> UInt64 {
        times.withLock { times in
            let now = MonotonicTime.now.nanoseconds
            let start = max(now, times.next)
            times.next = start + 2 * times.length
            return start - now
        }
    }

    /// The guest goes on, for at least as long as it was held.
    func end(began: MonotonicTime) {
        times.withLock { times in
            let now = MonotonicTime.now.nanoseconds
            times.length = min(now - min(began.nanoseconds, now), Self.longestLook)
            times.next = max(times.next, now + times.length)
        }
    }
}
