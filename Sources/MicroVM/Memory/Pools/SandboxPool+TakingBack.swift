/// What becomes of a sandbox when its loan is over.
extension SandboxPool {
    func giveBack(_ loan: SandboxLoan) {
        let wasInCall = loan.endCalls()
        state.withLock { state in
            state.loans[ObjectIdentifier(loan.sandbox)] = nil
            if wasInCall { state.totals.killedReturns += 1 }
        }
        // Behind all that the borrower has begun on this thread; what it begins from now on finds the loan over.
        loan.sandbox.reference.thread.enqueue { [self] in takeBack(loan.sandbox, wasInCall) }
        metrics.inUse(-1)
    }

    /// On the sandbox's own thread: nothing of the loan runs any more.
    private func takeBack(_ sandbox: Sandbox, _ wasInCall: Bool) {
        let wasPoisoned = sandbox.reference.value?.isPoisoned ?? false
        let (isShutDown, isDismissed) = state.withLock { state in
            if wasPoisoned { state.totals.poisonedReturns += 1 }
            return (state.isShutDown, state.dismissesOne())
        }
        metrics.returned(killed: wasInCall, poisoned: wasPoisoned)
        log.returned(killed: wasInCall, poisoned: wasPoisoned)
        if isShutDown || isDismissed { return close(sandbox, isDismissed: isDismissed) }
        do throws(SandboxError) {
            guard let runLoop = sandbox.reference.value else { throw SandboxError(.closed) }
            count(try runLoop.restore(to: snapshot))
        } catch {
            state.withLock { $0.totals.failedRestores += 1 }
            metrics.restoreFailed()
            log.restoreFailed(error)
            return close(sandbox)
        }
        state.withLock { $0.totals.restores += 1 }
        offer(sandbox)
    }

    /// Lends a sandbox that is ready to whoever waits, or keeps it; on any thread. What the pool is now decides, not
    /// what it was when the sandbox came back or was begun to be made: it may have become smaller since then.
    func offer(_ sandbox: Sandbox) {
        enum Use { case lent(SandboxPoolLine.Resumption), kept, closed(isDismissed: Bool) }
        let use = state.withLock { state -> Use in
            if state.isShutDown { return .closed(isDismissed: false) }
            if state.dismissesOne() { return .closed(isDismissed: true) }
            if let waiter = state.line.next() { return .lent(waiter.settle(.success(.sandbox(state.lend(sandbox))))) }
            state.idle.append(sandbox)
            state.isExhausted = false
            return .kept
        }
        switch use {
        case .lent(let resumption): resumption()
        case .kept: break
        case .closed(let isDismissed):
            sandbox.reference.thread.enqueue { [self] in close(sandbox, isDismissed: isDismissed) }
        }
    }

    func count(_ restore: RestoreStatistics) {
        state.withLock { state in
            state.totals.pagesCopied += restore.pagesCopied
            state.totals.pagesDropped += restore.pagesDropped
        }
        metrics.restored(restore)
    }

    /// Ends a sandbox, on its own thread; somebody else may have its place.
    func close(_ sandbox: Sandbox, isDismissed: Bool = false) {
        sandbox.reference.value = nil
        loseSandbox(isDismissed: isDismissed)
    }

    func loseSandbox(isDismissed: Bool = false) {
        let (resumption, shutDowns) = state.withLock {
            state -> (SandboxPoolLine.Resumption?, [CheckedContinuation<Void, Never>]) in
            if isDismissed { state.departing -= 1 }
            if state.count <= state.size.upperBound, let waiter = state.line.next() {
                state.making += 1
                return (waiter.settle(.success(.place)), [])
            }
            state.count -= 1
            guard state.count == 0 else { return (nil, []) }
            defer { state.shutDowns = [] }
            return (nil, state.shutDowns)
        }
        resumption?()
        for shutDown in shutDowns { shutDown.resume() }
    }
}
