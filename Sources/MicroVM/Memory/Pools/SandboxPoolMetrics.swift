#if Metrics
import Metrics

/// What a pool reports through swift-metrics, with the dimension `pool`: where its sandboxes report, or to the metrics
/// system's own factory where they do not.
struct SandboxPoolMetrics: Sendable {
    private let inUse, waiting: Meter
    private let restores, restoreFailures, pagesCopied, pagesDropped, killedReturns, poisonedReturns, refusals: Counter

    init(_ configuration: SandboxConfiguration, pool: String) {
        let dimensions = [("pool", pool)]
        let factory = configuration.metrics?.factory ?? MetricsSystem.factory
        inUse = Meter(label: "microvm.pool.in_use", dimensions: dimensions, factory: factory)
        waiting = Meter(label: "microvm.pool.waiting", dimensions: dimensions, factory: factory)
        restores = Counter(label: "microvm.pool.restores", dimensions: dimensions, factory: factory)
        restoreFailures = Counter(label: "microvm.pool.restore_failures", dimensions: dimensions, factory: factory)
        pagesCopied = Counter(label: "microvm.pool.pages_copied", dimensions: dimensions, factory: factory)
        pagesDropped = Counter(label: "microvm.pool.pages_dropped", dimensions: dimensions, factory: factory)
        killedReturns = Counter(label: "microvm.pool.killed_returns", dimensions: dimensions, factory: factory)
        poisonedReturns = Counter(label: "microvm.pool.poisoned_returns", dimensions: dimensions, factory: factory)
        refusals = Counter(label: "microvm.pool.refusals", dimensions: dimensions, factory: factory)
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
    init(_ configuration: SandboxConfiguration, pool: String) {}

    func inUse(_ change: Int) {}
    func waiting(_ change: Int) {}
    func refused() {}
    func restoreFailed() {}
    func returned(killed: Bool, poisoned: Bool) {}
    func restored(_ restore: RestoreStatistics) {}
}
#endif
