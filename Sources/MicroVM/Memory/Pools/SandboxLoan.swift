import Synchronization

/// One lending of a pool's sandbox.
///
/// The borrower has a ``Sandbox`` of its own to hold, which shares everything with the pool's but ends with the loan: a
/// call that is begun through it later, by a task that outlived the borrower, finds the loan over instead of the next
/// borrower's sandbox.
final class SandboxLoan: Sendable {
    /// The pool's own, which holds the thread and the virtual machine.
    let sandbox: Sandbox
    private let hasEnded = Atomic<Bool>(false)

    init(of sandbox: Sandbox) { self.sandbox = sandbox }

    /// Whether nothing may be begun any more. Asked about a call that has begun, by the thread that has begun it.
    var isOver: Bool {
        // The fence keeps the beginning of the call before the look. Partner: the fence in `endCalls`.
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        return hasEnded.load(ordering: .relaxed)
    }

    func check() throws(SandboxError) {
        // Acquiring: partner of the release in `end`. Who comes too early here is found by `isOver`.
        guard hasEnded.load(ordering: .acquiring) else { return }
        throw SandboxError(.closed, "This sandbox was lent by a pool, which has taken it back.")
    }

    /// From now on nothing is begun any more.
    func end() { hasEnded.store(true, ordering: .releasing) }

    /// Ends the loan, and the call that is under way, if one is. Whether one was.
    ///
    /// Of a call that is just beginning, either this sees that it has begun, or its thread sees the end of the loan:
    /// each side has a fence between what it writes and what it reads.
    func endCalls() -> Bool {
        end()
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        // Not even an internal stop that kills have to wait for keeps a sandbox from its pool.
        sandbox.interruptHandle.clearInternalStop()
        switch sandbox.interruptHandle.kill() {
        case .signalled, .pending: return true
        case .notRunning, .dropped: return false
        }
    }
}
