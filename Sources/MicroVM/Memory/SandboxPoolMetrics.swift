#if Metrics
import Metrics

/// What a pool reports through swift-metrics, with the dimension `pool`.
struct SandboxPoolMetrics: Sendable {
    private let inUse, waiting: Meter
    private let restores, restoreFailures, pagesCopied, pagesDropped, killedReturns, poisonedReturns, refusals: Counter

    init(pool: String) {
        let dimensions = [("pool", pool)]
        inUse = Meter(label: "microvm.pool.in_use", dimensions: dimensions)
        waiting = Meter(label: "microvm.pool.waiting", dimensions: dimensions)
        restores = Counter(label: "microvm.pool.restores", dimensions: dimensions)
        restoreFailures = Counter(label: "microvm.pool.restore_failures", dimensions: dimensions)
        pagesCopied = Counter(label: "microvm.pool.pages_copied", dimensions: dimensions)
        pagesDropped = Counter(label: "microvm.pool.pages_dropped", dimensions: dimensions)
        killedReturns = Counter(label: "microvm.pool.killed_returns", dimensions: dimensions)
        poisonedReturns = Counter(label: "microvm.pool.poisoned_returns", dimensions: dimensions)
        refusals = Counter(label: "microvm.pool.refusals", dimensions: dimensions)
    }

    func inUse(_ change: Int) { inUse.increment(by: Double(change)) }
    func waiting(_ change: Int) { waiting.increment(by: Double(change)) }
    func refused() { refusals.increment() }
    func restoreFailed() { restoreFailures.increment() }

    func returned(killed: Bool, poisoned: Bool) {
        if killed { killedReturns.increment() }
        if poisoned { poisonedReturns.increment() }
    }

    func restored(_ restore: RestoreStatistics) {
        restores.increment()
        pagesCopied.increment(by: restore.pagesCopied)
        if restore.pagesDropped > 0 { pagesDropped.increment(by: restore.pagesDropped) }
    }
}
#else
/// What a pool reports through swift-metrics: nothing without the trait Metrics.
struct SandboxPoolMetrics: Sendable {
    init(pool: String) {}

    func inUse(_ change: Int) {}
    func waiting(_ change: Int) {}
    func refused() {}
    func restoreFailed() {}
    func returned(killed: Bool, poisoned: Bool) {}
    func restored(_ restore: RestoreStatistics) {}
}
#endif
