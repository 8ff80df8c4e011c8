/// What the calls of one module, or all calls together, may use. Nothing is limited that is not set.
public struct ResourceLimits: Sendable, Hashable {
    /// How many calls may run at the same time, each in a sandbox of its own. Others wait in the queue.
    public var sandboxes: Int?
    /// The bytes of memory that the sandboxes of running calls may own together, each counted with its
    /// `SandboxConfiguration.memoryLimit`. Others wait in the queue.
    public var memory: UInt64?
    /// How much CPU time guests may use in a minute, over the last sixty seconds. Beyond it no call is started, and
    /// those that run are held (``CallStatus/State/throttled``) until enough of the minute has passed.
    public var cpuTimePerMinute: Duration?
    /// How many bytes of output guests may write in a minute. The call that writes the first byte too many is ended.
    public var outputPerMinute: UInt64?

    /// No limits but those that are given.
    public init(
        sandboxes: Int? = nil,
        memory: UInt64? = nil,
        cpuTimePerMinute: Duration? = nil,
        outputPerMinute: UInt64? = nil
    ) {
        self.sandboxes = sandboxes
        self.memory = memory
        self.cpuTimePerMinute = cpuTimePerMinute
        self.outputPerMinute = outputPerMinute
    }
}
