#if Logging
/// How much a guest may log through `microvm_log`.
///
/// Lines that come too soon are counted and dropped. How many they were is logged before the next line that is not, and
/// at the end of the call: one line each time, whatever the guest does. Lines below the logger's level do not count.
public struct GuestLogLimits: Sendable, Hashable {
    /// How many lines a sandbox may log each second in the long run, from 0 to 1,000,000; 100 unless set.
    public var linesPerSecond = 100
    /// How many it may log at once after it has been silent, from 0 to 1,000,000; 200 unless set. Without any, nothing
    /// that a guest says is logged.
    public var burst = 200
    /// How many bytes of a line are logged, from 1 to 65,536; 1024 unless set. What follows is left out, and an
    /// ellipsis in its place.
    public var maximumLength = 1024

    /// The defaults.
    public init() {}
}
#endif
