import CShims
import Synchronization

/// What a caller uses to make calls while the guest polls, and what is known of such a call as long as nothing but the
/// call happens.
///
/// It is over in a tenth of a microsecond, so most of what is known of a call is only put down when it is needed: when
/// it takes longer, calls the host, has limits, or is watched. For the same reason this is a pointer and no object:
/// to count the references of those that a call goes through would take as long as the call. All but the baton is
/// used by who has that.
@safe struct PolledCalls: @unchecked Sendable {
    @safe private struct Contents: ~Copyable {
        let baton: CallBaton
        let mailbox: Mailbox
        /// Laid out like the mailbox, where arguments and results are put together: what is left there of one call
        /// comes to the guest with the next, as what is left in the mailbox does.
        let page: UnsafeMutableRawBufferPointer
        var staged: Mailbox { unsafe Mailbox(imitatedBy: page.baseAddress!) }
        /// Where they lie in the arena.
        let arenaStart: UInt64
        // The run loop's, which closes only when there are no calls any more.
        let word: CallStateWord
        unowned(unsafe) let interruptHandle: LinuxInterruptHandle
        unowned(unsafe) let memory: GuestMemory
        var areSimple = false
        var mayBeInChain = false
        var isUnderWay = false
        var expectsHostCalls = false
        var number: UInt64 = 0
        let counters = PollingCounters()
    }

    /// Whoever holds this may use the calls.
    @safe final class Owner: Sendable {
        let calls: PolledCalls

        init(_ machine: GuestMachine, _ interruptHandle: LinuxInterruptHandle, _ baton: CallBaton) {
            let size = Int(SHIM_MAILBOX_STACK + 8 * SHIM_STACK_ARGUMENTS_MAXIMUM)
            let page = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 64)
            unsafe page.initializeMemory(as: UInt8.self, repeating: 0)
            let contents = UnsafeMutablePointer<Contents>.allocate(capacity: 1)
            unsafe contents.initialize(
                to: Contents(
                    baton: baton,
                    mailbox: machine.mailbox,
                    page: page,
                    arenaStart: machine.memory.addressSpace.arena.lowerBound,
                    word: interruptHandle.word,
                    interruptHandle: interruptHandle,
                    memory: machine.memory
                )
            )
            unsafe calls = PolledCalls(contents: contents)
        }

        deinit {
            unsafe calls.contents.pointee.page.deallocate()
            unsafe calls.contents.deinitialize(count: 1)
            unsafe calls.contents.deallocate()
        }
    }

    private let contents: UnsafeMutablePointer<Contents>

    /// Who may make one.
    var baton: CallBaton { unsafe contents.pointee.baton }

    /// Whether calls without limits need no more than what is here.
    var areSimple: Bool {
        get { unsafe contents.pointee.areSimple }
        nonmutating set { unsafe contents.pointee.areSimple = newValue }
    }

    /// Whether there may be tasks that know of a host function of this sandbox that they work for.
    var mayBeInChain: Bool {
        get { unsafe contents.pointee.mayBeInChain }
        nonmutating set { unsafe contents.pointee.mayBeInChain = newValue }
    }

    /// The number of the call that is made this way, or was last.
    var number: UInt64 { unsafe contents.pointee.number }

    /// Whether the call under way is made this way, and its run loop does not know of it.
    var isUnderWay: Bool { unsafe contents.pointee.isUnderWay }

    // MARK: A call

    /// Where the arguments go.
    var argumentWriter: GuestValueWriter {
        unsafe .arguments(
            mailbox: contents.pointee.staged,
            memory: contents.pointee.memory,
            arenaPosition: contents.pointee.arenaStart
        )
    }

    private var points: SynchronizationPoints { unsafe contents.pointee.interruptHandle.points }

    /// Begins a call. Where its arguments go; nothing where it cannot be made this way, and the baton is given back.
    @inline(__always) func begin() -> GuestValueWriter? {
        guard !shim_is_task_cancelled(), let number = unsafe contents.pointee.word.beginPolledCall() else {
            baton.giveBack()
            return nil
        }
        points.reach(.callBegun)
        unsafe contents.pointee.number = number
        unsafe contents.pointee.isUnderWay = true
        return argumentWriter
    }

    /// Hands the call to the guest. Whether the guest still polled for it.
    @inline(__always) func request(_ function: UInt64, _ arguments: borrowing GuestValueWriter) -> Bool {
        let staged = unsafe contents.pointee.staged
        staged.setStackArgumentCount(arguments.stackArgumentCount)
        staged.setFunction(function)
        let isGiven = unsafe contents.pointee.mailbox.request(staged, arguments)
        // What need not come before that is done while the guest is at work.
        unsafe Unmanaged.passUnretained(contents.pointee.memory)._withUnsafeGuaranteedRef { memory in
            memory.returnLentCopies()
            // Page faults of this thread tell nothing about which pages are written.
            memory.forgetWritten()
        }
        return isGiven
    }

    /// How many times to look for the answer before anything else is looked at.
    private static let looks: UInt32 = 32

    /// Looks for the answer for about a microsecond. Whose turn it is, says the guest.
    @inline(__always) func poll() -> Int32 { Int32(bitPattern: unsafe contents.pointee.mailbox.poll(Self.looks)) }

    /// Waits for the end of a call that the guest has, for a moment. Whether the guest has returned, and the call is
    /// over.
    @inline(__always) func returnsSoon() -> Bool {
        guard isUnderWay, poll() == SHIM_OWNER_IDLE else { return false }
        points.reach(.leavingGuest)
        let before = unsafe contents.pointee.word.endPolledCall()
        if before.has(CallState.requests) { unsafe contents.pointee.interruptHandle.didEndPolledCall(before) }
        points.reach(.decided)
        return !before.has(CallState.cancel)
    }

    /// Whether the guest is likely to call the host before it returns: its last call has.
    var expectsHostCalls: Bool {
        get { unsafe contents.pointee.expectsHostCalls }
        nonmutating set { unsafe contents.pointee.expectsHostCalls = newValue }
    }

    /// Where the result of a host call is put down before the guest gets it.
    var resultPage: Mailbox { unsafe contents.pointee.staged }

    /// Where the result is of a call that has returned.
    var resultReader: GuestValueReader {
        unsafe .result(mailbox: contents.pointee.mailbox, memory: contents.pointee.memory)
    }

    /// The call is over.
    @inline(__always) func end() {
        unsafe contents.pointee.isUnderWay = false
        unsafe contents.pointee.counters.countHit()
    }

    /// The run loop knows of the call.
    func didPutDown() { unsafe contents.pointee.isUnderWay = false }

    /// Forgets what calls have passed: the guest's next one is another tenant's.
    func clear() { unsafe contents.pointee.page.initializeMemory(as: UInt8.self, repeating: 0) }

    // MARK: Statistics

    var hitCount: UInt64 { unsafe contents.pointee.counters.hitCount }

    func countSession(nanoseconds: UInt64, wasHit: Bool) {
        unsafe contents.pointee.counters.countSession(nanoseconds: nanoseconds, wasHit: wasHit)
    }

    var statistics: PollingStatistics { unsafe contents.pointee.counters.statistics }
}
