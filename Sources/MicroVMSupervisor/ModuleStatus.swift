public import MicroVM

/// A registered module and what has become of its calls.
public struct ModuleStatus: Sendable {
    /// The name under which it is registered.
    public var name: String
    /// The module.
    public var module: GuestModule
    /// When it was registered.
    public var registered: WallTime
    /// How many sandboxes are kept ready, and how many calls may run at the same time.
    public var pool: ClosedRange<Int>
    /// What its pool has and has done.
    public var poolStatistics: SandboxPoolStatistics
    /// The bytes of memory that each sandbox may own.
    public var memoryLimit: UInt64
    /// What its calls may use together.
    public var limits: ResourceLimits
    /// How many of its calls run, the ones that are held included.
    public var running: Int
    /// How many wait in the queue.
    public var queued: Int
    /// What has become of those that are over.
    public var totals: CallTotals
}

/// How many calls there have been, by what became of them.
public struct CallTotals: Sendable, Hashable {
    /// Accepted: queued or started at once.
    public var accepted: UInt64 = 0
    /// Turned away, because the queue was full or the supervisor was shutting down.
    public var refused: UInt64 = 0
    /// Over, because the function returned.
    public var returned: UInt64 = 0
    /// Over, because the guest did something illegal.
    public var faulted: UInt64 = 0
    /// Over, because somebody killed them, before or after they had begun.
    public var killed: UInt64 = 0
    /// Over, because they had reached a limit.
    public var limited: UInt64 = 0
    /// Over, because they could not be run.
    public var failed: UInt64 = 0
    /// The CPU time of those that are over.
    public var cpuTime = Duration.zero
    /// The bytes of output that guests have written.
    public var output: UInt64 = 0

    mutating func count(_ outcome: CallOutcome) {
        switch outcome {
        case .returned: returned += 1
        case .faulted: faulted += 1
        case .killed: killed += 1
        case .limited: limited += 1
        case .failed: failed += 1
        }
    }
}
