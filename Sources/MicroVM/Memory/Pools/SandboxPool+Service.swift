#if ServiceLifecycle
public import ServiceLifecycle

extension SandboxPool: Service {
    /// Does nothing until the graceful shutdown, and then what ``shutDown()`` does. When the task is cancelled, what
    /// ``shutDownNow()`` does.
    public func run() async throws {
        try? await gracefulShutdown()
        await shutDown()
    }
}
#endif
