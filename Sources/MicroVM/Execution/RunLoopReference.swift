import CShims

/// Where a sandbox's run loop is, for everybody who may outlive it: the sandbox, whose own end may come on any thread,
/// and the contexts of its host calls, which a host function may keep.
///
/// Unchecked, because the rule is not the compiler's to see: only who has the baton touches `value`. That is code on
/// the virtual CPU's thread, isolated to the sandbox, in interludes, and in the last block its thread runs; or a caller
/// while the guest polls. An isolated `deinit` would say
/// the same, but clients do not compile with optimisation then (Swift 6.3).
@safe final class RunLoopReference: @unchecked Sendable {
    let thread: VirtualCPUThread
    let interruptHandle: LinuxInterruptHandle
    let addressSpace: AddressSpace
    var value: RunLoop?
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

    /// Whether the calling thread is the sandbox's.
    var isOnThread: Bool { unsafe shim_thread_owner() == threadMark }
}
