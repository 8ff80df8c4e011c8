/// Where a sandbox's run loop is, for everybody who may outlive it: the sandbox, whose own end may come on any thread,
/// and the contexts of its host calls, which a host function may keep.
///
/// Unchecked, because the rule is not the compiler's to see: only who has the baton touches `value`. That is code on
/// the virtual CPU's thread, isolated to the sandbox, in interludes, and in the last block its thread runs; or a caller
/// while the guest polls. An isolated `deinit` would say
/// the same, but clients do not compile with optimisation then (Swift 6.3).
final class RunLoopReference: @unchecked Sendable {
    let thread: VirtualCPUThread
    let interruptHandle: LinuxInterruptHandle
    let addressSpace: AddressSpace
    var value: RunLoop?
    /// Who debugs the sandbox, or waits for somebody who will.
    let debugger = Locked<Debugger?>(nil)
    let looks = LookSchedule()
    let polledCalls: PolledCalls

    init(
        thread: VirtualCPUThread,
        interruptHandle: LinuxInterruptHandle,
        addressSpace: AddressSpace,
        polledCalls: PolledCalls
    ) {
        self.polledCalls = polledCalls
        self.addressSpace = addressSpace
        self.thread = thread
        self.interruptHandle = interruptHandle
    }
}
