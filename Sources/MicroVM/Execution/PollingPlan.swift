import CShims
import Glibc
import Synchronization

/// Decides when a guest polls for calls, and for how long. Used by who has the baton.
struct PollingPlan {
    /// How tests try polling out, whether it pays or not.
    enum Trial: Sendable {
        /// Always, as long as no call is likely to miss it.
        case always
        /// Sometimes not, and mostly for so short a time that everybody just misses the other one.
        case awkward
    }

    #if SYNCHRONIZATION_POINTS
    /// What the environment says.
    static let environmentTrial: Trial? = {
        switch unsafe getenv("MICROVM_TRY_POLLING").map({ unsafe String(cString: $0) }) {
        case "always": .always
        case "awkward": .awkward
        default: nil
        }
    }()
    #endif

    /// How many guests of the process poll now: each of them uses a processor.
    private static let pollers = Atomic<Int>(0)

    /// How much shorter a gap may be without two threads that have to be woken.
    private static let wakeUpNanoseconds: UInt64 = 200_000

    let maximum: UInt64
    /// Whether there was a call since the guest polled last, or slept.
    private var hasNews = false
    /// When the thread began to wait for work, if no call has begun since; and how long it did the last time.
    private var idleSince: MonotonicTime?
    private var gap = UInt64.max
    /// How often in a row it was in vain, and how many occasions are left out for that.
    private var failures = 0
    private var skipped = 0
    /// Calls that went on for too long to be waited for, since polling began.
    private var abandoned: UInt64 = 0

    private let trial: Trial?
    /// Whether a caller that polls has to let the guest have the processor: only where polling is tried out are both
    /// on the same one.
    let yields: Bool

    /// Nothing where the guest never polls.
    init?(_ policy: PollingPolicy, _ trial: Trial?) {
        guard let maximum = policy.nanoseconds else { return nil }
        self.maximum = maximum
        self.trial = trial
        yields = trial != nil && shim_processor_count() == 1
    }

    /// A call begins on the thread.
    mutating func callBegins(_ now: MonotonicTime) {
        hasNews = true
        if let idleSince { gap = now.nanoseconds - min(idleSince.nanoseconds, now.nanoseconds) }
        idleSince = nil
    }

    /// A caller does not wait for the end of its call any more, for whatever reason.
    mutating func callIsHandedOver(wasTooLong: Bool) {
        hasNews = true
        if wasTooLong { abandoned += 1 }
    }

    /// How long the guest is to poll now that the thread has nothing to do; ``end(calls:)`` must follow. Nothing where
    /// it is not to poll.
    mutating func begin() -> UInt64? {
        guard hasNews else { return nil }
        hasNews = false
        idleSince = .now
        switch trial {
        // On one processor the caller has to get it from the guest first.
        case .always: return yields ? 50_000_000 : 2_000_000
        case .awkward: return Int.random(in: 0..<4) == 0 ? nil : UInt64.random(in: 0...3_000)
        case nil: break
        }
        guard gap <= maximum + Self.wakeUpNanoseconds else { return nil }
        guard skipped == 0 else {
            skipped -= 1
            return nil
        }
        // One processor is the caller's.
        let processors = Int(shim_processor_count())
        // Counts nothing but guests that poll, and orders nothing.
        if Self.pollers.wrappingAdd(1, ordering: .relaxed).newValue < processors {
            abandoned = 0
            return maximum
        }
        Self.pollers.wrappingSubtract(1, ordering: .relaxed)
        return nil
    }

    /// The guest has polled, and so many calls have come from callers who found it at that.
    mutating func end(calls: UInt64) {
        guard trial == nil else { return }
        Self.pollers.wrappingSubtract(1, ordering: .relaxed)
        if calls > abandoned {
            failures = 0
        } else {
            failures = min(failures + 1, 10)
            skipped = 1 << failures
        }
        idleSince = .now
    }

    /// How long a host function may take to be one that a caller runs himself, in nanoseconds. Where polling is tried
    /// out everything may be slow.
    var quickNanoseconds: UInt64 { trial == nil ? 10_000 : 20_000_000 }

    /// How long a caller polls for the answer before it is suspended.
    var callerMaximum: UInt64 {
        switch trial {
        // On one processor the guest has it between all of the call's host calls, each time for a while.
        case .always: yields ? 500_000_000 : 1_000_000
        case .awkward: UInt64.random(in: 0...2_000)
        case nil: maximum
        }
    }
}

/// ``PollingStatistics`` as they are counted: by one at a time, and read by anybody.
struct PollingCounters: ~Copyable {
    private let hits = Atomic<UInt64>(0)
    private let misses = Atomic<UInt64>(0)
    private let nanoseconds = Atomic<UInt64>(0)

    // Relaxed everywhere: numbers to be looked at, each by itself. Who counts has the baton, so a load and a store do.

    @inline(__always) func countHit() { hits.store(hits.load(ordering: .relaxed) &+ 1, ordering: .relaxed) }

    var hitCount: UInt64 { hits.load(ordering: .relaxed) }

    /// The guest was there to be called for so long, and whether it was.
    func countSession(nanoseconds: UInt64, wasHit: Bool) {
        self.nanoseconds.wrappingAdd(nanoseconds, ordering: .relaxed)
        if !wasHit { misses.wrappingAdd(1, ordering: .relaxed) }
    }

    var statistics: PollingStatistics {
        PollingStatistics(
            hits: hitCount,
            misses: misses.load(ordering: .relaxed),
            timePolling: .nanoseconds(Int64(clamping: nanoseconds.load(ordering: .relaxed)))
        )
    }
}
