#if Logging
public import Logging
#endif

/// What a supervisor allows, and how much it remembers.
public struct SupervisorConfiguration: Sendable {
    /// What all calls may use together.
    public var limits = ResourceLimits()
    /// How many calls may wait; 1,000 unless set. The next one is refused.
    public var maximumQueuedCalls = 1000
    /// How many bytes the strings and byte arrays may have together that are arguments of calls which wait; 256 MiB
    /// unless set.
    public var maximumQueuedBytes = 256 << 20
    /// The label by which the queue is fair: calls of the same priority are started in turn for each of its values, and
    /// those that lack it count as having a value of their own in common. `tenant` unless set.
    public var fairnessLabel = "tenant"
    /// How many calls are remembered that are over; 1,000 unless set.
    public var historySize = 1000
    /// How many bytes of the end of a call's output are kept for those who ask; 64 KiB unless set.
    public var outputBufferSize = 64 << 10
    /// How many bytes of output and results of calls that are over are kept altogether; 16 MiB unless set.
    public var historyOutputSize = 16 << 20
    /// How many snapshots may be kept at the same time; 16 unless set.
    public var maximumSnapshots = 16
    /// How often limits are looked at that the sandboxes do not watch themselves; 250 milliseconds unless set.
    public var watchInterval = Duration.milliseconds(250)
    /// How long a call may go on beyond its time limit before it is ended once more, from outside; a second unless set.
    public var watchdogGrace = Duration.seconds(1)
    /// For how long a graceful shutdown lets calls go on before it ends them; 10 seconds unless set.
    public var drainTime = Duration.seconds(10)
    /// The number of the first call; 1 unless set. Whoever keeps records goes on behind them.
    public var firstCall = CallID(rawValue: 1)
    /// Who keeps records of calls; nobody unless set.
    public var recorder: (any CallRecorder)?
    /// Where the tasks of calls run while no guest does; on the global executor unless set.
    public var taskExecutor: (any TaskExecutor)?
    #if Logging
    /// Where the supervisor logs what becomes of calls; nowhere unless set.
    public var logger: Logger?
    #endif

    /// The defaults.
    public init() {}
}

/// Keeps records of a supervisor's calls.
///
/// Called by the supervisor itself, which does nothing else meanwhile: whoever writes to a disk hands the work on.
public protocol CallRecorder: Sendable {
    /// A call has been accepted.
    func accepted(_ call: CallStatus)
    /// A call is over.
    func ended(_ call: CallStatus)
}
