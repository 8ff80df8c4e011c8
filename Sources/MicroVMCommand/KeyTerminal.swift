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
        /// Whether the whole screen is wanted, which then shows what it showed before when the mode is put back.
        var isFullScreen = false
    }

    /// Another screen, without a cursor; and back.
    private static let enterScreen = "\u{1b}[?1049h\u{1b}[?25l\u{1b}[2J"
    private static let leaveScreen = "\u{1b}[?25h\u{1b}[?1049l"

    private let state = Mutex(State())

    private init() {}

    /// Sets the mode, or will when the command comes to the foreground.
    ///
    /// - Parameter fullScreen: whether the command wants the whole screen, for ``draw(_:)``.
    /// - Returns: whether standard input is the terminal that controls the command.
    func begin(fullScreen: Bool = false) -> Bool {
        guard isatty(0) == 1, tcgetpgrp(0) >= 0 else { return false }
        state.withLock { state in
            let descriptor = unsafe open("/dev/tty", O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
            state.descriptor = descriptor < 0 ? nil : descriptor
            state.isFullScreen = fullScreen
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
            if state.isFullScreen { Self.write(Self.enterScreen, to: descriptor) }
        }
    }

    /// Writes to the terminal, if it is in the mode that is wanted.
    func draw(_ text: String) {
        state.withLock { state in
            guard let descriptor = state.descriptor, state.original != nil, Self.isInForeground(descriptor) else {
                return
            }
            Self.write(text, to: descriptor)
        }
    }

    /// How many columns and rows the terminal has; 80 and 24 where it does not say.
    var size: (columns: Int, rows: Int) {
        state.withLock { state in
            // The rows, the columns, and the same in pixels: the kernel's `winsize`, of which there are several in C.
            var size = [UInt16](repeating: 0, count: 4)
            guard let descriptor = state.descriptor,
                // The array outlives the call.
                unsafe ioctl(descriptor, UInt(TIOCGWINSZ), &size) == 0, size[0] > 0, size[1] > 0
            else { return (80, 24) }
            return (Int(size[1]), Int(size[0]))
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
        guard isInForeground(descriptor) else { return }
        if state.isFullScreen { write(leaveScreen, to: descriptor) }
        apply(original, to: descriptor)
    }

    /// Writes what the terminal takes. One that takes nothing for some time is not waited for.
    private static func write(_ text: String, to descriptor: Int32) {
        var bytes = Array(text.utf8)[...]
        while !bytes.isEmpty {
            // The bytes outlive the call, which is told their number.
            let count = unsafe bytes.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) }
            if count > 0 {
                bytes = bytes.dropFirst(count)
            } else if count < 0, errno == EAGAIN {
                var waiting = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                // Likewise.
                if unsafe poll(&waiting, 1, 500) <= 0 { return }
            } else if errno != EINTR {
                return
            }
        }
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
