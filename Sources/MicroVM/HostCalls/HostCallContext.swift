/// What a host function may use while it runs. Valid only during the call, and on its thread.
public struct HostCallContext {
    /// The memory of the guest that called.
    public let memory: GuestMemory

    init(memory: GuestMemory) { self.memory = memory }
}
