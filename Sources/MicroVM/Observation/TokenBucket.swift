/// Lets so many through at once, and then so many a second. Whoever uses it says what time it is.
struct TokenBucket {
    /// Of one token.
    private static let unit: UInt64 = 1_000_000_000

    private let perSecond: UInt64
    private let capacity: UInt64
    /// In parts of a token, so that a nanosecond brings `perSecond` of them.
    private var level: UInt64
    private var last: UInt64

    /// A full one.
    ///
    /// - Parameters:
    ///   - perSecond: up to a million.
    ///   - burst: how many it holds, up to a million.
    ///   - now: in nanoseconds, on a clock that does not go back.
    init(perSecond: Int, burst: Int, now: UInt64) {
        self.perSecond = UInt64(perSecond)
        capacity = UInt64(burst) * Self.unit
        level = capacity
        last = now
    }

    /// Takes one out. Whether there was one.
    mutating func take(now: UInt64) -> Bool {
        let (gained, isTooMuch) = (now > last ? now - last : 0).multipliedReportingOverflow(by: perSecond)
        last = max(last, now)
        level = isTooMuch || gained > capacity - level ? capacity : level + gained
        guard level >= Self.unit else { return false }
        level -= Self.unit
        return true
    }
}
