/// Changing how many sandboxes there are.
extension SandboxPool {
    /// Changes how many sandboxes there are at least and at most, while the pool is in use.
    ///
    /// Callers that wait get what there is more at once. Where there are too many now, idle ones are closed, and lent
    /// ones when they come back: no loan is ended for it.
    ///
    /// - Parameter size: how many sandboxes there are when this returns, and how many there may be at most.
    /// - Throws: ``SandboxError``: `.invalidConfiguration`, `.poolShutDown`; `.systemCallFailed` and the like where
    ///   there is no room for them, or one cannot be made. In the latter case the maximum is the new one all the same.
    public func resize(to size: ClosedRange<Int>) async throws(SandboxError) {
        try Self.check(size, maximumWaiters)
        try reservation.reserve(size.upperBound)
        let (idle, resumptions) = try state.withLock {
            state throws(SandboxError) -> ([Sandbox], [SandboxPoolLine.Resumption]) in
            guard !state.isShutDown else { throw Self.shutDownError }
            state.size = size
            var idle: [Sandbox] = []
            // Those first that have been idle for longest.
            while !state.idle.isEmpty, state.dismissesOne() { idle.append(state.idle.removeFirst()) }
            var resumptions: [SandboxPoolLine.Resumption] = []
            while state.count < size.upperBound, let waiter = state.line.next() {
                state.count += 1
                state.making += 1
                resumptions.append(waiter.settle(.success(.place)))
            }
            return (idle, resumptions)
        }
        log.resized(size)
        for resumption in resumptions { resumption() }
        for sandbox in idle {
            sandbox.reference.thread.enqueue { [self] in close(sandbox, isDismissed: true) }
        }
        while takesPlaceBelowMinimum() { try await addSandbox() }
    }

    private func takesPlaceBelowMinimum() -> Bool {
        state.withLock { state in
            guard !state.isShutDown, state.count - state.departing < state.size.lowerBound,
                state.count < state.size.upperBound
            else { return false }
            state.count += 1
            return true
        }
    }

    /// Makes a sandbox that nobody has asked for, in a place that has been taken for it.
    private func addSandbox() async throws(SandboxError) {
        do throws(SandboxError) {
            offer(try makeSandbox())
        } catch {
            log.makingFailed(error)
            loseSandbox()
            throw error
        }
    }
}
