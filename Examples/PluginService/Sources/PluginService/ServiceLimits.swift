/// What a request may use, and how many may be served at once.
struct ServiceLimits: Sendable {
    /// By the clock, of the guest's call.
    var timeLimit: Duration = .milliseconds(500)
    /// Bytes of memory of a sandbox.
    var memoryLimit: UInt64 = 64 << 20
    /// Bytes of a request's body.
    var bodyLimit = 1 << 20
    /// Sandboxes of each plugin.
    var sandboxes = 0...8
    /// Requests that wait for a sandbox of one plugin.
    var maximumWaiters = 64
    /// How long each waits.
    var waitingTimeLimit: Duration = .seconds(2)
}
