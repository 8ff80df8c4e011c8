/// The end of a pool.
extension SandboxPool {
    /// Lends no more sandboxes, waits for those that are lent, and closes all.
    ///
    /// Callers that wait are refused with ``SandboxError/Code/poolShutDown``, as are all that come later. When the task
    /// is cancelled, this waits no longer and goes on like ``shutDownNow()``. May be called any number of times; not by
    /// a borrower, who would wait for itself.
    public func shutDown() async {
        stopLending()
        await withTaskCancellationHandler {
            await waitForSandboxes()
        } onCancel: {
            endLoans()
        }
    }

    /// Lends no more sandboxes, ends what those are doing that are lent, and closes all.
    ///
    /// Calls under way end with ``SandboxError/Code/killed``, and no more begin. The borrowers' closures, and
    /// asynchronous host functions, are waited for.
    public func shutDownNow() async {
        stopLending()
        endLoans()
        await waitForSandboxes()
    }

    private func stopLending() {
        let (isFirst, idle, resumptions) = state.withLock { state in
            defer { (state.idle, state.isShutDown) = ([], true) }
            return (!state.isShutDown, state.idle, state.line.sendAway(Self.shutDownError))
        }
        if isFirst { log.shutsDown() }
        for resumption in resumptions { resumption() }
        for sandbox in idle { sandbox.reference.thread.enqueue { [self] in close(sandbox) } }
    }

    private func endLoans() {
        // Not inside the lock: it waits until the guests have left.
        for loan in state.withLock({ Array($0.loans.values) }) { _ = loan.endCalls() }
    }

    private func waitForSandboxes() async {
        await withCheckedContinuation { continuation in
            let isOver = state.withLock { state in
                if state.count > 0 { state.shutDowns.append(continuation) }
                return state.count == 0
            }
            if isOver { continuation.resume() }
        }
    }
}
