import FoundationEssentials
import Glibc

/// Standard output and standard error, written without a buffer in between.
enum StandardStream: Int32, Sendable {
    case output = 1
    case error = 2

    /// Writes all of the bytes, however slowly they are taken.
    ///
    /// When standard output cannot be written, the process ends here: there is nobody left to work for. What cannot be
    /// written to standard error is lost.
    func write(_ bytes: [UInt8]) {
        // The bytes are there during the closure, and each write is of what is left of them.
        unsafe bytes.withUnsafeBytes { bytes in
            var rest = unsafe bytes[...]
            while unsafe !rest.isEmpty {
                let remaining = unsafe UnsafeRawBufferPointer(rebasing: rest)
                let written = unsafe Glibc.write(rawValue, remaining.baseAddress, remaining.count)
                if written >= 0 {
                    unsafe rest = rest.dropFirst(written)
                } else if errno == EAGAIN {
                    // Somebody who shares the stream has made it non-blocking.
                    var descriptor = pollfd(fd: rawValue, events: Int16(POLLOUT), revents: 0)
                    _ = unsafe poll(&descriptor, 1, -1)
                } else if errno != EINTR {
                    return giveUp(errno)
                }
            }
        }
    }

    func write(_ text: String) { write(Array(text.utf8)) }

    private func giveUp(_ code: Int32) {
        guard self == .output else { return }
        KeyTerminal.shared.end()
        if code == EPIPE { _exit(ExitStatus.outputClosed.rawValue) }
        // The C library's text is copied at once.
        let reason = unsafe String(cString: strerror(code))
        StandardStream.error.write("Error: Standard output cannot be written: \(reason).\n")
        _exit(ExitStatus.outputFailed.rawValue)
    }

    /// Writes a value as one line of JSON, with its keys in alphabetical order.
    func writeJSON(_ value: some Encodable) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        encoder.nonConformingFloatEncodingStrategy = .convertToString(
            positiveInfinity: "inf",
            negativeInfinity: "-inf",
            nan: "nan"
        )
        write(Array(try encoder.encode(value)) + [UInt8(ascii: "\n")])
    }
}
