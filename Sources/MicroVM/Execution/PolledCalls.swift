import CShims

/// The call that a caller makes while the guest polls: what is known of it as long as nothing but the call happens.
///
/// It is over in a tenth of a microsecond, so most of what is known of a call is only put down when it is needed: when
/// it takes longer, calls the host, has limits, or is watched. Used by who has the baton.
@safe final class PolledCalls: @unchecked Sendable {
    let baton: CallBaton
    /// Whether calls without limits need no more than what is here.
    var areSimple = false
    /// The number of the call that is made this way, or was last.
    private(set) var number: UInt64 = 0
    /// Whether the call under way is made this way, and its run loop does not know of it.
    private(set) var isUnderWay = false
    /// Laid out like the mailbox, where arguments are put together.
    private let page: UnsafeMutableRawPointer
    private let interruptHandle: LinuxInterruptHandle
    /// The run loop's, which closes only when there are no calls any more.
    private unowned(unsafe) let memory: GuestMemory
    private let mailbox: Mailbox
    let counters = PollingCounters()

    init(_ machine: GuestMachine, _ interruptHandle: LinuxInterruptHandle, _ baton: CallBaton) {
        self.baton = baton
        let size = Int(SHIM_MAILBOX_STACK + 8 * SHIM_STACK_ARGUMENTS_MAXIMUM)
        unsafe page = .allocate(byteCount: size, alignment: 64)
        unsafe page.initializeMemory(as: UInt8.self, repeating: 0, count: size)
        self.interruptHandle = interruptHandle
        unsafe memory = machine.memory
        mailbox = machine.mailbox
    }

    deinit { unsafe page.deallocate() }

    private var staged: Mailbox { unsafe Mailbox(imitatedBy: page) }

    /// Where the arguments go.
    var argumentWriter: GuestValueWriter {
        let memory = unsafe memory
        return .arguments(mailbox: staged, memory: memory, arenaPosition: memory.addressSpace.arena.lowerBound)
    }

    /// Begins a call. Where its arguments go; nothing where it cannot be made this way, and the baton is given back.
    func begin() -> GuestValueWriter? {
        guard !shim_is_task_cancelled(), let number = interruptHandle.beginPolledCall() else {
            baton.giveBack()
            return nil
        }
        self.number = number
        isUnderWay = true
        return argumentWriter
    }

    /// Hands the call to the guest. Whether the guest still polled for it.
    @inline(__always) func request(_ function: UInt64, _ arguments: borrowing GuestValueWriter) -> Bool {
        staged.setStackArgumentCount(arguments.stackArgumentCount)
        staged.setFunction(function)
        // Page faults of this thread tell nothing about which pages are written.
        unsafe memory.forgetWritten()
        unsafe memory.returnLentCopies()
        return mailbox.request(staged, arguments)
    }

    /// How many times to look for the answer before anything else is looked at.
    private static let looks: UInt32 = 32

    /// Looks for the answer for about a microsecond. Whose turn it is, says the guest.
    @inline(__always) func poll() -> Int32 { Int32(bitPattern: mailbox.poll(Self.looks)) }

    /// Waits for the end of a call that the guest has, for a moment. Whether the guest has returned, and the call is
    /// over.
    @inline(__always) func returnsSoon() -> Bool {
        isUnderWay && poll() == SHIM_OWNER_IDLE && interruptHandle.endPolledCall()
    }

    /// Takes the result of a call that has returned, and ends it.
    func finish<Result>(
        _ load: (inout GuestValueReader) throws(SandboxError) -> Result
    ) throws(SandboxError) -> Result {
        do throws(SandboxError) {
            var reader = unsafe GuestValueReader.result(mailbox: mailbox, memory: memory)
            let result = try load(&reader)
            end()
            baton.giveBack()
            return result
        } catch {
            end()
            baton.giveBack()
            var error = error
            // As for any other call.
            error.code = .invalidResult
            throw error
        }
    }

    /// The call is over.
    @inline(__always) func end() {
        isUnderWay = false
        counters.countHit()
    }

    /// The run loop knows of the call.
    func didPutDown() { isUnderWay = false }
}
