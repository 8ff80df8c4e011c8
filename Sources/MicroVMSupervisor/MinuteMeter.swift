import Glibc
import Synchronization

/// Adds up what was used in the last sixty seconds.
final class MinuteMeter: Sendable {
    private struct State {
        /// One for each second, in a ring.
        var seconds = [UInt64](repeating: 0, count: 60)
        var total: UInt64 = 0
        /// The second that was last added to.
        var now: Int64 = 0

        mutating func move(to second: Int64) {
            guard second > now else { return }
            for passed in max(now + 1, second - 59)...second {
                let index = Int(passed % 60)
                total -= seconds[index]
                seconds[index] = 0
            }
            now = second
        }
    }

    private let state = Mutex(State())
    private let clock: @Sendable () -> Int64

    /// - Parameter clock: seconds that never go back; those since the machine's start unless given.
    init(clock: @escaping @Sendable () -> Int64 = secondsSinceStart) { self.clock = clock }

    @Sendable private static func secondsSinceStart() -> Int64 {
        var time = timespec()
        // Cannot fail for this clock, whose last tick is new enough; the structure outlives the call.
        unsafe _ = clock_gettime(CLOCK_MONOTONIC_COARSE, &time)
        return Int64(time.tv_sec)
    }

    /// Adds an amount. How much it is in the last minute now.
    @discardableResult
    func add(_ amount: UInt64) -> UInt64 {
        let second = clock()
        return state.withLock { state in
            state.move(to: second)
            let index = Int(state.now % 60)
            let sum = state.seconds[index].addingReportingOverflow(amount)
            let total = state.total.addingReportingOverflow(amount)
            guard !sum.overflow, !total.overflow else { return .max }
            state.seconds[index] = sum.partialValue
            state.total = total.partialValue
            return state.total
        }
    }

    /// How much it is in the last minute.
    var total: UInt64 { add(0) }
}
