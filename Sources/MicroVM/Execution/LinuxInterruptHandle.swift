import CShims
import Synchronization

/// Ends whatever a sandbox is running, from any thread.
///
/// One atomic word holds the state of the virtual CPU and the number of its call. Entering the guest is one
/// read-modify-write that sets RUNNING and tells whether somebody has asked to get out; asking is one that sets a
/// request and tells whether the guest is running and must be kicked. Whichever comes second sees the first, so no
/// request is lost. A kick sets `kvm_run.immediate_exit` and sends a signal to the virtual CPU's thread, and is
/// repeated, less and less often, until the virtual CPU has left the guest.
///
/// Comments of the form "model:" name the same step in docs/models/interrupt.pml.
@safe public final class LinuxInterruptHandle: Sendable {
    /// What ``kill()`` found and did.
    public enum KillOutcome: Sendable, Hashable {
        /// The guest was running and has left, and its call ends: as killed, unless it was to end for another reason
        /// already, or had just faulted.
        case signalled
        /// A call is under way but the guest is not running: it ends before the guest is entered again, as killed
        /// unless it was to end for another reason already.
        case pending
        /// No call was under way, or the one that was is just returning; no later one is affected.
        case notRunning
        /// The sandbox is closed or gone.
        case dropped
    }

    /// What ``killFromDebugger()`` found and did.
    public enum DebugInterruptOutcome: Sendable, Hashable {
        /// The guest was running and has left.
        case interrupted
        /// The guest was not running; the next entry will not come before the debugger has had its turn.
        case prevented
        /// The sandbox is closed or gone.
        case dropped
    }

    private static let sendersClosed: UInt32 = 1 << 31

    /// What the signal handler and the senders share. Allocated here, and so valid as long as this object, which
    /// whoever sends holds, and which the virtual CPU's thread holds until it has detached itself.
    nonisolated(unsafe) let target: UnsafeMutablePointer<shim_interrupt_target>
    /// The words of `target`, as Swift's atomics, which have the layout of what they wrap.
    nonisolated(unsafe) let state: UnsafeMutablePointer<Atomic<UInt64>>
    var word: CallStateWord { unsafe CallStateWord(state) }
    private nonisolated(unsafe) let departures: UnsafeMutablePointer<Atomic<UInt32>>
    private nonisolated(unsafe) let attention: UnsafeMutablePointer<Atomic<UInt32>>
    /// How many threads may be sending a signal, and whether new ones are turned away.
    private nonisolated(unsafe) let senders: UnsafeMutablePointer<Atomic<UInt32>>
    /// How many threads sleep, or are about to, until the virtual CPU has left the guest.
    private let sleepers = Atomic<UInt32>(0)
    private let spuriousKickCount = Atomic<UInt64>(0)
    let signal: Int32
    private let retryDelayNanoseconds: UInt64
    /// A thread gets through with a few signals a second wherever it runs, and a kick that nothing has come of is not
    /// waited for much longer than that.
    private static let longestRetryDelay: UInt64 = 250_000_000
    let stops = Locked(StopCounts())
    private let endOfWaits = Locked<(@Sendable () -> Void)?>(nil)
    let points = SynchronizationPoints()

    init(signal: Int32, retryDelay: Duration) {
        self.signal = signal
        self.retryDelayNanoseconds = max(retryDelay.nanosecondsClamped, 1)
        let target = UnsafeMutablePointer<shim_interrupt_target>.allocate(capacity: 1)
        unsafe target.initialize(to: shim_interrupt_target())
        unsafe self.target = target
        // Members of a C structure, as the layout-compatible atomics: nobody uses them any other way.
        func word(_ member: PartialKeyPath<shim_interrupt_target>) -> UnsafeMutableRawPointer {
            unsafe UnsafeMutableRawPointer(target) + MemoryLayout<shim_interrupt_target>.offset(of: member)!
        }
        unsafe state = word(\.state).assumingMemoryBound(to: Atomic<UInt64>.self)
        unsafe departures = word(\.departures).assumingMemoryBound(to: Atomic<UInt32>.self)
        unsafe attention = word(\.attention).assumingMemoryBound(to: Atomic<UInt32>.self)
        unsafe senders = word(\.senders).assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    deinit { unsafe target.deallocate() }

    /// How many times the guest was left because of a kick that nobody wanted any more; such an exit costs a few
    /// microseconds and has no other effect.
    public var spuriousKicks: UInt64 { spuriousKickCount.load(ordering: .relaxed) }

    /// Whether the sandbox is closed or gone, so that nothing is left to interrupt.
    public var isDropped: Bool {
        // Acquiring: partner of the closing in `close()`.
        unsafe senders.pointee.load(ordering: .acquiring) & Self.sendersClosed != 0
    }

    // MARK: - Requests, from any thread

    /// Ends the call under way now.
    ///
    /// When the guest is running, blocks until it has left: tens of microseconds as a rule. May be called from any
    /// thread, also from a host function of the same sandbox. A call that was killed throws
    /// ``SandboxError/Code/killed``, and the sandbox is poisoned if guest code had run. Without a call under way
    /// nothing happens, and nothing will happen to the next one. A ``KillSwitch`` ends one call and no other.
    @discardableResult
    public func kill() -> KillOutcome { end(.killed) }

    /// Ends the call under way for the task that awaits it.
    @discardableResult
    func cancelForTask() -> KillOutcome { end(.taskCancelled) }

    /// Takes the virtual CPU out of the guest for a debugger, or keeps it from entering it the next time, also when
    /// that is in a later call. Where no debugger is attached, the interruption is counted in
    /// ``CallStatistics/debugInterrupts`` and the guest goes on.
    ///
    /// When the guest is running, blocks until it has left.
    @discardableResult
    public func killFromDebugger() -> DebugInterruptOutcome {
        guard registerSender() else { return .dropped }
        defer { unregisterSender() }
        // Acquiring and releasing; partner: `enter`. model: debug_request
        let before = setFlag(CallState.debugInterrupt)
        points.reach(.requested)
        // Also where the guest only polls for a call: it must not begin one.
        if before.isInGuest { kickUntilOut(of: before.number, CallState.running | CallState.polling) }
        return before.has(CallState.running) ? .interrupted : .prevented
    }

    private func end(_ reason: CallState.Reason) -> KillOutcome {
        guard registerSender() else { return .dropped }
        defer { unregisterSender() }
        // Acquiring and releasing; partners: `enter` (one of the two sees the other's bit), `beginCall` and `decide`.
        // The request of whoever came first stays, so that the call ends for one reason. model: kill_request
        let before = word.update { state in
            guard state.has(CallState.inCall), !state.has(CallState.decided) else { return nil }
            return state.has(CallState.cancel) ? state : state.cancelled(for: reason)
        }
        points.reach(.requested)
        guard before.has(CallState.inCall), !before.has(CallState.decided) else { return .notRunning }
        return getOut(before) ? .signalled : .pending
    }

    /// Asks for the end of one call.
    ///
    /// - Throws: ``KillError``: `.invalid` when that call is over, `.notTerminable` when its end is settled already.
    func terminate(call number: UInt64, _ reason: CallState.Reason) throws(KillError) -> KillSuccess {
        guard registerSender() else { throw .invalid }
        defer { unregisterSender() }
        // As in `end`. The call and all that is known about where it is are in one word, so nothing can change between
        // the decision and the deed. model: terminate_request
        let before = word.update { state in
            guard state.number == number, state.has(CallState.inCall) else { return nil }
            return state.has(CallState.cancel | CallState.decided) ? nil : state.cancelled(for: reason)
        }
        guard before.number == number, before.has(CallState.inCall) else { throw .invalid }
        guard !before.has(CallState.cancel | CallState.decided) else { throw .notTerminable }
        points.reach(.requested)
        if getOut(before) { return .signalled }
        return before.has(CallState.entered) ? .pending : .cancelled
    }

    /// After a request: kicks a running guest and waits until it has left, or wakes a waiting thread. Whether the guest
    /// was running.
    private func getOut(_ before: CallState) -> Bool {
        if before.has(CallState.running) {
            kickUntilOut(of: before.number)
            return true
        }
        if before.has(CallState.waiting) { callAttention() }
        return false
    }

    /// Holds the sandbox before its next entry, or lets it go; called with the count of stops locked. What the word
    /// was.
    ///
    /// Acquiring and releasing; partners: `enter` and `wait`. model: stop_begin, stop_end
    func setStop(_ isStopped: Bool) -> CallState {
        guard !isStopped else { return setFlag(CallState.stop) }
        let before = clearFlag(CallState.stop)
        if before.has(CallState.waiting) { callAttention() }
        return before
    }

    /// Holds the sandbox if this call is under way, else does nothing; called as ``setStop(_:)`` is, and the same step
    /// of the model. What the word was.
    func setStop(duringCall number: UInt64) -> CallState {
        word.update { $0.isOf(call: number) ? CallState(rawValue: $0.rawValue | CallState.stop) : nil }
    }

    /// Takes a running guest out for a stop that has just been set. Nothing, where the sandbox is closed.
    func kick(_ before: CallState) {
        guard before.isInGuest, registerSender() else { return }
        defer { unregisterSender() }
        kickUntilOut(of: before.number, CallState.running | CallState.polling)
    }

    /// The thread has something new to look at if it waits. Whoever calls this has made that visible before.
    func wakeIfWaiting() {
        // Sequentially consistent; partner: the setting of WAITING in `wait`, which comes before the thread's look.
        if CallState(rawValue: unsafe state.pointee.load(ordering: .sequentiallyConsistent)).has(CallState.waiting) {
            callAttention()
        }
    }

    private func callAttention() {
        // Releasing; partner: the load in `wait`. model: wake_attention
        unsafe attention.pointee.wrappingAdd(1, ordering: .releasing)
        unsafe attention.withMemoryRebound(to: UInt32.self, capacity: 1) { unsafe shim_futex_wake_all($0) }
    }

    // MARK: - The word

    /// What the word is, for those who only look.
    var currentState: CallState { CallState(rawValue: unsafe state.pointee.load(ordering: .acquiring)) }

    func setFlag(_ flag: UInt64) -> CallState {
        CallState(rawValue: unsafe state.pointee.bitwiseOr(flag, ordering: .acquiringAndReleasing).oldValue)
    }

    private func clearFlag(_ flag: UInt64) -> CallState {
        CallState(rawValue: unsafe state.pointee.bitwiseAnd(~flag, ordering: .acquiringAndReleasing).oldValue)
    }

    // MARK: - Kicks

    /// Kicks until the virtual CPU is out of the guest, or in it for a later call or with nobody left who objects.
    ///
    /// Signals are queued, and the thread does nothing else before it has handled all of them. Those of several threads
    /// that sent them at a steady pace could come faster than it gets through with them: it may have to share a slow
    /// processor with all who send. So each of them waits twice as long as the time before, up to a quarter of a
    /// second.
    ///
    /// - Parameter flags: what says that it is in the guest: RUNNING, and POLLING where that is to be left as well.
    private func kickUntilOut(of number: UInt64, _ flags: UInt64 = CallState.running) {
        var delay = retryDelayNanoseconds
        var isFirst = true
        while true {
            // Acquiring, and read before the state: a departure in between changes the word and ends the wait at once.
            let seen = unsafe departures.pointee.load(ordering: .acquiring)
            let now = currentState
            guard now.has(flags), now.has(CallState.requests), now.number == number else { return }
            // model: kick_store
            unsafe shim_immediate_exit_set(target)
            // A full signal queue (EAGAIN) is the only failure while the thread lives: tried again like a lost kick.
            // model: kick_signal
            _ = unsafe shim_interrupt_send(target, signal)
            if isFirst, isDeparture(after: seen) { continue }
            isFirst = false
            // Maybe it waits for a page, which a signal does not end on every kernel. A stop can wait for that, too.
            if now.reason != nil { endOfWaits.withLock { $0 }?() }
            sleep(until: seen, nanoseconds: delay)
            delay = max(delay, min(delay, Self.longestRetryDelay / 2) * 2)
        }
    }

    /// What ends the guest's waiting for pages, if it may wait for any; called by those who end its call.
    func setEndOfWaits(_ body: (@Sendable () -> Void)?) { endOfWaits.withLock { $0 = body } }

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

    private func sleep(until seen: UInt32, nanoseconds: UInt64) {
        // Sequentially consistent, like the addition in `leave` and the load in `wakeSleepers`: either this sleeper is
        // seen there, or the kernel finds the word changed here.
        sleepers.wrappingAdd(1, ordering: .sequentiallyConsistent)
        unsafe departures.withMemoryRebound(to: UInt32.self, capacity: 1) {
            unsafe shim_futex_wait($0, seen, nanoseconds)
        }
        sleepers.wrappingSubtract(1, ordering: .relaxed)
    }

    /// Senders come and go under this count so that a thread is never signalled after its end.
    func registerSender() -> Bool {
        // Acquiring: partner of the last `unregisterSender` or of `attach`, so the target is complete.
        // model: sender_register
        let before = unsafe senders.pointee.wrappingAdd(1, ordering: .acquiring).oldValue
        if before & Self.sendersClosed == 0 { return true }
        unregisterSender()
        return false
    }

    func unregisterSender() {
        // Releasing: partner of the acquiring load in `close`; all use of the target is over. model: sender_unregister
        let now = unsafe senders.pointee.wrappingSubtract(1, ordering: .releasing).newValue
        // The last one after the closing, which may be waiting for that.
        if now == Self.sendersClosed {
            unsafe senders.withMemoryRebound(to: UInt32.self, capacity: 1) { unsafe shim_futex_wake_all($0) }
        }
    }

    // MARK: - The virtual CPU's thread

    /// Makes the calling thread the one that kicks are sent to.
    func attach() { unsafe shim_interrupt_attach(target) }

    /// Tells where `kvm_run.immediate_exit` is. It must stay mapped until ``close()`` has returned.
    func setImmediateExit(_ byte: UnsafePointer<Atomic<UInt8>>) {
        let address = unsafe UnsafeMutableRawPointer(mutating: byte)
        unsafe target.pointee.immediate_exit = address.assumingMemoryBound(to: UInt8.self)
    }

    /// Turns away new senders, waits for those that are there, and ends the attachment. The thread's last act.
    func close() {
        // Releasing: whoever is turned away by this bit sees nothing of the target any more. model: thread_close
        var seen = unsafe senders.pointee.bitwiseOr(Self.sendersClosed, ordering: .acquiringAndReleasing).newValue
        // A sender leaves as soon as RUNNING is clear, so this is short.
        while seen != Self.sendersClosed {
            unsafe senders.withMemoryRebound(to: UInt32.self, capacity: 1) { unsafe shim_futex_wait($0, seen, 0) }
            // Acquiring: partner of `unregisterSender`.
            seen = unsafe senders.pointee.load(ordering: .acquiring)
        }
        unsafe target.pointee.immediate_exit = nil
        shim_interrupt_attach(nil)
    }

    /// Before an entry into the guest that is none of a call's: whoever wants the call to end has left that in the
    /// word.
    func clearImmediateExit() { unsafe shim_immediate_exit_clear(target) }

    /// A top-level call begins: requests that were made for earlier ones are over. The call's number.
    func beginCall() -> UInt64 {
        // In one step: a kill comes either before it, finds no call and ends none, or after it, and ends this one.
        // Acquiring and releasing: partner of `end` and `terminate`. model: begin_call
        let number = word.update(\.beginningNext).number &+ 1
        points.reach(.callBegun)
        return number
    }

    /// Settles how the call ends: from now on nobody can end it. Why it shall end, if somebody came first.
    func decide() -> CallState.Reason? {
        // Acquiring and releasing: partner of `end` and `terminate`. model: decide
        let before = setFlag(CallState.decided)
        points.reach(.decided)
        return before.reason
    }

    /// The top-level call is over, however it ended.
    func endCall() {
        // Releasing: partner of the acquiring operations in `end` and `terminate`. model: end_call
        _ = clearFlag(CallState.inCall)
        wakeSleepers()
    }

    /// What an entry into the guest was answered with.
    enum Entry {
        case enter
        case end(CallState.Reason)
        case stop
        case debugInterrupt
    }

    /// Asks for the right to call KVM_RUN. After `.enter`, ``leave(settling:)`` must follow.
    func enter() -> Entry {
        points.reach(.enteringGuest)
        // Cleared before any flag is looked at: whoever sets a flag later sets this byte again, after the flag.
        // model: enter_clear_immediate_exit
        unsafe shim_immediate_exit_clear(target)
        // Acquiring and releasing: partner of every request. model: enter_set_running
        let before = word.update { state in
            state.has(CallState.requests)
                ? nil : CallState(rawValue: state.rawValue | CallState.running | CallState.entered)
        }
        points.reach(.enteredGuest)
        if let reason = before.reason { return .end(reason) }
        if before.has(CallState.stop) { return .stop }
        if before.has(CallState.debugInterrupt) { return .debugInterrupt }
        return .enter
    }

    /// KVM_RUN has returned. Whoever asked for that may still be asleep: before the next entry or the end of the call
    /// ``wakeSleepers()`` follows, but what the caller waits for may come first.
    ///
    /// - Parameter settles: whether the exit ends the call, so that nobody can end it from outside any more.
    /// - Returns: what the word was: why the call shall end, if somebody has asked for that before.
    func leave(settling settles: Bool) -> CallState {
        points.reach(.leavingGuest)
        // RUNNING is set and DECIDED is not, so one operation turns both. Acquiring and releasing: partner of every
        // request and of the load in `kickUntilOut`. model: leave_clear_running
        let change = settles ? CallState.running | CallState.decided : CallState.running
        let old = unsafe state.pointee.bitwiseXor(change, ordering: .acquiringAndReleasing).oldValue
        let before = CallState(rawValue: old)
        if before.has(CallState.requests) { countDeparture() }
        points.reach(settles ? .decided : .leftGuest)
        return before
    }

    /// The guest has been left, for those who have asked for that.
    func countDeparture() {
        // Partners are the load in `kickUntilOut` and the order of operations in `sleep`.
        unsafe departures.pointee.wrappingAdd(1, ordering: .sequentiallyConsistent)
    }

    /// Wakes those who sleep until the virtual CPU has left the guest, if there are any.
    func wakeSleepers() {
        guard sleepers.load(ordering: .sequentiallyConsistent) != 0 else { return }
        unsafe departures.withMemoryRebound(to: UInt32.self, capacity: 1) { unsafe shim_futex_wake_all($0) }
    }

    /// Why the call under way shall end, if it shall.
    var pendingReason: CallState.Reason? { currentState.reason }

    /// KVM_RUN was interrupted and nobody had asked for it.
    func countSpuriousKick() { spuriousKickCount.wrappingAdd(1, ordering: .relaxed) }

    /// A debugger has had its turn.
    func clearDebugInterrupt() { _ = clearFlag(CallState.debugInterrupt) }

    /// What a waiting thread's look around has come to.
    enum Look {
        /// What it waits for has come.
        case over
        /// It has done something meanwhile, and so must look again.
        case again
        /// Sleep until attention is called, or for so many nanoseconds; 0 is for ever.
        case sleep(nanoseconds: UInt64 = 0)
    }

    /// Sleeps inside a call until there is nothing left to wait for.
    ///
    /// - Parameter look: looks at the word as it was when WAITING was set, and at whatever else it waits for.
    func wait(_ look: (CallState) throws -> Look) rethrows {
        while true {
            // Acquiring, and read before the flag is set: whoever sees the flag changes the word afterwards.
            let seen = unsafe attention.pointee.load(ordering: .acquiring)
            // Sequentially consistent; partners: every request, and the load in `wakeIfWaiting`.
            // model: park_set_waiting
            let old = unsafe state.pointee.bitwiseOr(CallState.waiting, ordering: .sequentiallyConsistent).oldValue
            defer { _ = clearFlag(CallState.waiting) }
            switch try look(CallState(rawValue: old)) {
            case .over: return
            case .again: continue
            case .sleep(let nanoseconds):
                // model: wait_sleep
                unsafe attention.withMemoryRebound(to: UInt32.self, capacity: 1) {
                    unsafe shim_futex_wait($0, seen, nanoseconds)
                }
            }
        }
    }

    // MARK: - Timers

    /// A timer for one of the two limits, or without a reason, made on the attached thread.
    func makeTimer(_ reason: CallState.Reason?) -> Result<Int32, SystemFailure> {
        var timer: Int32 = 0
        let code = unsafe shim_timer_create(target, signal, Int32(reason?.rawValue ?? UInt64(SHIM_REASON_NONE)), &timer)
        return code == 0 ? .success(timer) : .failure(SystemFailure(code: code))
    }

    /// The call under way ends `nanoseconds` from now, by the timer's clock; a limit of 0 has passed already.
    func arm(_ timer: Int32, _ reason: CallState.Reason, nanoseconds: UInt64) {
        let isArmed = nanoseconds > 0 && shim_timer_arm(timer, nanoseconds, nil) == 0
        if !isArmed { _ = end(reason) }
    }

    /// Ends the wait for a limit. The timer's signal is for the calling thread, so it is not pending any more when the
    /// system call has returned. How many nanoseconds were left, 0 when the limit has passed.
    @discardableResult
    func disarm(_ timer: Int32) -> UInt64 {
        var left: UInt64 = 0
        _ = unsafe shim_timer_arm(timer, 0, &left)
        return left
    }

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
