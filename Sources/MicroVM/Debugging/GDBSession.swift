import Glibc
import LinuxKVM

/// One GDB that is attached to a sandbox: what it asks, and what it is answered (GDB manual, appendix E, GDB Remote
/// Serial Protocol). Used by the server's thread alone.
struct GDBSession {
    private let guest: DebuggedSandbox
    private let symbols: DebugSymbols
    private var isWaiting = false
    private var tellsBreakpoints = false
    /// What is to be sent: the bodies of packets.
    private(set) var output: [[UInt8]] = []
    /// Whether packets are acknowledged from the next one on.
    private(set) var isAcknowledging = true
    /// Whether the client is leaving, or has been told that there is nothing left.
    private(set) var isOver = false
    private var isGuestGone = false
    private var files: GDBFiles

    /// The only thread there is.
    private static let thread = "1"

    init(_ guest: DebuggedSandbox) {
        self.guest = guest
        symbols = guest.symbols
        files = GDBFiles(symbols)
    }

    mutating func takeOutput() -> [[UInt8]] {
        defer { output = [] }
        return output
    }

    private mutating func send(_ text: String) { output.append(Array(text.utf8)) }

    // MARK: - What happens

    /// Ctrl-C.
    mutating func interrupt() { guest.interrupt() }

    /// Tells the client what has happened, as far as it waits for that.
    mutating func tell(_ news: [Debugger.News]) {
        for item in news {
            switch item {
            case .held(let event):
                guard isWaiting else { continue }
                isWaiting = false
                tellConsole(about: event)
                send(stopReply(event))
            case .callEnded(let text):
                if isWaiting { console("[The guest call has ended: \(text)]\n") }
            case .closed:
                isGuestGone = true
                if isWaiting { tellEnd() }
            }
        }
    }

    /// The sandbox has gone: to the client, a process that has ended.
    private mutating func tellEnd() {
        send("W00")
        isOver = true
    }

    private mutating func console(_ text: String) {
        send("O" + Self.hexadecimal(Array(text.utf8).prefix(GDBPackets.maximumSize / 2 - 8)))
    }

    private mutating func tellConsole(about event: Debugger.Event) {
        switch event {
        case .fault(let fault): console("[\(fault.description)]\n")
        case .interrupted:
            if let place = guest.place, place.hostFunction != nil || !place.isInCall { console("[\(place.text)]\n") }
        case .breakpoint, .step, .watchpoint: break
        }
    }

    private func stopReply(_ event: Debugger.Event) -> String {
        var reply = "T" + Self.hexadecimal([event.signal]) + "thread:\(Self.thread);"
        switch event {
        case .breakpoint where tellsBreakpoints: reply += "swbreak:;"
        case .watchpoint(let address): reply += "watch:\(String(address, radix: 16));"
        default: break
        }
        return reply
    }

    // MARK: - Packets

    mutating func handle(_ packet: [UInt8]) {
        var text = GDBText(packet.dropFirst())
        switch packet.first {
        case UInt8(ascii: "?"): answerHalted()
        case UInt8(ascii: "g"): answerRegisters()
        case UInt8(ascii: "G"): setRegisters(text)
        case UInt8(ascii: "p"): answerRegister(&text)
        case UInt8(ascii: "P"): setRegister(&text)
        case UInt8(ascii: "m"): answerMemory(&text)
        case UInt8(ascii: "M"): setMemory(&text) { text in GDBText.bytes(text.rest)?.compactMap(\.self) }
        case UInt8(ascii: "X"): setMemory(&text) { text in Array(text.rest) }
        case UInt8(ascii: "c"), UInt8(ascii: "C"), UInt8(ascii: "s"), UInt8(ascii: "S"): resume(GDBText(packet[...]))
        case UInt8(ascii: "Z"): setPoint(&text, isSet: true)
        case UInt8(ascii: "z"): setPoint(&text, isSet: false)
        case UInt8(ascii: "H"), UInt8(ascii: "T"): send("OK")
        case UInt8(ascii: "D"):
            send("OK")
            isOver = true
        case UInt8(ascii: "k"):
            guest.kill()
            isOver = true
        case UInt8(ascii: "v"): handleNamed(&text)
        case UInt8(ascii: "q"): answerQuery(&text)
        case UInt8(ascii: "Q"):
            guard text.take("StartNoAckMode") else { return unknown() }
            send("OK")
            isAcknowledging = false
        default: unknown()
        }
    }

    /// What the protocol answers to everything it does not know.
    private mutating func unknown() { send("") }

    private mutating func fail(_ message: String? = nil) { send(message.map { "E.\($0)" } ?? "E01") }

    private mutating func answerHalted() {
        guard let event = guest.debugger.event else {
            // It will be soon.
            isWaiting = true
            return
        }
        send(stopReply(event))
    }

    private mutating func handleNamed(_ text: inout GDBText) {
        if text.take("Cont?") {
            send("vCont;c;C;s;S;r")
        } else if text.take("Cont;") {
            // There is one thread: the first action is the one for it.
            resume(GDBText(text.take(until: ";")))
        } else if text.take("Kill;") {
            send("OK")
            guest.kill()
            isOver = true
        } else if text.take("File:") {
            if let answer = files.answer(&text) { output.append(answer) } else { unknown() }
        } else {
            unknown()
        }
    }

    private mutating func answerQuery(_ text: inout GDBText) {
        if text.take("Supported") {
            tellsBreakpoints = text.rest.split(separator: UInt8(ascii: ";")).contains {
                $0.elementsEqual("swbreak+".utf8)
            }
            send(
                """
                PacketSize=\(String(GDBPackets.maximumSize, radix: 16));QStartNoAckMode+;qXfer:features:read+;\
                qXfer:libraries-svr4:read+;qXfer:exec-file:read+;qXfer:siginfo:read+;swbreak+;vContSupported+
                """
            )
        } else if text.take("Xfer:features:read:target.xml:") {
            answerPart(&text, of: Array(GDBRegisters.targetDescription.utf8))
        } else if text.take("Xfer:libraries-svr4:read:") {
            _ = text.take(until: ":")
            guard text.take(":") else { return fail() }
            answerPart(&text, of: Array(symbols.libraryList.utf8))
        } else if text.take("Xfer:exec-file:read:") {
            _ = text.take(until: ":")
            guard text.take(":") else { return fail() }
            answerPart(&text, of: Array("/\(DebugSymbols.libraryName)".utf8))
        } else if text.take("Xfer:siginfo:read::") {
            guard case .fault(let fault) = guest.debugger.event else { return fail() }
            answerPart(&text, of: fault.signal.bytes)
        } else if text.take("Attached") {
            send("1")
        } else if text.take("fThreadInfo") {
            send("m\(Self.thread)")
        } else if text.take("sThreadInfo") {
            send("l")
        } else if text.take("ThreadExtraInfo,") {
            send(Self.hexadecimal(Array((guest.place?.text ?? "").utf8)))
        } else if text.take("Rcmd,") {
            answerMonitor(text)
        } else if text.take("C"), text.isAtEnd {
            send("QC\(Self.thread)")
        } else {
            unknown()
        }
    }

    /// A part of a document, from an offset on and no longer than a length.
    private mutating func answerPart(_ text: inout GDBText, of document: [UInt8]) {
        guard let offset = text.takeCount(), text.take(","), let count = text.takeCount() else { return fail() }
        let part = GDBPackets.part(of: document, from: offset, count: count)
        let isLast = offset + part.count >= document.count
        output.append([UInt8(ascii: isLast ? "l" : "m")] + GDBPackets.escape(part))
    }

    // MARK: - Registers

    private mutating func answerRegisters() {
        guard let registers = try? guest.registers() else { return fail("The registers are not to be had.") }
        send(Self.hexadecimal(GDBRegisters.bytes(registers)))
    }

    private mutating func answerRegister(_ text: inout GDBText) {
        guard let number = text.takeCount(), number < GDBRegisters.all.count,
            let registers = try? guest.registers()
        else { return fail() }
        let register = GDBRegisters.all[number]
        send(Self.hexadecimal(Array(GDBRegisters.bytes(registers)[register.offset..<register.offset + register.size])))
    }

    private mutating func setRegisters(_ text: GDBText) {
        guard let bytes = GDBText.bytes(text.rest), bytes.count <= GDBRegisters.size else { return fail() }
        change(0..<bytes.count, to: bytes)
    }

    private mutating func setRegister(_ text: inout GDBText) {
        guard let number = text.takeCount(), number < GDBRegisters.all.count, text.take("="),
            let bytes = GDBText.bytes(text.rest), bytes.count == GDBRegisters.all[number].size
        else { return fail() }
        let offset = GDBRegisters.all[number].offset
        change(offset..<offset + bytes.count, to: bytes)
    }

    private mutating func change(_ range: Range<Int>, to bytes: [UInt8?]) {
        do {
            try guest.setRegisters(range, to: bytes)
            send("OK")
        } catch {
            fail("The guest cannot have these registers.")
        }
    }

    // MARK: - Memory

    private mutating func answerMemory(_ text: inout GDBText) {
        guard let address = text.takeNumber(), text.take(","), let count = text.takeCount() else { return fail() }
        let bytes = (try? guest.memory(at: address, count: min(count, GDBPackets.maximumSize / 2))) ?? []
        if bytes.isEmpty, count > 0 { return fail() }
        send(Self.hexadecimal(bytes))
    }

    private mutating func setMemory(_ text: inout GDBText, _ decode: (GDBText) -> [UInt8]?) {
        guard let address = text.takeNumber(), text.take(","), let count = text.takeCount(), text.take(":"),
            let bytes = decode(text), bytes.count == count,
            count == 0 || (try? guest.setMemory(at: address, to: bytes)) == true
        else { return fail() }
        send("OK")
    }

    // MARK: - Going on

    private mutating func resume(_ text: GDBText) {
        var text = text
        var step: Debugger.Step?
        var delivers = false
        if text.take("C") || text.take("c") {
            delivers = (text.takeNumber() ?? 0) != 0
        } else if text.take("S") || text.take("s") {
            delivers = (text.takeNumber() ?? 0) != 0
            step = .instruction
        } else if text.take("r"), let start = text.takeNumber(), text.take(","), let end = text.takeNumber(),
            start <= end
        {
            step = .range(start..<end)
        } else {
            return fail()
        }
        if isGuestGone { return tellEnd() }
        isWaiting = true
        guest.debugger.resume(step, forgettingFault: !delivers)
    }

    /// Breakpoints of both kinds are instructions in memory, and watchpoints a comparison after each step: the
    /// hypervisor's debug registers are not to be relied on.
    private mutating func setPoint(_ text: inout GDBText, isSet: Bool) {
        guard let kind = text.takeNumber(), text.take(","), let address = text.takeNumber(), text.take(","),
            let size = text.takeCount()
        else { return fail() }
        switch kind {
        case 0, 1:
            guard !isSet || guest.canBreak(at: address) else { return fail() }
            guest.debugger.change { plan in
                if isSet { plan.breakpoints.insert(address) } else { plan.breakpoints.remove(address) }
            }
            send("OK")
        case 2:
            let (end, overflow) = address.addingReportingOverflow(UInt64(size))
            guard !overflow, (1...Self.longestWatchpoint).contains(size) else {
                return fail("At most \(Self.longestWatchpoint) bytes can be watched, after each instruction.")
            }
            guard !isSet || (try? guest.memory(at: address, count: size).count) == size else { return fail() }
            let range = address..<end
            guest.debugger.change { plan in
                plan.watchpoints.removeAll { $0 == range }
                if isSet, plan.watchpoints.count < Self.mostWatchpoints { plan.watchpoints.append(range) }
            }
            send("OK")
        case 3, 4:
            fail("Reads cannot be watched: only what changes is found, after each instruction.")
        default: unknown()
        }
    }

    private static let longestWatchpoint = 64
    private static let mostWatchpoints = 16

    // MARK: - Commands of ours

    private mutating func answerMonitor(_ text: GDBText) {
        let command = String(decoding: (GDBText.bytes(text.rest) ?? []).compactMap(\.self), as: UTF8.self)
        let answer: String
        switch command.split(separator: " ").first.map(String.init) {
        case "info": answer = guest.report
        case "kill":
            guest.kill()
            answer = "The call under way, if there is one, ends as killed.\n"
        default:
            answer = """
                monitor info   what the sandbox is doing, and what the call has cost
                monitor kill   end the call under way, and stay attached
                """ + "\n"
        }
        send(Self.hexadecimal(Array(answer.utf8)))
    }

    // MARK: - Text

    private static func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
        String(decoding: GDBPackets.hexadecimal(bytes), as: UTF8.self)
    }

    private static func hexadecimal(_ bytes: [UInt8?]) -> String {
        bytes.map { byte in byte.map { hexadecimal([$0]) } ?? "xx" }.joined()
    }
}

extension Debugger.Event {
    /// GDB's own numbers, which are nobody else's (gdb/signals.def is where it takes them from).
    fileprivate var signal: UInt8 {
        switch self {
        case .interrupted: 2
        case .breakpoint, .step, .watchpoint: 5
        case .fault(let fault):
            switch fault.signal.number {
            case SIGBUS: 10
            case SIGSYS: 12
            case let number: UInt8(truncatingIfNeeded: number)
            }
        }
    }
}
