import Glibc
import Synchronization

/// The signals that end or suspend the command, and SIGCONT, taken by one thread that does nothing else.
///
/// The first SIGINT or SIGTERM calls the handler, if there is one. Everything else does what it always does, the second
/// of the two included, but not before the terminal is as it was.
final class CommandSignals: Sendable {
    static let shared = CommandSignals()

    private let handler = Mutex<(@Sendable () -> Void)?>(nil)

    private init() {}

    /// Sets what the first SIGINT or SIGTERM does.
    func handle(by handler: @escaping @Sendable () -> Void) { self.handler.withLock { $0 = handler } }

    /// Holds the signals back from the calling thread, and from all that it begins.
    func block() {
        var signals = Self.signals
        // The set outlives the call, which only reads it.
        unsafe pthread_sigmask(SIG_BLOCK, &signals, nil)
    }

    /// Waits for signals for ever, on the thread that has blocked them.
    func serve() -> Never {
        var isEnding = false
        while true {
            let signal = wait()
            switch signal {
            case SIGCONT:
                KeyTerminal.shared.set()
            case SIGTSTP:
                KeyTerminal.shared.reset()
                // Stops here, and goes on at SIGCONT. In a process group that no shell looks after, it does not stop.
                takeDefault(signal)
                KeyTerminal.shared.set()
            case SIGINT, SIGTERM:
                if !isEnding, let handler = handler.withLock({ $0 }) {
                    isEnding = true
                    // On a thread of its own: it may take its time, and the next signal must not.
                    if startThread(handler) { continue }
                }
                fallthrough
            default:
                KeyTerminal.shared.end()
                takeDefault(signal)
            }
        }
    }

    /// Lets a signal do what it does to a process that knows nothing of it.
    private func takeDefault(_ number: Int32) {
        var signals = sigset_t()
        // The set outlives the calls.
        unsafe sigemptyset(&signals)
        unsafe sigaddset(&signals, number)
        _ = signal(number, SIG_DFL)
        raise(number)
        unsafe pthread_sigmask(SIG_UNBLOCK, &signals, nil)
        unsafe pthread_sigmask(SIG_BLOCK, &signals, nil)
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
        for number in [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT] {
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
