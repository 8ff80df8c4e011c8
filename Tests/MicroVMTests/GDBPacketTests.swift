import Testing

@testable import MicroVM

/// Bytes and packets, without a guest.
@Suite struct GDBPacketTests {
    private func items(_ bytes: [UInt8], acknowledging: Bool = true) -> ([GDBPackets.Item], String) {
        var packets = GDBPackets()
        packets.isAcknowledging = acknowledging
        var items: [GDBPackets.Item] = []
        var acknowledgements: [UInt8] = []
        // However the bytes are cut.
        for byte in bytes {
            let isTaken = packets.append([byte])
            #expect(isTaken)
            while let item = packets.take() { items.append(item) }
            acknowledgements += packets.takeAcknowledgements()
        }
        return (items, String(decoding: acknowledgements, as: UTF8.self))
    }

    private func bytes(_ text: String) -> [UInt8] { Array(text.utf8) }

    @Test func `a packet is its body and a sum of it`() {
        #expect(String(decoding: GDBPackets.frame(bytes("OK")), as: UTF8.self) == "$OK#9a")
        #expect(items(bytes("$OK#9a")) == ([.packet(bytes("OK"))], "+"))
        #expect(items(bytes("+$#00+$g#67")) == ([.packet([]), .packet(bytes("g"))], "++"))
    }

    @Test func `a packet that has suffered is asked for again, and not acted upon`() {
        #expect(items(bytes("$OK#9b$g#67")) == ([.packet(bytes("g"))], "-+"))
        #expect(items(bytes("$OK#zz")) == ([], "-"))
        #expect(items(bytes("$OK#9b"), acknowledging: false) == ([], ""))
        #expect(items(bytes("-")) == ([.resend], ""))
        #expect(items(bytes("-"), acknowledging: false) == ([], ""))
    }

    @Test func `an interruption comes between packets, and noise is passed over`() {
        #expect(items([3]) == ([.interrupt], ""))
        #expect(items(bytes("xyz\n") + [3] + bytes("$g#67")) == ([.interrupt, .packet(bytes("g"))], "+"))
        // Inside a packet it is a byte like any other.
        #expect(items(GDBPackets.frame([3])) == ([.packet([3])], "+"))
    }

    @Test func `every byte goes through, escaped where it must be`() {
        let all = (0...255).map { UInt8($0) }
        let escaped = GDBPackets.escape(all)
        #expect(!escaped.contains(UInt8(ascii: "$")) && !escaped.contains(UInt8(ascii: "#")))
        #expect(escaped.count == all.count + 4)
        #expect(items(GDBPackets.frame(escaped)) == ([.packet(all)], "+"))
    }

    @Test func `what cannot be a packet any more is refused before it takes memory`() {
        var packets = GDBPackets()
        var taken = 0
        while packets.append(bytes("$mmmmmmmmmmmmmmm")), taken < 1 << 20 {
            taken += 16
            _ = packets.take()
        }
        #expect(taken < 4 * GDBPackets.maximumSize)
    }

    @Test func `numbers are hexadecimal and have a limit`() {
        func number(_ text: String) -> UInt64? {
            var text = GDBText(bytes(text)[...])
            return text.takeNumber()
        }
        #expect(number("ffffffffffffffff") == .max && number("0") == 0 && number("1G") == 1)
        #expect(number("10000000000000000") == nil && number("") == nil && number("-1") == nil)
        #expect(GDBText.bytes(bytes("00ffxx")[...]) == [0, 255, nil])
        #expect(GDBText.bytes(bytes("0")[...]) == nil && GDBText.bytes(bytes("0g")[...]) == nil)
        #expect(GDBText.bytes(bytes("x0")[...]) == nil)
    }

    @Test func `registers have the places that their description gives them`() {
        #expect(GDBRegisters.all.first { $0.name == "rip" }?.offset == 128)
        #expect(GDBRegisters.all.firstIndex { $0.name == "xmm0" } == 40)
        #expect(GDBRegisters.size == GDBRegisters.all.reduce(0) { $0 + $1.size })
        #expect(GDBRegisters.targetDescription.components(of: "<reg ") == GDBRegisters.all.count)
    }
}

extension String {
    fileprivate func components(of part: String) -> Int { ranges(of: part).count }
}
