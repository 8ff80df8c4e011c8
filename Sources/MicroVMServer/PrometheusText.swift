#if Server
import MicroVM
import MicroVMSupervisor

/// What the supervisor counts, in the text format of Prometheus.
struct PrometheusText {
    private(set) var text = ""

    init(_ statistics: SupervisorStatistics, modules: [ModuleStatus]) {
        gauge("microvm_calls_running", "Calls that run, the ones that are held included.", statistics.running)
        gauge("microvm_calls_queued", "Calls that wait for their turn.", statistics.queued)
        gauge("microvm_calls_stopped", "Calls that somebody holds.", statistics.stopped)
        gauge("microvm_calls_throttled", "Calls that are held until there is CPU time.", statistics.throttled)
        gauge("microvm_memory_reserved_bytes", "Memory that running calls may own.", statistics.memory)
        gauge("microvm_snapshots", "Snapshots that are kept.", statistics.snapshots)
        head("microvm_calls_total", "counter", "Calls that are over, by what became of them.")
        for module in modules {
            for (outcome, count) in [
                ("returned", module.totals.returned), ("faulted", module.totals.faulted),
                ("killed", module.totals.killed), ("limited", module.totals.limited),
                ("failed", module.totals.failed),
            ] {
                line("microvm_calls_total", "{module=\"\(module.name)\",outcome=\"\(outcome)\"}", "\(count)")
            }
        }
        perModule("microvm_calls_accepted_total", "counter", "Calls that were accepted.", modules) {
            "\($0.totals.accepted)"
        }
        perModule("microvm_calls_refused_total", "counter", "Calls that were turned away.", modules) {
            "\($0.totals.refused)"
        }
        perModule("microvm_cpu_seconds_total", "counter", "CPU time of calls that are over.", modules) {
            "\($0.totals.cpuTime.seconds)"
        }
        perModule("microvm_output_bytes_total", "counter", "Output of calls that are over.", modules) {
            "\($0.totals.output)"
        }
        perModule("microvm_pool_sandboxes", "gauge", "Sandboxes there are.", modules) {
            "\($0.poolStatistics.sandboxes)"
        }
        perModule("microvm_pool_in_use", "gauge", "Sandboxes that are lent.", modules) { "\($0.poolStatistics.inUse)" }
        perModule("microvm_pool_maximum", "gauge", "Sandboxes there may be.", modules) { "\($0.pool.upperBound)" }
        histogram(statistics.durations)
    }

    private mutating func histogram(_ durations: DurationHistogram) {
        let name = "microvm_call_duration_seconds"
        head(name, "histogram", "How long calls have taken.")
        var count: UInt64 = 0
        for (bound, more) in zip(DurationHistogram.bounds, durations.counts) {
            count += more
            line("\(name)_bucket", "{le=\"\(bound.seconds)\"}", "\(count)")
        }
        count += durations.counts.last ?? 0
        line("\(name)_bucket", "{le=\"+Inf\"}", "\(count)")
        line("\(name)_sum", "", "\(durations.sum.seconds)")
        line("\(name)_count", "", "\(count)")
    }

    private mutating func head(_ name: String, _ type: String, _ help: String) {
        text += "# HELP \(name) \(help)\n# TYPE \(name) \(type)\n"
    }

    /// The names of modules need no escapes.
    private mutating func line(_ name: String, _ labels: String, _ value: String) {
        text += "\(name)\(labels) \(value)\n"
    }

    private mutating func gauge(_ name: String, _ help: String, _ value: some BinaryInteger) {
        head(name, "gauge", help)
        line(name, "", "\(value)")
    }

    private mutating func perModule(
        _ name: String,
        _ type: String,
        _ help: String,
        _ modules: [ModuleStatus],
        _ value: (ModuleStatus) -> String
    ) {
        head(name, type, help)
        for module in modules { line(name, "{module=\"\(module.name)\"}", value(module)) }
    }
}
#endif
