/// What a supervisor is asked to call.
public struct CallRequest: Sendable {
    /// The name under which the module is registered.
    public var module: String
    /// A function that the module exports.
    public var function: String
    /// What it is called with.
    public var arguments: [CallValue]
    /// What it returns, as it is declared in C; a module does not say. A 64-bit integer unless set.
    public var returns = CallValueType.i64
    /// What the call may use; the module's own limits where nothing is set.
    public var limits = CallLimits()
    /// Names and values by which people find the call, and by one of which the queue is fair
    /// (``SupervisorConfiguration/fairnessLabel``). At most 32 of at most 256 bytes each.
    public var labels: [String: String] = [:]
    /// Queued calls of a higher priority come first. 0 unless set.
    public var priority = 0

    /// A call of a function of a module.
    public init(
        module: String,
        function: String,
        arguments: [CallValue] = [],
        returns: CallValueType = .i64,
        limits: CallLimits = CallLimits(),
        labels: [String: String] = [:],
        priority: Int = 0
    ) {
        self.module = module
        self.function = function
        self.arguments = arguments
        self.returns = returns
        self.limits = limits
        self.labels = labels
        self.priority = priority
    }
}

/// What one call may use. Nothing is limited that is not set.
public struct CallLimits: Sendable, Hashable {
    /// How long it may run by the clock; stops do not count.
    public var time: Duration?
    /// How much CPU time of its sandbox's thread it may use.
    public var cpuTime: Duration?
    /// How many bytes of output it may write.
    public var output: UInt64?
    /// How long it may wait in the queue.
    public var queueTime: Duration?

    /// No limits but those that are given.
    public init(
        time: Duration? = nil,
        cpuTime: Duration? = nil,
        output: UInt64? = nil,
        queueTime: Duration? = nil
    ) {
        self.time = time
        self.cpuTime = cpuTime
        self.output = output
        self.queueTime = queueTime
    }

    /// For each limit the smaller one.
    package func bounded(by other: CallLimits) -> CallLimits {
        func least<Value: Comparable>(_ left: Value?, _ right: Value?) -> Value? {
            guard let left, let right else { return left ?? right }
            return min(left, right)
        }
        return CallLimits(
            time: least(time, other.time),
            cpuTime: least(cpuTime, other.cpuTime),
            output: least(output, other.output),
            queueTime: least(queueTime, other.queueTime)
        )
    }
}
