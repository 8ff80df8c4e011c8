/// What one call has cost.
public struct CallStatistics: Sendable, Hashable {
    /// Time by the clock from the beginning of the call to its end.
    public var duration: Duration
    /// The part of ``duration`` for which the sandbox was held by a stop.
    public var stoppedDuration: Duration
    /// The CPU time of the sandbox's thread, which is that of the guest and of the synchronous host functions. Measured
    /// for calls that have a ``GuestCall`` or a limit on it, and where
    /// ``SandboxConfiguration/measuresCPUTime`` says so: reading the clock twice costs a call about two microseconds.
    public var cpuTime: Duration?
    /// How many times the guest was left, for whatever reason.
    public var exits: UInt64
    /// How many imports were called, those that the library provides included.
    public var hostCalls: UInt64
    /// How many guest calls were made from inside host calls.
    public var nestedCalls: UInt64
    /// How many times a debugger's interruption kept the guest from running, or took it out.
    public var debugInterrupts: UInt64
}
