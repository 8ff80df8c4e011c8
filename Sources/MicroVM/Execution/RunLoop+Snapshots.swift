import LinuxKVM
import SystemPackage

extension RunLoop {
    /// Puts everything back to what it was.
    func restore(to snapshot: Snapshot) throws(SandboxError) -> RestoreStatistics {
        guard !isInCall else {
            throw SandboxError(.busy, "A call is under way; a sandbox can be restored when it is over.")
        }
        try snapshot.check(module, image)
        willRestore()
        let pages: RestoredPages
        do throws(SandboxError) {
            pages = try machine.memory.restore(
                to: snapshot.memory,
                keeping: configuration.residentMemoryAfterRestore,
                countsFaults: true
            )
            do throws(Errno) {
                try machine.reset(isBroken: isMachineBroken)
            } catch {
                throw SandboxError(.systemCallFailed, "KVM does not take the registers.", underlyingError: error)
            }
        } catch {
            observer?.restoreFailed(error)
            throw error
        }
        if !machine.memory.windows.isEmpty { knowServedMemory() }
        didRestore(snapshot.suspendedCall)
        observer?.restored(pages)
        return RestoreStatistics(pagesCopied: pages.copied, pagesDropped: pages.dropped)
    }

    /// Tells the interrupt handle how to end a guest's wait for a page, as the windows are now.
    func knowServedMemory() {
        let served = machine.memory.served.compactMap(\.self)
        guard !served.isEmpty else { return interruptHandle.setEndOfWaits(nil) }
        interruptHandle.setEndOfWaits { for memory in served { memory.abandonFaults(sandbox: 0) } }
    }

    /// Takes a snapshot, between two calls or while a call is held by a stop.
    func snapshot() throws(SandboxError) -> Snapshot {
        try checkPoison("so no snapshot is taken of it")
        let call: SuspendedCall?
        if isInCall {
            guard isParked, depth == 0, !isInitializing else {
                throw SandboxError(
                    .busy,
                    """
                    A host function or an initialiser is at work, which are no part of the guest: a snapshot can \
                    be taken between calls, or while a stop holds a call in the guest.
                    """
                )
            }
            call = try suspendedCallState()
        } else {
            call = suspendedCall
        }
        return Snapshot(
            module: module,
            image: image,
            memory: try machine.memory.takeImage(),
            suspendedCall: call,
            configuration: configuration
        )
    }

    private func suspendedCallState() throws(SandboxError) -> SuspendedCall {
        do throws(Errno) {
            _ = try completedRegisters()
            let registers = try machine.callRegisters { interruptHandle.clearImmediateExit() }
            return SuspendedCall(registers: registers, function: calledFunction, arenaPosition: arenaPosition)
        } catch {
            throw SandboxError(.systemCallFailed, "KVM does not give the registers.", underlyingError: error)
        }
    }

    /// Goes on with the call that the sandbox was restored to the middle of, and comes back when it has returned.
    func resumeSuspendedCall() throws {
        guard let call = suspendedCall else {
            throw SandboxError(.invalidArgument, "There is no call to go on with.")
        }
        do throws(Errno) {
            try machine.setCallRegisters(call.registers) { interruptHandle.clearImmediateExit() }
        } catch {
            let error = SandboxError(.systemCallFailed, "KVM does not take the registers.", underlyingError: error)
            observer?.callEnds(.failed, error)
            throw error
        }
        try run(suspended: call)
    }
}
