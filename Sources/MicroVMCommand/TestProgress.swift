import Glibc
import MicroVM

/// One line at the bottom of the terminal that standard error is, if it is one.
struct TestProgress: Sendable {
    private let isTerminal = isatty(2) == 1
    private var isShown = false

    mutating func show(_ text: String) {
        guard isTerminal else { return }
        // ASCII, of which each character takes one column.
        let line = text.printable.unicodeScalars.map { $0.escaped(asASCII: !$0.isASCII) }.joined()
        StandardStream.error.write("\r\u{1b}[K" + line.prefix(Self.width - 1))
        isShown = true
    }

    mutating func clear() {
        guard isShown else { return }
        StandardStream.error.write("\r\u{1b}[K")
        isShown = false
    }

    private static var width: Int {
        // `struct winsize`: rows, columns, and two numbers that nobody uses. It outlives the call.
        var size: [UInt16] = [0, 0, 0, 0]
        guard unsafe ioctl(2, UInt(TIOCGWINSZ), &size) == 0, size[1] >= 20 else { return 80 }
        return Int(size[1])
    }
}
