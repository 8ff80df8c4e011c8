import CShims

/// Where a sandbox's run loop is, for everybody who may outlive it: the sandbox, whose own end may come on any thread,
/// and the contexts of its host calls, which a host function may keep.
///
/// Unchecked, because the rule is not the compiler's to see: only who has the baton touches `value`. That is code on
/// the virtual CPU's thread, isolated to the sandbox, in interludes, and in the last block its thread runs; or a caller
/// while the guest polls. An isolated `deinit` would say the same, but clients do not compile with optimisation then
/// (Swift 6.3).
@safe final class RunLoopReference: @unchecked Sendable {
    let thread: VirtualCPUThread
    let interruptHandle: LinuxInterruptHandle
    let addressSpace: AddressSpace
    var value: RunLoop? {
        didSet { unsafe uncounted = value.map { unsafe Unmanaged.passUnretained($0) } }
    }
    /// The same, for those who have no time to count references.
    private nonisolated(unsafe) var uncounted: Unmanaged<RunLoop>?
    /// Who debugs the sandbox, or waits for somebody who will.
    let debugger = Locked<Debugger?>(nil)
    let looks = LookSchedule()
    private let polledCallsOwner: PolledCalls.Owner
    /// As long as this is here.
    let polledCalls: PolledCalls
    private nonisolated(unsafe) let threadMark: UnsafeRawPointer

    init(
        thread: VirtualCPUThread,
        interruptHandle: LinuxInterruptHandle,
        addressSpace: AddressSpace,
        polledCalls: PolledCalls.Owner
    ) {
        polledCallsOwner = polledCalls
        self.polledCalls = polledCalls.calls
        unsafe threadMark = thread.mark
        self.addressSpace = addressSpace
        self.thread = thread
        self.interruptHandle = interruptHandle
    }

    /// Uses the run loop of a call that has begun: as long as that is under way the sandbox does not close, and nobody
    /// has to hold the run loop. Nothing where it is closed all the same.
    @inline(__always) func duringCall<Result>(_ body: (RunLoop) -> Result) -> Result? {
        unsafe uncounted.map { unsafe $0._withUnsafeGuaranteedRef(body) }
    }

    /// Whether the calling thread is the sandbox's.
    var isOnThread: Bool { unsafe shim_thread_owner() == threadMark }
}
