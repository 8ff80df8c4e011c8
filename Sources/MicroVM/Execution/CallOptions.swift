/// What limits one call, and who else knows of it.
struct CallOptions: Sendable {
    /// By the clock.
    var timeLimit: Duration?
    /// In CPU time of the virtual CPU's thread.
    var cpuTimeLimit: Duration?
    /// The call as it was named before it began.
    var pending: PendingCall?
    /// Whether it goes on with a call that a snapshot was taken in the middle of.
    var resumes = false
}
