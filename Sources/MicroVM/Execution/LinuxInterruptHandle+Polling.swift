import CShims
import Synchronization

/// The word while the guest polls for calls: the thread is in KVM_RUN, and a caller on another one begins and ends
/// calls (docs/models/mailbox.pml).
extension LinuxInterruptHandle {
    // MARK: The virtual CPU's thread

    /// Asks for the right to call KVM_RUN without a call. Where it is given, ``endPolling()`` must follow.
    func beginPolling() -> Bool {
        // As in `enter`: cleared before any flag is looked at. model: polling_begin
        unsafe shim_immediate_exit_clear(target)
        // Acquiring and releasing; partners: every request.
        let before = word.update { state in
            state.has(CallState.stop | CallState.debugInterrupt)
                ? nil : CallState(rawValue: state.rawValue | CallState.polling)
        }
        return !before.has(CallState.stop | CallState.debugInterrupt)
    }

    /// KVM_RUN has returned to a thread that wants to go on polling: what the word is, after which nobody's kick can
    /// have been overlooked.
    func lookAround() -> CallState {
        // As in `enter`. model: polling_look
        unsafe shim_immediate_exit_clear(target)
        return CallState(rawValue: unsafe state.pointee.load(ordering: .sequentiallyConsistent))
    }

    /// The thread is out of KVM_RUN. What the word was.
    func endPolling() -> CallState {
        // Acquiring and releasing; partners: every request, and the load in `kickUntilOut`. model: polling_end
        let flags = CallState.polling | CallState.running
        let old = unsafe state.pointee.bitwiseAnd(~flags, ordering: .acquiringAndReleasing).oldValue
        let before = CallState(rawValue: old)
        if before.has(CallState.requests) { countDeparture() }
        wakeSleepers()
        return before
    }

    /// After ``endPolling()``: settles how a call ends that was in the guest then, if it ends now. What the word was.
    func settle(_ settles: Bool) -> CallState {
        // Acquiring and releasing, as in `decide`. model: decide
        settles ? setFlag(CallState.decided) : currentState
    }

    /// Gets the thread out of a KVM_RUN without a call; from any thread, which has left in the baton before that the
    /// thread is wanted.
    func recall() {
        guard registerSender() else { return }
        defer { unregisterSender() }
        // Acquiring, like all such looks. Where it has left by itself it looks at its work next.
        guard currentState.has(CallState.polling) else { return }
        // model: recall_kick
        unsafe shim_immediate_exit_set(target)
        // A full signal queue (EAGAIN) is the only failure while the thread lives.
        while unsafe shim_interrupt_send(target, signal) != 0, currentState.has(CallState.polling) {
            shim_thread_yield()
        }
    }

    // MARK: Callers

    /// A call begins, and is in the guest from now on. Its number; nothing where the guest is not to be called.
    func beginPolledCall() -> UInt64? {
        guard let number = word.beginPolledCall() else { return nil }
        points.reach(.callBegun)
        return number
    }

    /// The guest has returned, and the call is over. Whether it is: not where it is to end for another reason.
    func endPolledCall() -> Bool {
        points.reach(.leavingGuest)
        let before = word.endPolledCall()
        if before.has(CallState.requests) { didEndPolledCall(before) }
        points.reach(.decided)
        return !before.has(CallState.cancel)
    }

    /// Tells those who wanted the guest to be left, after a call that the guest has returned from.
    func didEndPolledCall(_ before: CallState) {
        if !before.has(CallState.cancel) { countDeparture() }
        wakeSleepers()
    }

    /// A call is over that the guest was never told of.
    func abandonPolledCall() {
        // Releasing, as in `endCall`. model: end_call
        let flags = CallState.running | CallState.inCall
        let old = unsafe state.pointee.bitwiseAnd(~flags, ordering: .acquiringAndReleasing).oldValue
        if CallState(rawValue: old).has(CallState.requests) { countDeparture() }
        wakeSleepers()
    }

    /// The guest has called the host. Whether its host function may be begun: not where the call is to end.
    func leaveForPolledHostCall() -> Bool {
        points.reach(.leavingGuest)
        // Acquiring and releasing: partner of every request. model: polled_host_call
        let before = word.update { state in
            state.has(CallState.cancel) ? nil : CallState(rawValue: state.rawValue & ~CallState.running)
        }
        if before.has(CallState.requests), !before.has(CallState.cancel) {
            countDeparture()
            wakeSleepers()
        }
        points.reach(.leftGuest)
        return !before.has(CallState.cancel)
    }

    /// The host function has returned. Whether the guest may go on at once: not where anybody wants something else, or
    /// it does not poll any more.
    func enterAfterPolledHostCall() -> Bool {
        points.reach(.enteringGuest)
        // Acquiring and releasing: partner of every request. model: polled_host_return
        let before = word.update { state in
            guard state.has(CallState.polling), !state.has(CallState.requests) else { return nil }
            return CallState(rawValue: state.rawValue | CallState.running)
        }
        points.reach(.enteredGuest)
        return before.has(CallState.polling) && !before.has(CallState.requests)
    }
}
