public import MicroVM

/// How the calls of a registered module are run.
public struct ModuleSettings: Sendable {
    /// What the module's imports stand for.
    public var hostFunctions: [HostFunction] = []
    /// Memory and limits of every sandbox. What a guest writes can be read of its call, and goes to the configuration's
    /// own `output` as well.
    public var sandbox = SandboxConfiguration()
    /// How many sandboxes are kept ready, and how many calls may run at the same time.
    public var pool: ClosedRange<Int> = 0...4
    /// What all calls of the module may use together.
    public var limits = ResourceLimits()
    /// What each call may use, where it asks for no less.
    public var callLimits = CallLimits()
    /// Brings the first sandbox into the state in which every call finds its own.
    public var prepare: @Sendable (Sandbox) async throws -> Void = { _ in }

    /// The defaults.
    public init() {}
}
