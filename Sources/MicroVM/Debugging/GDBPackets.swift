/// What comes from GDB and goes to it, between bytes and packets (GDB manual, E.1 Overview).
struct GDBPackets {
    enum Item: Equatable {
        case packet([UInt8])
        /// Ctrl-C.
        case interrupt
        /// The last packet has not arrived whole.
        case resend
    }

    /// The longest packet that is taken or sent, without its frame.
    static let maximumSize = 0x4000
    /// Everything may be written escaped.
    private static let maximumInput = 2 * maximumSize + 8

    /// Whether every packet is acknowledged.
    var isAcknowledging = true
    /// A slice, of which the beginning goes at no cost.
    private var input: ArraySlice<UInt8> = []
    /// Acknowledgements to be sent.
    private(set) var acknowledgements: [UInt8] = []

    /// Takes bytes as they come. Whether they can be part of the protocol at all.
    mutating func append(_ bytes: some Sequence<UInt8>) -> Bool {
        input += bytes
        return input.count <= Self.maximumInput
    }

    /// What has come next, once it is there as a whole.
    mutating func take() -> Item? {
        while let first = input.first {
            switch first {
            case 0x03:
                input.removeFirst()
                return .interrupt
            case UInt8(ascii: "-"):
                input.removeFirst()
                if isAcknowledging { return .resend }
            case UInt8(ascii: "$"):
                // The mark of the end is always escaped inside.
                guard let end = input.firstIndex(of: UInt8(ascii: "#")), end + 2 < input.endIndex else { return nil }
                let body = input[(input.startIndex + 1)..<end]
                let checksum = Self.hexadecimal(input[end + 1...end + 2])
                let isWhole = checksum == Self.checksum(body)
                let packet = Self.unescape(body)
                input = input[(end + 3)...]
                if isAcknowledging { acknowledgements.append(UInt8(ascii: isWhole ? "+" : "-")) }
                if isWhole { return .packet(packet) }
            default:
                // Acknowledgements, and noise between packets.
                input.removeFirst()
            }
        }
        return nil
    }

    mutating func takeAcknowledgements() -> [UInt8] {
        defer { acknowledgements = [] }
        return acknowledgements
    }

    /// A packet as it is sent.
    static func frame(_ body: [UInt8]) -> [UInt8] {
        let sum = checksum(body[...])
        return [UInt8(ascii: "$")] + body + [UInt8(ascii: "#")] + hexadecimal([sum])
    }

    /// Binary data, in which what means something to the protocol is escaped.
    static func escape(_ bytes: some Sequence<UInt8>) -> [UInt8] {
        var result: [UInt8] = []
        for byte in bytes {
            switch byte {
            case UInt8(ascii: "$"), UInt8(ascii: "#"), UInt8(ascii: "}"), UInt8(ascii: "*"):
                result += [UInt8(ascii: "}"), byte ^ 0x20]
            default: result.append(byte)
            }
        }
        return result
    }

    /// What of some bytes fits into a packet, however much of it has to be escaped.
    static func part(of bytes: [UInt8], from offset: Int, count: Int) -> ArraySlice<UInt8> {
        let start = min(offset, bytes.count)
        return bytes[start..<min(start + min(count, maximumSize / 2 - 16), bytes.count)]
    }

    private static func unescape(_ bytes: ArraySlice<UInt8>) -> [UInt8] {
        guard bytes.contains(UInt8(ascii: "}")) else { return Array(bytes) }
        var result: [UInt8] = []
        var isEscaped = false
        for byte in bytes {
            if isEscaped {
                result.append(byte ^ 0x20)
                isEscaped = false
            } else if byte == UInt8(ascii: "}") {
                isEscaped = true
            } else {
                result.append(byte)
            }
        }
        return result
    }

    private static func checksum(_ bytes: ArraySlice<UInt8>) -> UInt8 { bytes.reduce(0, &+) }

    static func hexadecimal(_ bytes: some Sequence<UInt8>) -> [UInt8] {
        bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }
    }

    private static let digits = Array("0123456789abcdef".utf8)

    /// The byte that two digits stand for.
    private static func hexadecimal(_ digits: ArraySlice<UInt8>) -> UInt8? {
        guard digits.allSatisfy({ hexadecimalDigit($0) != nil }) else { return nil }
        return digits.reduce(0) { $0 << 4 | (hexadecimalDigit($1) ?? 0) }
    }

    static func hexadecimalDigit(_ character: UInt8) -> UInt8? {
        switch character {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): character - UInt8(ascii: "0")
        case UInt8(ascii: "a")...UInt8(ascii: "f"): character - UInt8(ascii: "a") + 10
        case UInt8(ascii: "A")...UInt8(ascii: "F"): character - UInt8(ascii: "A") + 10
        default: nil
        }
    }
}
