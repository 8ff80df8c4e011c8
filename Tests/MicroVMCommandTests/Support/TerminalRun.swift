import Foundation
import Glibc
import Synchronization
import Testing

/// A program on a pseudo-terminal of its own, in the foreground. Killed after a minute, or more where everything
/// is emulated.
///
/// Standard input and standard error are the terminal; standard output goes to a file. The session's leader is a shell
/// that outlives the program: when a leader goes, the terminal's mode goes with it.
@safe final class TerminalRun: Sendable {
    /// What programs see of the terminal, but for the size of its window.
    struct Mode: Equatable {
        private var flags: [tcflag_t]
        private var controls: [UInt8]

        fileprivate init(_ mode: termios) {
            flags = [mode.c_iflag, mode.c_oflag, mode.c_cflag, mode.c_lflag]
            // An array of bytes, which C's arrays are in Swift once they are copied.
            controls = unsafe withUnsafeBytes(of: mode.c_cc) { unsafe Array($0) }
        }

        /// Whether keys arrive one by one and are not echoed.
        var isForKeys: Bool { flags[3] & tcflag_t(ICANON | ECHO) == 0 }
    }

    /// The session's leader, and the process group of the program.
    private let leader: pid_t
    /// The terminal's other side, where a person would sit.
    private let keyboard: Int32
    /// The side of the program, held open so that its mode can be read when the program is gone.
    private let terminal: Int32
    private let outputFile: URL
    private let screen = Screen()
    private let isOver = Shared(false)
    /// The terminal's mode before the program began.
    let modeBefore: Mode

    /// Begins `microvm` with its arguments, or a shell script that gets it and them as its arguments.
    convenience init(_ arguments: String..., script: String? = nil) throws { try self.init(arguments, script: script) }

    /// The same with a list of arguments.
    init(_ arguments: [String], script: String? = nil) throws {
        keyboard = unsafe open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC)
        try #require(keyboard >= 0)
        // TIOCSPTLCK and TIOCGPTN, whose C macros Swift does not see; both take an int, which outlives the call.
        var number: Int32 = 0
        unsafe #expect(ioctl(keyboard, 0x4004_5431, &number) == 0)
        unsafe #expect(ioctl(keyboard, 0x8004_5430, &number) == 0)
        let path = "/dev/pts/\(number)"
        terminal = unsafe open(path, O_RDWR | O_NOCTTY | O_CLOEXEC)
        try #require(terminal >= 0)
        modeBefore = Self.mode(of: terminal)
        outputFile = FileManager.default.temporaryDirectory.appending(path: "microvm-terminal-\(UUID().uuidString)")

        let command = [CommandRun.executable.path] + arguments
        let program = script.map { ["/bin/sh", "-c", $0, "sh"] + command } ?? command
        // What is trapped has its default effect in the program.
        let leading = """
            ulimit -c 0; trap : INT QUIT HUP TERM; "$@"; echo "\(Self.endMark)$?" >&2; exec sleep 100
            """
        let words = ["/bin/sh", "-c", leading, "sh"] + program
        var actions = unsafe posix_spawn_file_actions_t()
        var attributes = posix_spawnattr_t()
        var all = sigset_t()
        var none = sigset_t()
        var child = pid_t()
        // Everything here outlives the calls. The session comes before the files, so the terminal becomes its own.
        unsafe posix_spawn_file_actions_init(&actions)
        unsafe posix_spawn_file_actions_addopen(&actions, 0, path, O_RDWR, 0)
        unsafe posix_spawn_file_actions_addopen(&actions, 1, outputFile.path, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        unsafe posix_spawn_file_actions_adddup2(&actions, 0, 2)
        unsafe posix_spawnattr_init(&attributes)
        unsafe sigfillset(&all)
        unsafe sigemptyset(&none)
        unsafe posix_spawnattr_setsigdefault(&attributes, &all)
        unsafe posix_spawnattr_setsigmask(&attributes, &none)
        let newSession: Int32 = 0x80  // POSIX_SPAWN_SETSID
        unsafe posix_spawnattr_setflags(
            &attributes,
            Int16(newSession | Int32(POSIX_SPAWN_SETSIGDEF) | Int32(POSIX_SPAWN_SETSIGMASK))
        )
        var pointers: [UnsafeMutablePointer<CChar>?] = unsafe words.map { unsafe strdup($0) } + [nil]
        let code = unsafe posix_spawn(&child, words[0], &actions, &attributes, &pointers, environ)
        unsafe pointers.forEach { unsafe free($0) }
        unsafe posix_spawnattr_destroy(&attributes)
        unsafe posix_spawn_file_actions_destroy(&actions)
        leader = child
        try #require(code == 0)
        let began = ContinuousClock.now
        Thread.detachNewThread { [keyboard, screen, isOver, child] in
            var bytes = [UInt8](repeating: 0, count: 4096)
            while !isOver.withLock({ $0 }) {
                if began.duration(to: .now) > Self.limit {
                    kill(-child, SIGKILL)
                    break
                }
                var descriptor = pollfd(fd: keyboard, events: Int16(POLLIN), revents: 0)
                // The structure and the buffer outlive the calls, which are told their sizes.
                guard unsafe poll(&descriptor, 1, 50) > 0 else { continue }
                let count = unsafe read(keyboard, &bytes, bytes.count)
                guard count > 0 else { break }
                screen.add(bytes[..<count])
            }
            screen.end()
            close(keyboard)
        }
    }

    deinit {
        isOver.withLock { $0 = true }
        kill(-leader, SIGKILL)
        var status: Int32 = 0
        // The word outlives the call.
        while unsafe waitpid(leader, &status, 0) < 0, errno == EINTR {}
        close(terminal)
        try? FileManager.default.removeItem(at: outputFile)
    }

    private static let limit = Duration.seconds(isEmulated ? 120 : 60)

    /// What stands before the exit status on the screen.
    private static let endMark = "--- ended: "

    private static func mode(of terminal: Int32) -> Mode {
        var mode = termios()
        // The structure outlives the call.
        unsafe #expect(tcgetattr(terminal, &mode) == 0)
        return Mode(mode)
    }

    // MARK: - What a person does

    /// All that the screen has shown of the program.
    var text: String { screen.text.components(separatedBy: Self.endMark)[0] }

    /// The exit status, or 128 and the number of the signal that ended it, once the program has ended.
    private var status: Int32? {
        let parts = screen.text.components(separatedBy: Self.endMark)
        guard parts.count > 1, parts[1].hasSuffix("\n") else { return screen.isAtEnd ? -1 : nil }
        return Int32(parts[1].dropLast())
    }

    var isUnderWay: Bool { status == nil }

    var mode: Mode { Self.mode(of: terminal) }

    /// Presses keys.
    func type(_ keys: String) {
        let bytes = Array(keys.utf8)
        // The bytes outlive the call, which is told their number.
        unsafe #expect(write(keyboard, bytes, bytes.count) == bytes.count)
    }

    func send(_ signal: Int32) { kill(-leader, signal) }

    /// Waits until something is so. It fails when the program is gone before that, or a minute has passed.
    func wait(until what: Comment, location: SourceLocation = #_sourceLocation, _ isSo: () -> Bool) async throws {
        while !isSo() {
            if status != nil, !isSo() {
                Issue.record("The program has ended: \(text)", sourceLocation: location)
                throw Ended()
            }
            try await Task.sleep(for: .milliseconds(5))
        }
    }

    /// Waits until the screen shows one of some texts behind what it showed when a former wait was over, and what comes
    /// behind it up to the end of the line.
    @discardableResult
    func wait(for texts: String..., location: SourceLocation = #_sourceLocation) async throws -> String {
        var line = ""
        try await wait(until: "“\(texts)” on the screen", location: location) {
            let rest = Array(Array(self.text).dropFirst(seen.withLock { $0 }))
            let wanted = texts.map { Array($0) }
            guard
                let start = rest.indices.first(where: { start in wanted.contains { rest[start...].starts(with: $0) } }),
                let end = rest[start...].firstIndex(of: "\n")
            else { return false }
            line = String(rest[start..<end])
            seen.withLock { $0 += end }
            return true
        }
        return line
    }
    private let seen = Mutex(0)

    /// Presses a key and waits for the answer's line, which begins with a text.
    @discardableResult
    func type(_ key: String, answer: String, location: SourceLocation = #_sourceLocation) async throws -> String {
        type(key)
        return try await wait(for: answer, location: location)
    }

    /// Asks where the guest is, once it is somewhere: keys are explained before a call begins.
    @discardableResult
    func place(_ answer: String, location: SourceLocation = #_sourceLocation) async throws -> String {
        while true {
            type("?")
            let line = try await wait(for: answer, "No call is under way.", location: location)
            if line.hasPrefix(answer) { return line }
            try await Task.sleep(for: .milliseconds(5))
        }
    }

    struct Ended: Error {}

    /// Waits for the program's end.
    ///
    /// - Returns: the exit status, or 128 and the number of the signal that ended it.
    func end() async throws -> Int32 {
        while true {
            if let status { return status }
            try await Task.sleep(for: .milliseconds(5))
        }
    }

    /// What the program wrote to standard output.
    var output: Data {
        get throws { try Data(contentsOf: outputFile) }
    }
}

/// A value behind a lock, which a thread may hold on to.
private final class Shared<Value: Sendable>: Sendable {
    private let value: Mutex<Value>

    init(_ value: Value) { self.value = Mutex(value) }

    func withLock<Result: Sendable>(_ body: (inout sending Value) -> Result) -> Result { value.withLock { body(&$0) } }
}

/// What a program has written.
private final class Screen: Sendable {
    private let bytes = Mutex<[UInt8]>([])
    private let hasEnded = Mutex(false)

    func add(_ more: ArraySlice<UInt8>) { bytes.withLock { $0 += more } }
    func end() { hasEnded.withLock { $0 = true } }

    /// Whether nothing more comes.
    var isAtEnd: Bool { hasEnded.withLock { $0 } }

    var text: String {
        String(decoding: bytes.withLock { $0 }, as: UTF8.self).replacingOccurrences(of: "\r\n", with: "\n")
    }
}
