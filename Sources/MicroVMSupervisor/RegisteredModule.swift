import MicroVM

/// A module under its name. The supervisor's own: only its actor uses what changes.
final class RegisteredModule {
    let name: String
    let module: GuestModule
    let settings: ModuleSettings
    let pool: SandboxPool
    let registered = WallTime.now
    let cpuTime = MinuteMeter()
    let output: MinuteMeter
    var running = 0
    var queued = 0
    var totals = CallTotals()
    /// Whether another one has its name, or none any more.
    var isRetired = false
    /// Whether its calls are held until CPU time is there again.
    var isThrottled = false

    init(name: String, module: GuestModule, settings: ModuleSettings, pool: SandboxPool) {
        self.name = name
        self.module = module
        self.settings = settings
        self.pool = pool
        output = MinuteMeter()
    }

    /// What each of its sandboxes may own.
    var memory: UInt64 { settings.sandbox.memoryLimit }

    /// Whether one more of its calls may run, as far as it alone is concerned.
    var hasRoom: Bool {
        guard !isThrottled, running < pool.size.upperBound else { return false }
        if let limit = settings.limits.sandboxes, running >= limit { return false }
        if let limit = settings.limits.memory, UInt64(running + 1) * memory > limit { return false }
        return true
    }

    var status: ModuleStatus {
        ModuleStatus(
            name: name,
            module: module,
            registered: registered,
            pool: pool.size,
            poolStatistics: pool.statistics,
            memoryLimit: memory,
            limits: settings.limits,
            running: running,
            queued: queued,
            totals: totals
        )
    }
}
