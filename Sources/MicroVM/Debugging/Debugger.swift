/// What a debugger wants of a sandbox, and what it is told: shared by the thread that serves it and the virtual CPU's.
///
/// The sandbox either runs, which includes that it has nothing to do, or it is held: then its guest is not entered
/// until it is resumed. Whoever wants something changed says so here first and then asks for attention by
/// DEBUG_INTERRUPT, so that the virtual CPU's thread either finds it when it looks, or looks again.
final class Debugger: Sendable {
    /// Why a sandbox is held.
    enum Event: Sendable {
        /// The debugger asked for it, or whoever made the sandbox.
        case interrupted
        case breakpoint
        case step
        case watchpoint(UInt64)
        /// A call is about to end in this.
        case fault(GuestFault)
    }

    /// What the server is to tell its client.
    enum News: Sendable {
        case held(Event)
        case callEnded(String)
        case closed
    }

    /// How far a step goes.
    enum Step: Sendable {
        case instruction
        /// Until the instruction pointer leaves this.
        case range(Range<UInt64>)
    }

    struct Watchpoint: Sendable, Equatable {
        var addresses: Range<UInt64>
        /// What was there when the guest was last looked at.
        var contents: [UInt8]
    }

    /// How the guest is to be entered.
    struct Plan: Sendable {
        var breakpoints: Set<UInt64> = []
        var watchpoints: [Range<UInt64>] = []
        var step: Step?
        var stepsInstructions: Bool { step != nil || !watchpoints.isEmpty }
    }

    fileprivate struct State {
        var isAttached = false
        var isClosed = false
        /// The sandbox is gone, and nothing will happen any more.
        var isSandboxGone = false
        /// The next call is held before it enters the guest.
        var holdsCall = false
        /// Calls that fault are held before their end also while nobody is attached.
        var holdsFaults: Bool
        var wantsHold = false
        var held: Event?
        /// Whether a fault that is held is to be forgotten, and the guest to go on.
        var forgetsFault = false
        var plan = Plan()
        var news: [News] = []
    }

    private let state: Locked<State>
    private let interruptHandle: LinuxInterruptHandle
    /// Called, on any thread, when there is news.
    private let notify: @Sendable () -> Void

    init(
        _ interruptHandle: LinuxInterruptHandle,
        holdsCall: Bool,
        holdsFaults: Bool,
        notify: @escaping @Sendable () -> Void
    ) {
        self.interruptHandle = interruptHandle
        self.notify = notify
        var state = State(holdsFaults: holdsFaults)
        state.holdsCall = holdsCall
        self.state = Locked(state)
    }

    // MARK: - The server's side

    /// The virtual CPU's thread is to look at what has been changed before the guest runs on.
    func callAttention() { interruptHandle.killFromDebugger() }

    /// A client has come. The sandbox is held, or will be.
    func attach() {
        state.withLock { state in
            state.isAttached = true
            state.forgetNews()
            if state.held == nil { state.wantsHold = true }
        }
        callAttention()
    }

    /// The client has gone: nothing is left of what it wanted, and the guest goes on.
    func detach() {
        state.withLock { state in
            state.isAttached = false
            state.wantsHold = false
            state.holdsCall = false
            state.held = nil
            state.forgetsFault = false
            state.plan = Plan()
            state.forgetNews()
        }
        // Breakpoints leave the memory when the guest is left.
        callAttention()
        interruptHandle.wakeIfWaiting()
    }

    func interrupt() {
        state.withLock { if $0.held == nil { $0.wantsHold = true } }
        callAttention()
    }

    /// The guest is not running, and will not be entered: it is held where it is, between two calls or in a host call.
    /// Called while the virtual CPU's thread does nothing else.
    func holdHere() {
        state.withLock { state in
            guard state.wantsHold, state.held == nil else { return }
            state.wantsHold = false
            state.held = .interrupted
            state.news.append(.held(.interrupted))
        }
        notify()
    }

    /// Lets the guest go on.
    ///
    /// - Parameter forgettingFault: whether a call that has faulted goes on, instead of ending.
    func resume(_ step: Step?, forgettingFault: Bool) {
        state.withLock { state in
            state.plan.step = step
            state.held = nil
            state.forgetsFault = forgettingFault
        }
        interruptHandle.wakeIfWaiting()
    }

    /// Changes breakpoints or watchpoints, which takes effect at the next entry.
    func change(_ change: (inout Plan) -> Void) { state.withLock { change(&$0.plan) } }

    /// What has happened since this was last asked.
    func takeNews() -> [News] {
        state.withLock { state in
            defer { state.news = [] }
            return state.news
        }
    }

    var isSandboxGone: Bool { state.withLock { $0.isSandboxGone } }
    var isAttached: Bool { state.withLock { $0.isAttached } }
    var event: Event? { state.withLock { $0.held } }

    /// The server is going: nobody will be told anything any more.
    func close() {
        state.withLock { state in
            state.isClosed = true
            state.holdsFaults = false
        }
        detach()
    }

    // MARK: - The virtual CPU's side

    /// Whether there is anything a debugger wants now, or may want.
    var isEngaged: Bool {
        state.withLock { $0.isAttached || $0.holdsCall || $0.holdsFaults || $0.held != nil }
    }

    /// Whether the guest is not to be entered.
    var isHolding: Bool { state.withLock { $0.held != nil } }

    var plan: Plan { state.withLock { $0.plan } }

    /// The guest has been left because somebody called attention: whether it is to be held.
    func heed() -> Bool {
        let (isHeld, hasNews) = state.withLock { state in
            guard state.wantsHold || state.holdsCall else { return (state.held != nil, false) }
            state.wantsHold = false
            state.holdsCall = false
            return (true, state.hold(.interrupted))
        }
        if hasNews { notify() }
        return isHeld
    }

    /// Something has happened that the guest is held for, if anybody is there to care.
    func hold(_ event: Event) -> Bool {
        let (isHeld, hasNews) = state.withLock { state in
            if case .fault = event, state.holdsFaults { return (true, state.hold(event)) }
            return state.isAttached ? (true, state.hold(event)) : (false, false)
        }
        if hasNews { notify() }
        return isHeld
    }

    /// A hold is over: whether the fault it was for is to be forgotten.
    func takeForgetsFault() -> Bool {
        state.withLock { state in
            defer { state.forgetsFault = false }
            return state.forgetsFault
        }
    }

    /// The hold was ended by a kill. A later call is held all the same, as long as nobody has resumed the sandbox.
    func holdDidEnd() {
        if isHolding { callAttention() }
    }

    /// A call ends otherwise than by returning.
    func callDidEnd(_ error: any Error) {
        let isNews = state.withLock { state in
            guard state.isAttached else { return false }
            state.news.append(.callEnded("\(error)"))
            return true
        }
        if isNews { notify() }
    }

    func sandboxDidClose() {
        state.withLock { state in
            state.isSandboxGone = true
            state.news.append(.closed)
        }
        notify()
    }
}

extension Debugger.State {
    /// What has happened so far is nothing to a client that comes, but for the end of all.
    fileprivate mutating func forgetNews() { news = isSandboxGone ? [.closed] : [] }

    /// Whether that is news: what was told first stays.
    fileprivate mutating func hold(_ event: Debugger.Event) -> Bool {
        guard held == nil else { return false }
        wantsHold = false
        held = event
        news.append(.held(event))
        return true
    }
}
