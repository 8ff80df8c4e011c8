import GuestTestRunner
import Testing

/// What is kept of a test's output.
struct GuestTestOutputTests {
    private static let kept = GuestTestOutput.headLimit + GuestTestOutput.tailLimit

    /// Bytes that tell where they are.
    private static func bytes(_ range: Range<Int>) -> [UInt8] { range.map { UInt8(ascii: "a") + UInt8($0 % 23) } }

    @Test(arguments: [1, 7, 4096, 20_000, 100_000, 1_000_000], [0, 1, kept - 1, kept, kept + 1, 3 * kept])
    func `the beginning and the end are kept, in whatever pieces it comes`(piece: Int, total: Int) {
        var output = GuestTestOutput()
        var start = 0
        while start < total {
            let end = min(start + piece, total)
            output.append(Self.bytes(start..<end))
            start = end
        }
        #expect(output.byteCount == UInt64(total))
        #expect(output.omittedByteCount == UInt64(max(0, total - Self.kept)))
        let text = String(decoding: Self.bytes(0..<total), as: UTF8.self)
        if total <= Self.kept {
            #expect(output.text == text)
        } else {
            let note = "\n[\(total - Self.kept) bytes left out]\n"
            #expect(
                output.text == text.prefix(GuestTestOutput.headLimit) + note + text.suffix(GuestTestOutput.tailLimit)
            )
        }
    }

    @Test func `lines are few, short and printable`() {
        var output = GuestTestOutput()
        output.append(Array("one\ttwo\u{1b}[2J\n\nlast".utf8))
        #expect(output.lines == ["one\\ttwo\\u{1B}[2J", "", "last"])
        output = GuestTestOutput()
        for number in 0..<5000 { output.append(Array("\(number)\n".utf8)) }
        #expect(output.lines.count == GuestTestOutput.lineLimit + 1)
        #expect(output.lines.first == "0" && output.lines.last == "4999")
        output = GuestTestOutput()
        output.append([UInt8](repeating: UInt8(ascii: "x"), count: 10_000))
        #expect(output.lines.count == 1 && output.lines[0].count < 600)
        output = GuestTestOutput()
        #expect(output.lines == [])
    }
}
