import Glibc

/// The keys that act on a run while it is under way.
enum RunKeys {
    static let explanation = "Keys: k kill, s stop, c continue, ? where it is.\n"

    /// Listens to keys on a thread of its own until ``end()``, if standard input is a terminal.
    static func begin(_ control: RunControl) {
        guard KeyTerminal.shared.begin() else { return }
        if !startThread({ listen(control) }) { end() }
    }

    static func end() { KeyTerminal.shared.end() }

    private static func listen(_ control: RunControl) {
        // Reading in the background is then an error, which does no harm, and stops nothing.
        var signals = sigset_t()
        // The set outlives the calls.
        unsafe sigemptyset(&signals)
        unsafe sigaddset(&signals, SIGTTIN)
        unsafe pthread_sigmask(SIG_BLOCK, &signals, nil)
        var isExplained = isatty(2) != 1
        while let keys = KeyTerminal.shared.keys() {
            for key in keys { act(on: key, control) }
            // Not at once: most calls are over before anybody could press a key.
            if keys.isEmpty, !isExplained, KeyTerminal.shared.isSet {
                isExplained = true
                StandardStream.error.write(explanation)
            }
        }
    }

    private static func act(on key: UInt8, _ control: RunControl) {
        switch key {
        case UInt8(ascii: "k"): control.kill()
        case UInt8(ascii: "s"):
            StandardStream.error.write(control.stop() ? "Stopped; c continues.\n" : "Stopped already.\n")
        case UInt8(ascii: "c"): StandardStream.error.write(control.goOn() ? "Continued.\n" : "Not stopped.\n")
        case UInt8(ascii: "?"): control.locate { StandardStream.error.write($0) }
        default: break
        }
    }
}
