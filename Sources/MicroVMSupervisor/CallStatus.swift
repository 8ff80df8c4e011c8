public import MicroVM
public import SystemPackage

/// A call that waits, runs, or is over.
public struct CallStatus: Sendable {
    /// Where a call is on its way.
    public enum State: String, Sendable, Hashable, CaseIterable {
        /// It waits for its turn.
        case queued
        /// It is being given a sandbox, or is about to have its turn there.
        case starting
        /// Its guest function has had its turn, and there is something to be seen of it.
        case running
        /// Somebody holds it, until ``Supervisor/resume(_:)``.
        case stopped
        /// It is held because a limit on CPU time has been reached.
        case throttled
        /// It is over; ``CallStatus/outcome`` says how.
        case finished
    }

    /// Its number.
    public var id: CallID
    /// The name of its module.
    public var module: String
    /// The function that was called.
    public var function: String
    /// What the function was said to return.
    public var returns: CallValueType
    /// What people find it by.
    public var labels: [String: String]
    /// The higher, the sooner it starts.
    public var priority: Int
    /// What it may use.
    public var limits: CallLimits
    /// The call that it goes on from, where it was forked from one.
    public var parent: CallID?
    /// Where it is on its way.
    public var state: State
    /// When it was accepted, when it was given a sandbox, and when it was over.
    public var accepted: WallTime
    /// When it was given a sandbox.
    public var began: WallTime?
    /// When it was over.
    public var ended: WallTime?
    /// How many bytes of output the guest has written.
    public var output: UInt64
    /// What was last seen of it while it ran; see ``Supervisor/sample(maximumAge:)``.
    public var sample: CallSample?
    /// What has become of it, when it is over.
    public var outcome: CallOutcome?
    /// What it has cost, when it is over and guest code may have run.
    public var statistics: CallStatistics?
    /// The file to which its core dump was written, where its module's configuration has these written.
    public var coreDump: FilePath?
}

/// What was seen of a running call at one moment.
public struct CallSample: Sendable {
    /// When.
    public var time: WallTime
    /// What it had cost so far.
    public var statistics: CallStatistics
    /// The bytes of memory that its sandbox had to itself, where the kernel tells.
    public var memory: UInt64?
    /// The function that was under way.
    public var symbol: GuestSymbol?
    /// The address of the guest's next instruction.
    public var instructionPointer: UInt64
    /// The import whose host function was at work, if one was.
    public var hostFunction: String?
    /// The part of a processor that it has used since the sample before, or since it began; 1 is one processor.
    public var cpuShare: Double
    /// Exits in a second since the sample before.
    public var exitsPerSecond: Double
    /// Host calls in a second since the sample before.
    public var hostCallsPerSecond: Double

    init(_ state: SandboxState, after previous: CallSample?) {
        time = .now
        statistics = state.statistics
        memory = state.ownMemory
        symbol = state.symbol
        instructionPointer = state.instructionPointer
        hostFunction = state.hostFunction
        let before = previous?.statistics
        let elapsed = max((state.statistics.duration - (before?.duration ?? .zero)).seconds, 1e-6)
        func rate(_ now: UInt64, _ then: UInt64?) -> Double { Double(now - min(now, then ?? 0)) / elapsed }
        cpuShare = max(0, ((state.statistics.cpuTime ?? .zero) - (before?.cpuTime ?? .zero)).seconds / elapsed)
        exitsPerSecond = rate(state.statistics.exits, before?.exits)
        hostCallsPerSecond = rate(state.statistics.hostCalls, before?.hostCalls)
    }
}

extension Duration {
    var seconds: Double { Double(components.seconds) + Double(components.attoseconds) / 1e18 }
}
