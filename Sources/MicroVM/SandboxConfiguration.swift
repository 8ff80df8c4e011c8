#if Logging
public import Logging
#endif
#if Tracing
public import Tracing
#endif

/// How a sandbox is made: its memory, its limits, and what it may reach.
public struct SandboxConfiguration: Sendable {
    /// Where the bytes go that a guest writes through `microvm_write`.
    public enum Output: Sendable {
        /// Nowhere.
        case discard
        /// To the process's own standard output and standard error.
        case standardStreams
        /// To a closure, on the sandbox's thread, as they come.
        case handler(@Sendable (OutputStream, [UInt8]) -> Void)
    }

    /// The two streams a guest can write to.
    public enum OutputStream: Int32, Sendable {
        /// Stream 1.
        case standardOutput = 1
        /// Stream 2.
        case standardError = 2
    }

    /// The bytes of memory the guest may own: its image, stack, argument arena and heap together. Reserved at once,
    /// used as it is touched. At most 64 GiB; 64 MiB unless set.
    public var memoryLimit: UInt64 = 64 << 20
    /// How many bytes of ``memoryLimit`` the guest has to begin with; all of them unless set. The rest is at the heap's
    /// end: the guest gets it by `microvm_heap_grow`, the host by ``Sandbox/growHeap(by:)``, and until then an access
    /// there is a fault. A restore takes away what has grown since the snapshot.
    public var initialMemorySize: UInt64?
    /// How many windows the guest has, in which ``Sandbox/map(_:access:)`` shows it files and memory of the host, from
    /// 0 to 64; none unless set.
    public var windowCount = 0
    /// The bytes of each window, at most 64 GiB, rounded up to whole pages; 64 MiB unless set. They are addresses, not
    /// memory, and not part of ``memoryLimit``.
    public var windowSize: UInt64 = 64 << 20
    /// Who serves the pages of lazily loaded windows (``WindowContents/lazy(_:)``): one for the whole process unless
    /// set.
    public var pageFaultHandler: PageFaultHandler?
    /// How many bytes of written pages a restore leaves in memory, each copied back from the snapshot; pages beyond
    /// that are dropped, and come anew when they are touched. 16 MiB unless set. To copy a page costs a tenth of a
    /// microsecond or so at each restore, to drop it several microseconds at its next use.
    public var residentMemoryAfterRestore: UInt64 = 16 << 20
    /// The bytes of the guest's stack, 4096 at least, rounded up to whole pages; 1 MiB unless set.
    public var stackSize: UInt64 = 1 << 20
    /// The bytes that the strings and byte arrays of one call, and a host function's result, may take together: 4096 at
    /// least, rounded up to whole pages; 4 MiB unless set. Each takes one byte more than it has, rounded up to 16.
    public var argumentArenaSize: UInt64 = 4 << 20
    /// How long a call may take by the clock, host functions included, where it names no limit of its own; without
    /// limit unless set.
    public var timeLimit: Duration?
    /// How much CPU time of the sandbox's thread a call may use, where it names no limit of its own; without limit
    /// unless set. That is the guest's time and the synchronous host functions'; the kernel looks at it at its clock's
    /// ticks, of 1 to 10 milliseconds.
    public var cpuTimeLimit: Duration?
    /// How long the module's initialisers may run by the clock, all together; ``timeLimit`` unless set.
    public var initializerTimeLimit: Duration?
    /// How much CPU time the module's initialisers may use, all together; ``cpuTimeLimit`` unless set.
    public var initializerCPUTimeLimit: Duration?
    /// Whether the time for which a sandbox is held by a stop counts towards the limits by the clock; false unless set.
    public var countsStoppedTime = false
    /// Whether ``CallStatistics/cpuTime`` is measured for every call; false unless set.
    public var measuresCPUTime = false
    /// How many guest calls may be under way that were made from inside host calls, one inside the other, from 0 to
    /// 1000; 16 unless set. Each takes some of the stacks of the guest and of the sandbox's thread.
    public var maximumCallDepth = 16
    /// Whether the guest polls for the next call after one has returned, so that callers elsewhere reach it without an
    /// exit: ``PollingPolicy/adaptive`` unless set.
    public var polling = PollingPolicy.adaptive
    #if SYNCHRONIZATION_POINTS
    var pollingTrial = PollingPlan.environmentTrial
    #else
    let pollingTrial: PollingPlan.Trial? = nil
    #endif
    /// The set that the sandbox belongs to from before its initialisers run; none unless set.
    public var sandboxSet: SandboxSet?
    /// Which real-time signal interrupts the virtual CPU's thread: SIGRTMIN plus this, from 0 to SIGRTMAX - SIGRTMIN; 0
    /// unless set. A handler that was installed for the signal before is called for every signal that is not the
    /// library's.
    public var interruptSignalOffset: Int32 = 0
    /// How long a kick is waited for before it is sent again, more than zero; 500 microseconds unless set. Each time
    /// after that it is twice as long, up to a quarter of a second.
    public var interruptRetryDelay: Duration = .microseconds(500)
    /// How much the sandbox's thread leaves the processors to other threads, from 0 to 19: that much is added to the
    /// nice value (sched(7)) of the thread that makes the sandbox. 0 unless set. With 10 a guest that never rests gets
    /// a tenth of a processor that another thread wants, and all of one that nobody does: so whoever watches many
    /// guests is not kept waiting by them. A kill, too, comes no sooner than the guest's thread gets a processor to
    /// leave the guest on. Threads that synchronous host functions begin are as nice; the concurrency pool's are not,
    /// for which tasks that become runnable here are handed on by another thread, as in confined processes.
    public var niceness = 0
    /// Whether the sandbox's thread is confined further than the process is, where that is confined; true unless set.
    /// What synchronous host functions do, they do on this thread: where they open files or begin threads, say false.
    /// The article Confining processes says what the thread may do.
    public var confinesThread = true
    /// Where core dumps of calls that end in a fault are written; nowhere unless set.
    public var coreDumps: CoreDumpPolicy?
    /// Where the guest's output goes; nowhere unless set.
    public var output: Output = .discard

    #if Logging
    /// Where the sandbox logs what becomes of it and of its calls, and where the lines go that the guest logs through
    /// `microvm_log`; nowhere unless set. The article Observability has a table of the events and their metadata.
    public var logger: Logger?
    /// How much the guest may log through `microvm_log`; see ``GuestLogLimits``.
    public var guestLogLimits = GuestLogLimits()
    /// The clock of these limits, in nanoseconds; must not go back.
    var guestLogClock: @Sendable () -> UInt64 = { MonotonicTime.now.nanoseconds }
    #endif
    #if Metrics
    /// What counts the sandbox's calls, exits, kills and faults through swift-metrics; nothing unless set. One is made
    /// for many sandboxes.
    public var metrics: SandboxMetrics?
    #endif
    #if Tracing
    /// Who makes the spans of guest calls and of host functions; nobody unless set. They are children of the calling
    /// task's span, and the spans that host functions make are children of theirs.
    public var tracer: (any Tracer)?
    #endif

    /// The defaults.
    public init() {}

    /// Whether anybody watches the sandbox.
    var isObserved: Bool {
        #if Logging
        if logger != nil { return true }
        #endif
        #if Metrics
        if metrics != nil { return true }
        #endif
        #if Tracing
        if tracer != nil { return true }
        #endif
        return false
    }

    /// Checks every value and rounds the sizes to whole pages.
    func validated() throws(SandboxError) -> SandboxConfiguration {
        func check(_ condition: Bool, _ message: @autoclosure () -> String) throws(SandboxError) {
            if !condition { throw SandboxError(.invalidConfiguration, message()) }
        }
        let page = AddressSpace.pageSize
        let maximum: UInt64 = 64 << 30
        try check(memoryLimit <= maximum, "memoryLimit is \(memoryLimit) bytes; at most \(maximum) are possible.")
        try check(
            (page...maximum).contains(stackSize),
            "stackSize is \(stackSize) bytes; it must lie between \(page) and the memory limit."
        )
        try check(
            (page...maximum).contains(argumentArenaSize),
            "argumentArenaSize is \(argumentArenaSize) bytes; it must lie between \(page) and the memory limit."
        )
        try check(
            InterruptSignal.isAvailable(offset: interruptSignalOffset),
            "interruptSignalOffset is \(interruptSignalOffset); SIGRTMIN plus it must be a real-time signal."
        )
        try check(
            interruptRetryDelay > .zero,
            "interruptRetryDelay is \(interruptRetryDelay); it must be longer than nothing."
        )
        try check((0...19).contains(niceness), "niceness is \(niceness); it must lie between 0 and 19.")
        try check(
            (0...1000).contains(maximumCallDepth),
            "maximumCallDepth is \(maximumCallDepth); it must lie between 0 and 1000."
        )
        if case .upTo(let duration) = polling {
            try check(
                (.zero...Duration.seconds(1)).contains(duration),
                "polling is for up to \(duration); it must lie between nothing and one second."
            )
        }
        try check((0...64).contains(windowCount), "windowCount is \(windowCount); it must lie between 0 and 64.")
        try check(
            windowCount == 0
                || (page...maximum).contains(windowSize)
                    && windowSize <= 4 * maximum / UInt64(windowCount),
            """
            windowSize is \(windowSize) bytes; it must lie between \(page) and \(maximum), and all windows within \
            \(4 * maximum).
            """
        )
        #if Logging
        try check(
            (0...1_000_000).contains(guestLogLimits.linesPerSecond) && (0...1_000_000).contains(guestLogLimits.burst)
                && (1...65_536).contains(guestLogLimits.maximumLength),
            """
            guestLogLimits are \(guestLogLimits.linesPerSecond) lines per second, \(guestLogLimits.burst) at once, of \
            \(guestLogLimits.maximumLength) bytes; lines must lie between 0 and 1000000, bytes between 1 and 65536.
            """
        )
        #endif
        try coreDumps?.validate()
        var copy = self
        copy.windowSize = windowCount == 0 ? 0 : windowSize.roundedUp(to: page)
        copy.stackSize = stackSize.roundedUp(to: page)
        copy.argumentArenaSize = argumentArenaSize.roundedUp(to: page)
        return copy
    }
}
