#if Metrics
public import Metrics

/// What sandboxes report through swift-metrics, all of those together whose configuration has this.
///
/// ```swift
/// var configuration = SandboxConfiguration()
/// configuration.metrics = SandboxMetrics(dimensions: [("service", "thumbnails")])
/// ```
///
/// Made once and shared: making it asks the metrics system for some forty counters, and a call then only adds to them,
/// when it is over. The article Observability lists them.
public final class SandboxMetrics: Sendable {
    /// Where the metrics go.
    let factory: any MetricsFactory
    private let sandboxes: Meter
    private let duration: Metrics.Timer
    private let hostCalls, nestedCalls: Counter
    private let returned, faulted, interrupted, failed: Counter
    private let exitsToHostCalls, exitsToReturn, exitsByInterruption, otherExits: Counter
    private let killed, taskCancelled, timeLimit, cpuTimeLimit, confinement: Counter
    private let faults: [GuestFault.Kind: Counter]

    /// Makes the metrics.
    ///
    /// - Parameters:
    ///   - dimensions: what all of them have beside their own dimensions. There should be few different values: each is
    ///     a time series of every metric.
    ///   - factory: where they go; the metrics system's own unless given, which has to be set up before this.
    public init(dimensions: [(String, String)] = [], factory: any MetricsFactory = MetricsSystem.factory) {
        self.factory = factory
        func counter(_ label: String, _ own: (String, String)...) -> Counter {
            Counter(label: "microvm." + label, dimensions: own + dimensions, factory: factory)
        }
        sandboxes = Meter(label: "microvm.sandboxes", dimensions: dimensions, factory: factory)
        duration = Timer(label: "microvm.call_duration", dimensions: dimensions, factory: factory)
        hostCalls = counter("host_calls")
        nestedCalls = counter("nested_calls")
        returned = counter("calls", ("outcome", "returned"))
        faulted = counter("calls", ("outcome", "faulted"))
        interrupted = counter("calls", ("outcome", "killed"))
        failed = counter("calls", ("outcome", "failed"))
        exitsToHostCalls = counter("exits", ("kind", "host_call"))
        exitsToReturn = counter("exits", ("kind", "return"))
        exitsByInterruption = counter("exits", ("kind", "interruption"))
        otherExits = counter("exits", ("kind", "other"))
        killed = counter("kills", ("reason", CallState.Reason.killed.name))
        taskCancelled = counter("kills", ("reason", CallState.Reason.taskCancelled.name))
        timeLimit = counter("kills", ("reason", CallState.Reason.timeLimit.name))
        cpuTimeLimit = counter("kills", ("reason", CallState.Reason.cpuTimeLimit.name))
        confinement = counter("kills", ("reason", CallState.Reason.confinement.name))
        var faults: [GuestFault.Kind: Counter] = [:]
        for kind in GuestFault.Kind.allCases { faults[kind] = counter("faults", ("kind", kind.rawValue)) }
        self.faults = faults
    }

    static func of(_ configuration: SandboxConfiguration) -> SandboxMetrics? { configuration.metrics }

    func made() { sandboxes.increment() }
    func closed() { sandboxes.decrement() }

    func callEnded(_ outcome: CallOutcome, _ meter: CallMeter) {
        switch outcome {
        case .returned: returned.increment()
        case .failed: failed.increment()
        case .faulted(let fault):
            faulted.increment()
            faults[fault.kind]?.increment()
        case .interrupted(let reason):
            interrupted.increment()
            switch reason {
            case .killed: killed.increment()
            case .taskCancelled: taskCancelled.increment()
            case .timeLimit: timeLimit.increment()
            case .cpuTimeLimit: cpuTimeLimit.increment()
            case .confinement: confinement.increment()
            }
        }
        duration.recordNanoseconds(Int64(clamping: meter.nanoseconds))
        let others = meter.exits &- meter.hostCalls &- meter.returns &- meter.interruptions
        if meter.hostCalls > 0 {
            hostCalls.increment(by: meter.hostCalls)
            exitsToHostCalls.increment(by: meter.hostCalls)
        }
        if meter.nestedCalls > 0 { nestedCalls.increment(by: meter.nestedCalls) }
        if meter.returns > 0 { exitsToReturn.increment(by: meter.returns) }
        if meter.interruptions > 0 { exitsByInterruption.increment(by: meter.interruptions) }
        if others > 0 { otherExits.increment(by: others) }
    }
}
#else
/// What sandboxes report through swift-metrics: nothing without the trait Metrics.
final class SandboxMetrics {
    static func of(_ configuration: SandboxConfiguration) -> SandboxMetrics? { nil }

    func made() {}
    func closed() {}
    func callEnded(_ outcome: CallOutcome, _ meter: CallMeter) {}
}
#endif
