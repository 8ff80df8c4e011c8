public import MicroVM

/// What has become of a call.
public enum CallOutcome: Sendable {
    /// The function has returned; nothing where the value is not remembered any more.
    case returned(CallValue?)
    /// The guest has done something illegal.
    case faulted(GuestFault)
    /// Somebody has ended it; where it was, if it had begun.
    case killed(by: CallKiller, at: GuestInterruption?)
    /// It has reached a limit; where it was, if it had begun.
    case limited(CallLimit, at: GuestInterruption?)
    /// It could not be run, or its result was not what it was said to be: a `SandboxError`, or what a host function has
    /// thrown.
    case failed(any Error)
}

/// Who ends calls.
public enum CallKiller: String, Sendable, Hashable, CaseIterable {
    /// Somebody who has called ``Supervisor/kill(_:)``.
    case request
    /// The supervisor's shutdown.
    case shutdown
    /// The removal of the call's module.
    case removal
}

/// The limits at which calls are ended.
public enum CallLimit: String, Sendable, Hashable, CaseIterable {
    /// Its own, by the clock.
    case time
    /// Its own, in CPU time.
    case cpuTime
    /// Its own, of output.
    case output
    /// That of its module's or of everybody's output in a minute.
    case outputPerMinute
    /// Its own, of the time in the queue.
    case queueTime
}
