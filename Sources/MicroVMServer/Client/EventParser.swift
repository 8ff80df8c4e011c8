#if Server
/// Takes server-sent events out of pieces of text.
struct EventParser {
    private var line: [UInt8] = []
    private var name = "message"
    private var data: [UInt8] = []

    /// The events that are complete now.
    mutating func parse(_ piece: [UInt8]) -> [(name: String, data: [UInt8])] {
        var events: [(name: String, data: [UInt8])] = []
        for byte in piece {
            guard byte == UInt8(ascii: "\n") else {
                if byte != UInt8(ascii: "\r") { line.append(byte) }
                continue
            }
            defer { line.removeAll(keepingCapacity: true) }
            if line.isEmpty {
                if !data.isEmpty { events.append((name, data)) }
                name = "message"
                data = []
            } else if line.starts(with: "event: ".utf8) {
                name = String(decoding: line.dropFirst(7), as: UTF8.self)
            } else if line.starts(with: "data: ".utf8) {
                if !data.isEmpty { data.append(UInt8(ascii: "\n")) }
                data += line.dropFirst(6)
            }
        }
        return events
    }
}
#endif
