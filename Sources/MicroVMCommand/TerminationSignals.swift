import Glibc
import Synchronization

/// SIGINT and SIGTERM, taken by one thread that does nothing else.
///
/// The first signal calls the handler, if there is one; without a handler it ends the process as it always would, and
/// so does the second one in any case.
final class TerminationSignals: Sendable {
    static let shared = TerminationSignals()

    private let handler = Mutex<(@Sendable () -> Void)?>(nil)

    private init() {}

    /// Sets what the first signal does.
    func handle(by handler: @escaping @Sendable () -> Void) { self.handler.withLock { $0 = handler } }

    /// Holds the signals back from the calling thread, and from all that it begins.
    func block() {
        var signals = Self.signals
        // The set outlives the call, which only reads it.
        unsafe pthread_sigmask(SIG_BLOCK, &signals, nil)
    }

    /// Waits for signals for ever, on the thread that has blocked them.
    func serve() -> Never {
        let first = wait()
        // From here on they do what they always do.
        var signals = Self.signals
        for number in [SIGINT, SIGTERM] where unsafe sigismember(&signals, number) == 1 {
            _ = signal(number, SIG_DFL)
        }
        // The set outlives the call, which only reads it.
        unsafe pthread_sigmask(SIG_UNBLOCK, &signals, nil)
        if let handler = handler.withLock({ $0 }) { handler() } else { raise(first) }
        while true { pause() }
    }

    private func wait() -> Int32 {
        var signals = Self.signals
        var signal: Int32 = 0
        while true {
            // Both outlive the call. Signals that are none of these do not end it.
            if unsafe sigwait(&signals, &signal) == 0 { return signal }
            // There is none to wait for: all are ignored.
            pause()
        }
    }

    /// What a shell has told the process to ignore, such as Ctrl-C for a job in the background, stays ignored.
    private static let signals: sigset_t = {
        var signals = sigset_t()
        unsafe sigemptyset(&signals)
        for number in [SIGINT, SIGTERM] {
            var action = sigaction()
            // Both structures outlive the calls; the handler is only compared.
            let found = unsafe sigaction(number, nil, &action) == 0
            let handler = unsafe unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self)
            let ignoring = unsafe unsafeBitCast(SIG_IGN, to: Int.self)
            if !(found && handler == ignoring) { unsafe sigaddset(&signals, number) }
        }
        return signals
    }()
}
