import Glibc

/// A point on CLOCK_MONOTONIC, in nanoseconds. Read without a system call; cheaper than a clock's instant.
struct MonotonicTime: Sendable {
    var nanoseconds: UInt64

    static let zero = MonotonicTime(nanoseconds: 0)

    static var now: MonotonicTime { MonotonicTime(nanoseconds: nanoseconds(of: CLOCK_MONOTONIC)) }

    static func nanoseconds(of clock: clockid_t) -> UInt64 {
        var time = timespec()
        // Cannot fail for the clocks this library asks for.
        unsafe clock_gettime(clock, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }

    func duration(to later: MonotonicTime) -> Duration { .nanoseconds(Int64(later.nanoseconds - nanoseconds)) }
}
