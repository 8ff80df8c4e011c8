import CShims

/// How long looks and ticks of the processor's clock take: found out once.
struct PollingClock: Sendable {
    static let shared = PollingClock()

    private let ticksPerNanosecond: Double
    private let looksPerNanosecond: Double

    private init() {
        let (began, beganTicks) = (MonotonicTime.now, shim_ticks())
        // The quickest of some: all others were held up.
        var shortest = UInt64.max
        let looks: UInt32 = 256
        for _ in 0..<8 {
            let before = MonotonicTime.now.nanoseconds
            var word: UInt32 = 0
            _ = unsafe shim_poll(&word, 0, looks)
            shortest = min(shortest, max(MonotonicTime.now.nanoseconds - before, 1))
        }
        looksPerNanosecond = Double(looks) / Double(shortest)
        ticksPerNanosecond =
            Double(shim_ticks() &- beganTicks) / Double(max(MonotonicTime.now.nanoseconds - began.nanoseconds, 1))
    }

    /// How often to look for so long, at least once.
    func looks(in nanoseconds: UInt64) -> UInt32 {
        UInt32(min(max(Double(nanoseconds) * looksPerNanosecond, 1), Double(UInt32.max)))
    }

    /// How many ticks come in so long; many where the clock is none.
    func ticks(in nanoseconds: UInt64) -> UInt64 {
        guard ticksPerNanosecond > 0.001 else { return UInt64(UInt32.max) }
        return UInt64(min(Double(nanoseconds) * ticksPerNanosecond, Double(UInt64.max / 4)))
    }

    func nanoseconds(ofTicks ticks: UInt64) -> UInt64 {
        // A clock that stands still or goes back is none.
        guard ticksPerNanosecond > 0.001, ticks < UInt64.max / 2 else { return 0 }
        return UInt64(Double(ticks) / ticksPerNanosecond)
    }
}
