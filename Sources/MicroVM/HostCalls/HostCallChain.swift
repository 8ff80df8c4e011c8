/// The sandboxes that wait for the host function the current task works for, the innermost first. A call of one of them
/// would wait for itself for ever.
final class HostCallChain: Sendable {
    @TaskLocal static var current: HostCallChain?

    private let reference: RunLoopReference
    private let outer: HostCallChain?

    init(_ reference: RunLoopReference, outer: HostCallChain?) {
        self.reference = reference
        self.outer = outer
    }

    /// Refuses a call of a sandbox that the current task's own host function keeps waiting. What it keeps waiting, if
    /// it is one.
    @discardableResult
    static func check(_ reference: RunLoopReference) throws(SandboxError) -> HostCallChain? {
        let first = current
        var link = first
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
        return first
    }
}
