/// The sandboxes that wait for the host function the current task works for, the innermost first. A call of one of them
/// would wait for itself for ever.
final class HostCallChain: Sendable {
    @TaskLocal static var current: HostCallChain?

    private let reference: RunLoopReference
    private let outer: HostCallChain?
    /// The sandbox's own link, which this one stands for. Nobody reads it: that there is a task that knows of this one
    /// is found by it.
    private let own: HostCallChain?

    private init(_ reference: RunLoopReference, outer: HostCallChain?, standingFor own: HostCallChain?) {
        self.reference = reference
        self.outer = outer
        self.own = own
    }

    /// The link of a sandbox that nobody else waits for. While only its run loop refers to it, there is no task that
    /// knows of a host function of that sandbox.
    convenience init(_ reference: RunLoopReference) { self.init(reference, outer: nil, standingFor: nil) }

    /// What the host functions of a sandbox bind: the sandbox, and whom the current task keeps waiting already.
    static func extended(by own: HostCallChain) -> HostCallChain {
        current.map { HostCallChain(own.reference, outer: $0, standingFor: own) } ?? own
    }

    /// Refuses a call of a sandbox that the current task's own host function keeps waiting.
    static func check(_ reference: RunLoopReference) throws(SandboxError) {
        guard let first = current else { return }
        try check(reference, from: first)
    }

    private static func check(_ reference: RunLoopReference, from first: HostCallChain) throws(SandboxError) {
        // Code on the sandbox's own thread that makes calls cannot be keeping it waiting.
        if reference.thread.isCurrent { return }
        var link: HostCallChain? = first
        while let next = link {
            if next.reference === reference {
                throw SandboxError(
                    .reentrantCall,
                    """
                    This sandbox waits for the host function that calls it; a host function calls back through its \
                    HostCallContext.
                    """
                )
            }
            link = next.outer
        }
    }
}
