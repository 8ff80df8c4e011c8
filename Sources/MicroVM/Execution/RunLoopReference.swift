/// Where a sandbox's run loop is, for everybody who may outlive it: the sandbox, whose own end may come on any thread,
/// and the contexts of its host calls, which a host function may keep.
///
/// Unchecked, because the rule is not the compiler's to see: only code on the virtual CPU's thread touches `value`,
/// that is code isolated to the sandbox, interludes, and the last block its thread runs. An isolated `deinit` would say
/// the same, but clients do not compile with optimisation then (Swift 6.3).
final class RunLoopReference: @unchecked Sendable {
    let thread: VirtualCPUThread
    let interruptHandle: LinuxInterruptHandle
    let addressSpace: AddressSpace
    var value: RunLoop?
    /// Who debugs the sandbox, or waits for somebody who will.
    let debugger = Locked<Debugger?>(nil)
    let looks = LookSchedule()

    init(thread: VirtualCPUThread, interruptHandle: LinuxInterruptHandle, addressSpace: AddressSpace) {
        self.addressSpace = addressSpace
        self.thread = thread
        self.interruptHandle = interruptHandle
    }
}
