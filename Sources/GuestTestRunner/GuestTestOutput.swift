import MicroVM

/// What a test has written, of which the beginning and the end are kept: a guest can write for as long as it runs.
package struct GuestTestOutput: Sendable {
    /// The most bytes that are kept of the beginning, and of the end.
    package static let headLimit = 16 << 10
    package static let tailLimit = 48 << 10

    private var head: [UInt8] = []
    /// Up to twice what is kept of it, so that it need not be cut at each write.
    private var tail: [UInt8] = []
    /// All that was written.
    package private(set) var byteCount: UInt64 = 0

    package init() {}

    package var isEmpty: Bool { byteCount == 0 }

    /// How many bytes are kept.
    package var keptByteCount: Int { head.count + min(tail.count, Self.tailLimit) }

    /// How many bytes between the beginning and the end are lost.
    package var omittedByteCount: UInt64 { byteCount - UInt64(keptByteCount) }

    package mutating func append(_ bytes: [UInt8]) {
        byteCount += UInt64(bytes.count)
        let room = Self.headLimit - head.count
        head += bytes.prefix(room)
        guard bytes.count > room else { return }
        tail += bytes.dropFirst(room).suffix(Self.tailLimit)
        if tail.count > 2 * Self.tailLimit { tail.removeFirst(tail.count - Self.tailLimit) }
    }

    /// The output as it came, with what is not UTF-8 replaced, and a note where something is left out.
    package var text: String {
        let end = tail.suffix(Self.tailLimit)
        guard omittedByteCount > 0 else { return String(decoding: head + end, as: UTF8.self) }
        return String(decoding: head, as: UTF8.self) + "\n[\(omittedByteCount) bytes left out]\n"
            + String(decoding: end, as: UTF8.self)
    }

    /// The most lines of ``lines``, and the most characters of each.
    package static let lineLimit = 100
    package static let lineLengthLimit = 500

    /// The same line by line, fit for a terminal and for the eye: of many lines the beginning and the end, of long ones
    /// the beginning.
    package var lines: [String] {
        guard !isEmpty else { return [] }
        var lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        if lines.last == "" { lines.removeLast() }
        let omitted = lines.count - Self.lineLimit
        guard omitted > 0 else { return lines.map(Self.shown) }
        let head = Self.lineLimit / 4
        return lines.prefix(head).map(Self.shown) + ["[\(omitted) lines left out]"]
            + lines.suffix(Self.lineLimit - head).map(Self.shown)
    }

    private static func shown(_ line: Substring) -> String {
        let text = String(line).printable
        // In scalars: a character can be as long as a guest likes.
        let length = text.unicodeScalars.count
        guard length > lineLengthLimit else { return text }
        return String(String.UnicodeScalarView(text.unicodeScalars.prefix(lineLengthLimit)))
            + "… [\(length - lineLengthLimit) characters left out]"
    }
}
