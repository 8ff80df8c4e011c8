import CShims
import Glibc
import SystemPackage

/// Counts what one call costs.
struct CallMeter: Sendable {
    private(set) var began = MonotonicTime.zero
    private(set) var ended: MonotonicTime? = .zero
    /// Both, of a call that was begun while the guest polled, in ticks of the processor's clock, which is cheaper to
    /// read.
    private(set) var beganTicks, endedTicks: UInt64?
    /// The thread's CPU time at the beginning and at the end, where it is measured.
    private var cpuTimeBegan, cpuTimeEnded: UInt64?
    /// The clock of the thread's CPU time, which other threads may read as well.
    private var clock = CLOCK_THREAD_CPUTIME_ID
    /// Nanoseconds in which the call was held by a stop.
    var stopped: UInt64 = 0
    var exits: UInt64 = 0
    /// Those of them in which a guest function had returned, and those in which only a signal had come.
    var returns: UInt64 = 0
    var interruptions: UInt64 = 0
    var hostCalls: UInt64 = 0
    var nestedCalls: UInt64 = 0
    var debugInterrupts: UInt64 = 0

    /// The clock of the calling thread's CPU time.
    static var ownCPUClock: clockid_t {
        var clock = CLOCK_THREAD_CPUTIME_ID
        // Of the calling thread, so it exists. The word outlives the call.
        unsafe _ = pthread_getcpuclockid(pthread_self(), &clock)
        return clock
    }

    /// A meter of no call.
    init() {}

    /// The call begins now, on the calling thread.
    init(measuringCPUTime: Bool) {
        began = .now
        ended = nil
        guard measuringCPUTime else { return }
        clock = Self.ownCPUClock
        cpuTimeBegan = MonotonicTime.nanoseconds(of: clock)
    }

    /// A call begins now, which the guest polls for.
    ///
    /// - Parameter clock: of the virtual CPU's thread's CPU time, where that is measured.
    @inline(__always) init(polledWithCPUTime clock: clockid_t?) {
        beganTicks = shim_ticks()
        ended = nil
        guard let clock else { return }
        self.clock = clock
        cpuTimeBegan = MonotonicTime.nanoseconds(of: clock)
    }

    /// The readings of the clocks that a meter goes by.
    struct Reading {
        fileprivate var time: MonotonicTime?
        fileprivate var ticks: UInt64?
        fileprivate var cpuTime: UInt64?
    }

    /// What the clocks say now.
    var reading: Reading {
        @inline(__always) get {
            Reading(
                time: beganTicks == nil ? .now : nil,
                ticks: beganTicks == nil ? nil : shim_ticks(),
                cpuTime: cpuTimeBegan == nil ? nil : MonotonicTime.nanoseconds(of: clock)
            )
        }
    }

    /// The call was over at a reading. Reading the clocks is not part of this, so that the compiler sees that nothing
    /// else can use the meter meanwhile, and need not have that checked.
    @inline(__always) mutating func end(at reading: Reading) {
        (ended, endedTicks, cpuTimeEnded) = (reading.time, reading.ticks, reading.cpuTime)
    }

    /// What it is if the call is over now.
    func endingNow() -> CallMeter {
        var meter = self
        meter.end(at: reading)
        return meter
    }

    var duration: Duration { .nanoseconds(Int64(clamping: nanoseconds)) }
    var nanoseconds: UInt64 {
        if let beganTicks {
            return PollingClock.shared.nanoseconds(ofTicks: (endedTicks ?? shim_ticks()) &- beganTicks)
        }
        return (ended ?? .now).nanoseconds - began.nanoseconds
    }

    /// How much CPU time the call has used so far, in nanoseconds; nothing where that is not measured.
    var cpuNanoseconds: UInt64? {
        // Time that another thread has begun to count may seem to go back.
        cpuTimeBegan.map { began in
            let now = cpuTimeEnded ?? MonotonicTime.nanoseconds(of: clock)
            return now < began ? 0 : now - began
        }
    }

    /// What has been counted so far; on the virtual CPU's thread, or by whoever looks while that is in a host function.
    var statistics: CallStatistics {
        CallStatistics(
            duration: duration,
            stoppedDuration: .nanoseconds(Int64(clamping: stopped)),
            cpuTime: cpuNanoseconds.map { .nanoseconds(Int64(clamping: $0)) },
            exits: exits,
            hostCalls: hostCalls,
            nestedCalls: nestedCalls,
            debugInterrupts: debugInterrupts
        )
    }
}

/// One limit's timer: made for the first call that has such a limit, and kept for later ones.
final class LimitTimer {
    /// What the call ends for; nothing where the timer's signal only has the guest left.
    private let reason: CallState.Reason?
    private var timer: Int32?
    private var isArmed = false
    /// What was left of the limit when a stop began.
    private var left: UInt64 = 0

    init(_ reason: CallState.Reason?) { self.reason = reason }

    var isMade: Bool { timer != nil }

    func make(_ handle: LinuxInterruptHandle) throws(SandboxError) {
        guard timer == nil else { return }
        switch handle.makeTimer(reason) {
        case .success(let made): timer = made
        case .failure(let failure):
            throw SandboxError(
                .systemCallFailed,
                "Could not make a timer for the time limit.",
                underlyingError: Errno(rawValue: failure.code)
            )
        }
    }

    /// Has its signal come every so often.
    func `repeat`(_ handle: LinuxInterruptHandle, nanoseconds: UInt64) {
        guard let timer else { return }
        isArmed = true
        _ = shim_timer_repeat(timer, nanoseconds)
    }

    func arm(_ handle: LinuxInterruptHandle, nanoseconds: UInt64) {
        guard let timer, let reason else { return }
        isArmed = true
        handle.arm(timer, reason, nanoseconds: nanoseconds)
    }

    func disarm(_ handle: LinuxInterruptHandle) {
        guard isArmed, let timer else { return }
        isArmed = false
        handle.disarm(timer)
    }

    /// Stops the clock. Whether there is one that ran.
    func hold(_ handle: LinuxInterruptHandle) -> Bool {
        guard isArmed, let timer else { return false }
        left = handle.disarm(timer)
        // Over: its signal has come already, and asked for the end of the call.
        return left > 0
    }

    /// Lets the clock go on where it was held.
    func goOn(_ handle: LinuxInterruptHandle) {
        if let timer, let reason { handle.arm(timer, reason, nanoseconds: left) }
    }

    func delete() {
        if let timer { shim_timer_delete(timer) }
        timer = nil
    }
}
