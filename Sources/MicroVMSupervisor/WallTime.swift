import Glibc

/// A point in time by the machine's clock, which people may set.
public struct WallTime: Sendable, Hashable, Comparable {
    /// The nanoseconds since the beginning of 1970 (UTC).
    public var nanoseconds: Int64

    /// Makes a point in time.
    public init(nanoseconds: Int64) { self.nanoseconds = nanoseconds }

    /// Now.
    public static var now: WallTime {
        var time = timespec()
        // Cannot fail for this clock; the structure outlives the call.
        unsafe _ = clock_gettime(CLOCK_REALTIME, &time)
        return WallTime(nanoseconds: Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec))
    }

    /// Earlier times come first.
    public static func < (left: WallTime, right: WallTime) -> Bool { left.nanoseconds < right.nanoseconds }
}
