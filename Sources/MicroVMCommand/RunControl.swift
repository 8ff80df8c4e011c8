import MicroVM
import Synchronization

/// What can be done to a run from outside while it is under way.
final class RunControl: Sendable {
    private struct State {
        var cancel: (@Sendable () -> Void)?
        var killSwitch: KillSwitch?
        var isKilled = false
        var isStopped = false
        var isLocating = false
    }

    /// Holds the run's sandbox, from before its initialisers run: what acts on the set acts on them too.
    let sandboxes = SandboxSet()
    private let state = Mutex(State())

    /// Whether somebody has asked for the end.
    var isKilled: Bool { state.withLock { $0.isKilled } }

    // MARK: - The run

    /// Tells how to end the run where no call of its own is under way.
    func begin(cancel: @escaping @Sendable () -> Void) {
        let isKilled = state.withLock { state in
            state.cancel = cancel
            return state.isKilled
        }
        if isKilled { cancel() }
    }

    /// The call has been started.
    func call(_ killSwitch: KillSwitch) { state.withLock { $0.killSwitch = killSwitch } }

    // MARK: - Requests

    /// Ends the run.
    func kill() {
        let (killSwitch, cancel) = state.withLock { state in
            state.isKilled = true
            return (state.killSwitch, state.cancel)
        }
        // Where the call is over there is nothing to end.
        if let killSwitch { _ = try? killSwitch.terminate() } else { cancel?() }
    }

    /// Holds the run, whose guest has left its processor when this returns.
    ///
    /// - Returns: whether it was not held already.
    func stop() -> Bool {
        guard change(isStopped: true) else { return false }
        return (try? sandboxes.beginExternalStop()) != nil
    }

    /// Lets the run go on.
    ///
    /// - Returns: whether it was held.
    func goOn() -> Bool {
        guard change(isStopped: false) else { return false }
        return (try? sandboxes.endExternalStop()) != nil
    }

    private func change(isStopped: Bool) -> Bool {
        state.withLock { state in
            defer { state.isStopped = isStopped }
            return state.isStopped != isStopped
        }
    }

    /// Says where the run is, once that is known: a host function that is at work is waited for.
    func locate(_ say: @escaping @Sendable (String) -> Void) {
        let isStopped: Bool? = state.withLock { state in
            // A key that is held down is one question.
            if state.isLocating { return nil }
            state.isLocating = true
            return state.isStopped
        }
        guard let isStopped else { return }
        Task {
            let found = await sandboxes.pullFullState().first?.state
            say(Self.text(found, isStopped: isStopped))
            state.withLock { $0.isLocating = false }
        }
    }

    private static func text(_ found: SandboxState?, isStopped: Bool) -> String {
        guard let found, found.isInCall else { return "No call is under way.\n" }
        var text = isStopped ? "Stopped" : "Running"
        text += ", at \(GuestPlace.text(found.symbol, found.instructionPointer))"
        if let function = found.hostFunction { text += ", in the host function \(function.printable)" }
        text += ", call depth \(found.callDepth)"
        if let time = found.statistics.cpuTime { text += ", CPU time \(TimeSpan(time))" }
        return text + ".\n"
    }
}
