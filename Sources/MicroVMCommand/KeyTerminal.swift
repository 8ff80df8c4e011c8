import Glibc
import Synchronization

/// The terminal that standard input is, in a mode in which each key arrives when it is pressed, and is not echoed.
///
/// The mode is set only while the command is in the terminal's foreground: in the background nothing is touched, and
/// the terminal is then somebody else's.
final class KeyTerminal: Sendable {
    static let shared = KeyTerminal()

    private struct State {
        /// The terminal opened once more, so that reading does not block here and still does for others.
        var descriptor: Int32?
        /// The mode before ours, while ours is set.
        var original: termios?
    }

    private let state = Mutex(State())

    private init() {}

    /// Sets the mode, or will when the command comes to the foreground.
    ///
    /// - Returns: whether standard input is the terminal that controls the command.
    func begin() -> Bool {
        guard isatty(0) == 1, tcgetpgrp(0) >= 0 else { return false }
        state.withLock { state in
            let descriptor = unsafe open("/dev/tty", O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
            state.descriptor = descriptor < 0 ? nil : descriptor
        }
        set()
        return state.withLock { $0.descriptor != nil }
    }

    /// Sets the mode again where it is wanted, and what it replaces is what is put back later.
    func set() {
        state.withLock { state in
            guard let descriptor = state.descriptor, Self.isInForeground(descriptor) else { return }
            var mode = termios()
            // Both structures outlive the calls.
            guard unsafe tcgetattr(descriptor, &mode) == 0 else { return }
            let flags = tcflag_t(ICANON | ECHO)
            // Nobody has changed it while the command was suspended without notice.
            if state.original != nil, mode.c_lflag & flags == 0 { return }
            state.original = mode
            mode.c_lflag &= ~flags
            // VTIME and VMIN: a read is answered with the first byte.
            mode.c_cc.5 = 0
            mode.c_cc.6 = 1
            Self.apply(mode, to: descriptor)
        }
    }

    /// Puts back the mode from before. ``set()`` sets it again.
    func reset() { state.withLock { Self.reset(&$0) } }

    /// Puts back the mode from before for good.
    func end() {
        state.withLock { state in
            Self.reset(&state)
            // Not closed: the thread that waits for keys may be waiting on it.
            state.descriptor = nil
        }
    }

    private static func reset(_ state: inout State) {
        guard let descriptor = state.descriptor, let original = state.original else { return }
        state.original = nil
        if isInForeground(descriptor) { apply(original, to: descriptor) }
    }

    /// Waits for keys, a second at most.
    ///
    /// - Returns: the keys that have been pressed, if any; nothing when there will be none any more.
    func keys() -> [UInt8]? {
        guard let isSet = state.withLock({ state in state.descriptor.map { ($0, state.original != nil) } }) else {
            return nil
        }
        // In the background this only waits: a negative descriptor is not looked at.
        var descriptor = pollfd(fd: isSet.1 ? isSet.0 : -1, events: Int16(POLLIN), revents: 0)
        // One structure, which outlives the call.
        let count = unsafe poll(&descriptor, 1, 1_000)
        if descriptor.revents & Int16(POLLHUP | POLLERR | POLLNVAL) != 0 { return nil }
        guard count > 0 else {
            // A shell brings a job that is running to the foreground without telling it.
            if !isSet.1 { set() }
            return []
        }
        return state.withLock { state in
            // After the end the keys are for whoever comes next.
            guard let descriptor = state.descriptor else { return nil }
            guard state.original != nil else { return [] }
            var byte: UInt8 = 0
            var bytes: [UInt8] = []
            // Does not block; the byte outlives the call.
            while unsafe read(descriptor, &byte, 1) == 1 { bytes.append(byte) }
            return bytes
        }
    }

    /// Whether the mode is set, so that keys arrive.
    var isSet: Bool { state.withLock { $0.original != nil } }

    private static func isInForeground(_ descriptor: Int32) -> Bool { tcgetpgrp(descriptor) == getpgrp() }

    private static func apply(_ mode: termios, to descriptor: Int32) {
        // Who has lost the foreground just now is not to be stopped for this.
        var signals = sigset_t()
        var before = sigset_t()
        var mode = mode
        // All three outlive the calls.
        unsafe sigemptyset(&signals)
        unsafe sigaddset(&signals, SIGTTOU)
        unsafe pthread_sigmask(SIG_BLOCK, &signals, &before)
        while unsafe tcsetattr(descriptor, TCSANOW, &mode) != 0, errno == EINTR {}
        unsafe pthread_sigmask(SIG_SETMASK, &before, nil)
    }
}
