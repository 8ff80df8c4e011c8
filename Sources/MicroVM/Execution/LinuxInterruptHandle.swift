import CShims
import Synchronization

/// Ends whatever a sandbox is running, from any thread.
///
/// One atomic byte holds the state of the virtual CPU. Entering the guest is one read-modify-write that sets RUNNING
/// and tells whether somebody has asked to get out; asking is one that sets a request bit and tells whether the guest
/// is running and must be kicked. Whichever comes second sees the first, so no request is lost. A kick sets
/// `kvm_run.immediate_exit` and sends a signal to the virtual CPU's thread, and is repeated until the virtual CPU has
/// left the guest.
@safe public final class LinuxInterruptHandle: Sendable {
    /// What ``kill()`` found and did.
    public enum KillOutcome: Sendable, Hashable {
        /// The guest was running and has left; its call ends as killed, unless it was just returning by itself.
        case signalled
        /// A call is under way but the host is at work for it: it ends before the guest is entered again, unless it was
        /// just returning by itself.
        case pending
        /// No call was under way, and no later one is affected.
        case notRunning
        /// The sandbox is closed or gone.
        case dropped
    }

    /// Why a call is being ended.
    enum Reason {
        case killed, taskCancelled, timeLimit
    }

    /// Bits of the state byte.
    private enum Bit {
        /// The call under way shall end. Persists over exits within one call; cleared when the next one begins.
        static let cancel: UInt8 = 1 << 0
        /// The virtual CPU's thread is in KVM_RUN, or past the point of no return before it.
        static let running: UInt8 = 1 << 1
        /// A debugger wants the virtual CPU out of the guest.
        static let debugInterrupt: UInt8 = 1 << 2
        /// The sandbox shall be held before its next entry.
        static let stop: UInt8 = 1 << 3
        /// A top-level call is under way.
        static let inCall: UInt8 = 1 << 4
        /// The task that awaits the call under way has been cancelled: CANCEL, for another reason.
        static let taskCancelled: UInt8 = 1 << 5

        static let ends = cancel | taskCancelled
        static let requests = ends | debugInterrupt | stop
    }

    private static let sendersClosed: UInt32 = 1 << 31

    private let state = Atomic<UInt8>(0)
    /// How often the virtual CPU has left the guest while somebody waited for that: what killers sleep on.
    private nonisolated(unsafe) let departures: UnsafeMutablePointer<Atomic<UInt32>>
    /// How many threads sleep, or are about to, until the virtual CPU has left the guest.
    private let sleepers = Atomic<UInt32>(0)
    /// How many threads may be sending a signal, and whether new ones are turned away.
    private let senders = Atomic<UInt32>(0)
    private let spuriousKickCount = Atomic<UInt64>(0)
    /// What the signal handler and the senders share. Allocated here, and so valid as long as this object, which
    /// whoever sends holds, and which the virtual CPU's thread holds until it has detached itself.
    private nonisolated(unsafe) let target: UnsafeMutablePointer<shim_interrupt_target>
    private let signal: Int32
    private let retryDelayNanoseconds: UInt64

    init(signal: Int32, retryDelay: Duration) {
        self.signal = signal
        self.retryDelayNanoseconds = max(retryDelay.nanosecondsClamped, 1)
        unsafe target = .allocate(capacity: 1)
        unsafe target.initialize(to: shim_interrupt_target(immediate_exit: nil, deadline_passed: 0, thread: 0))
        unsafe departures = .allocate(capacity: 1)
        unsafe departures.initialize(to: Atomic(0))
    }

    deinit {
        unsafe departures.deinitialize(count: 1)
        unsafe departures.deallocate()
        unsafe target.deallocate()
    }

    /// How many times the guest was left because of a kick that nobody wanted any more; such an exit costs a few
    /// microseconds and has no other effect.
    public var spuriousKicks: UInt64 { spuriousKickCount.load(ordering: .relaxed) }

    /// Whether the sandbox is closed or gone, so that nothing is left to interrupt.
    public var isDropped: Bool {
        // Acquiring: partner of the closing in `close()`.
        senders.load(ordering: .acquiring) & Self.sendersClosed != 0
    }

    /// Ends the call under way now.
    ///
    /// When the guest is running, blocks until it has left: tens of microseconds as a rule. May be called from any
    /// thread, also from a host function of the same sandbox. A call that was killed throws
    /// ``SandboxError/Code/killed``, and the sandbox is poisoned. Without a call under way nothing happens, and nothing
    /// will happen to the next one.
    @discardableResult
    public func kill() -> KillOutcome { interrupt(Bit.cancel) }

    /// Ends the call under way for the task that awaits it.
    @discardableResult
    func cancelForTask() -> KillOutcome { interrupt(Bit.taskCancelled) }

    private func interrupt(_ request: UInt8) -> KillOutcome {
        guard registerSender() else { return .dropped }
        defer { unregisterSender() }
        // Acquiring and releasing; partners are `enter` (one of the two sees the other's bit) and `beginCall`. The
        // request of whoever came first stays, so that the call ends for one reason.
        let before = update { $0 & Bit.ends == 0 ? $0 | request : $0 }
        guard before & Bit.running != 0 else { return before & Bit.inCall != 0 ? .pending : .notRunning }
        kickUntilOut()
        return .signalled
    }

    /// Changes the state byte in one step, acquiring and releasing, and tells what it was before.
    private func update(_ change: (UInt8) -> UInt8) -> UInt8 {
        var seen = state.load(ordering: .relaxed)
        while true {
            let (exchanged, original) = state.compareExchange(
                expected: seen,
                desired: change(seen),
                ordering: .acquiringAndReleasing
            )
            if exchanged { return original }
            seen = original
        }
    }

    /// Kicks until the virtual CPU is out of the guest, or in it for a later call that nobody wants to end.
    private func kickUntilOut() {
        while true {
            // Acquiring, and read before the state: a departure in between changes the word and ends the wait at once.
            let seen = unsafe departures.pointee.load(ordering: .acquiring)
            let now = state.load(ordering: .acquiring)
            guard now & Bit.running != 0, now & Bit.requests != 0 else { return }
            unsafe shim_immediate_exit_set(target)
            // A full signal queue (EAGAIN) is the only failure while the thread lives: tried again like a lost kick.
            _ = unsafe shim_interrupt_send(target, signal)
            if !isDeparture(after: seen) { sleep(until: seen) }
        }
    }

    /// How long a departure is looked for before it is slept for: longer than a kick usually takes.
    private static let lookingNanoseconds: UInt64 = 100_000

    /// Looks for a departure, and leaves the processor to others meanwhile, maybe to the very thread that is to depart:
    /// the ended call need not wait until a sleeper has been woken.
    private func isDeparture(after seen: UInt32) -> Bool {
        let end = MonotonicTime.now.nanoseconds + Self.lookingNanoseconds
        repeat {
            // Acquiring: partner of the addition in `leave`.
            if unsafe departures.pointee.load(ordering: .acquiring) != seen { return true }
            shim_thread_yield()
        } while MonotonicTime.now.nanoseconds < end
        return false
    }

    private func sleep(until seen: UInt32) {
        // Sequentially consistent, like the addition in `leave` and the load in `wakeSleepers`: either this sleeper is
        // seen there, or the kernel finds the word changed here.
        sleepers.wrappingAdd(1, ordering: .sequentiallyConsistent)
        unsafe departures.withMemoryRebound(to: UInt32.self, capacity: 1) {
            unsafe shim_futex_wait($0, seen, retryDelayNanoseconds)
        }
        sleepers.wrappingSubtract(1, ordering: .relaxed)
    }

    /// Senders come and go under this count so that a thread is never signalled after its end.
    private func registerSender() -> Bool {
        // Acquiring: partner of the last `unregisterSender` or of `attach`, so the target is complete.
        if senders.wrappingAdd(1, ordering: .acquiring).oldValue & Self.sendersClosed == 0 { return true }
        unregisterSender()
        return false
    }

    private func unregisterSender() {
        // Releasing: partner of the acquiring load in `close`; all use of the target is over.
        senders.wrappingSubtract(1, ordering: .releasing)
    }

    // MARK: - The virtual CPU's thread

    /// What an entry into the guest was answered with.
    enum Entry {
        case enter
        case end(Reason)
    }

    /// Makes the calling thread the one that kicks are sent to.
    func attach() { unsafe shim_interrupt_attach(target) }

    /// Tells where `kvm_run.immediate_exit` is. It must stay mapped until ``close()`` has returned.
    func setImmediateExit(_ byte: UnsafePointer<Atomic<UInt8>>) {
        let address = unsafe UnsafeMutableRawPointer(mutating: byte)
        unsafe target.pointee.immediate_exit = address.assumingMemoryBound(to: UInt8.self)
    }

    /// Turns away new senders, waits for those that are there, and ends the attachment. The thread's last act.
    func close() {
        // Releasing: whoever is turned away by this bit sees nothing of the target any more.
        senders.bitwiseOr(Self.sendersClosed, ordering: .acquiringAndReleasing)
        // Acquiring: partner of `unregisterSender`. A sender leaves as soon as RUNNING is clear, so this is short.
        while senders.load(ordering: .acquiring) != Self.sendersClosed { shim_thread_yield() }
        unsafe target.pointee.immediate_exit = nil
        shim_interrupt_attach(nil)
    }

    /// A top-level call begins: requests that were made for earlier ones are over.
    func beginCall() {
        unsafe shim_deadline_set(target, false)
        // In one step: a kill comes either before it, finds no call and ends none, or after it, and ends this one.
        // Acquiring and releasing: partner of `interrupt`.
        _ = update { $0 & ~Bit.ends | Bit.inCall }
    }

    /// The top-level call is over, however it ended.
    func endCall() {
        state.bitwiseAnd(~Bit.inCall, ordering: .acquiringAndReleasing)
        wakeSleepers()
    }

    /// Asks for the right to call KVM_RUN. After `.enter`, ``leave()`` must follow.
    func enter() -> Entry {
        // Cleared before any flag is looked at: whoever sets a flag later sets this byte again, after the flag.
        unsafe shim_immediate_exit_clear(target)
        if unsafe shim_deadline_passed(target) { return .end(.timeLimit) }
        // Acquiring and releasing: partner of `interrupt`.
        let before = state.bitwiseOr(Bit.running, ordering: .acquiringAndReleasing).oldValue
        if let reason = Self.reason(before) {
            leave()
            return .end(reason)
        }
        return .enter
    }

    /// KVM_RUN has returned, or was not called after all. Whoever asked for that may still be asleep: before the next
    /// entry or the end of the call ``wakeSleepers()`` follows, but what the caller waits for may come first.
    func leave() {
        // Acquiring and releasing: partner of the load in `kickUntilOut`.
        let before = state.bitwiseAnd(~Bit.running, ordering: .acquiringAndReleasing).oldValue
        guard before & Bit.requests != 0 else { return }
        // Partners are the load in `kickUntilOut` and the order of operations in `sleep`.
        unsafe departures.pointee.wrappingAdd(1, ordering: .sequentiallyConsistent)
    }

    /// Wakes those who sleep until the virtual CPU has left the guest, if there are any.
    func wakeSleepers() {
        guard sleepers.load(ordering: .sequentiallyConsistent) != 0 else { return }
        unsafe departures.withMemoryRebound(to: UInt32.self, capacity: 1) { unsafe shim_futex_wake_all($0) }
    }

    /// Why the call under way shall end, if it shall.
    var pendingReason: Reason? {
        if unsafe shim_deadline_passed(target) { return .timeLimit }
        // Acquiring: partner of `interrupt`.
        return Self.reason(state.load(ordering: .acquiring))
    }

    private static func reason(_ state: UInt8) -> Reason? {
        if state & Bit.cancel != 0 { return .killed }
        return state & Bit.taskCancelled != 0 ? .taskCancelled : nil
    }

    /// KVM_RUN was interrupted and nobody had asked for it.
    func countSpuriousKick() { spuriousKickCount.wrappingAdd(1, ordering: .relaxed) }

    // MARK: - Deadlines

    /// Makes the timer that ``armDeadline(_:timer:)`` uses; only from the attached thread.
    func makeTimer() -> Result<Int32, SystemFailure> {
        var timer: Int32 = 0
        let code = unsafe shim_timer_create(target, signal, &timer)
        return code == 0 ? .success(timer) : .failure(SystemFailure(code: code))
    }

    /// The call under way ends `limit` from now; a limit of zero or less has passed already.
    func armDeadline(_ limit: Duration, timer: Int32) {
        let nanoseconds = limit.nanosecondsClamped
        if nanoseconds == 0 || shim_timer_arm(timer, nanoseconds) != 0 {
            unsafe shim_deadline_set(target, true)
        }
    }

    /// Ends the wait for the deadline. The timer's signal is for the calling thread, so it is not pending any more
    /// when the system call has returned, and ``beginCall()`` clears what it left.
    func disarmDeadline(timer: Int32) { _ = shim_timer_arm(timer, 0) }

    /// A system call that failed, as its error number.
    struct SystemFailure: Error {
        var code: Int32
    }
}

extension Duration {
    /// Whole nanoseconds, at least 0 and at most what fits (292 years).
    var nanosecondsClamped: UInt64 {
        let (seconds, attoseconds) = components
        guard seconds >= 0, attoseconds >= 0 else { return 0 }
        guard seconds < Int64.max / 1_000_000_000 else { return UInt64(Int64.max) }
        return UInt64(seconds) * 1_000_000_000 + UInt64(attoseconds) / 1_000_000_000
    }
}
