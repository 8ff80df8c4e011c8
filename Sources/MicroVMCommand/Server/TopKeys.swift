#if Server
/// What keys do in `microvm top`.
struct TopKeys {
    /// What is to be done beyond the screen.
    enum Action: Equatable, Sendable {
        case kill(UInt64)
        case stop(UInt64)
        case resume(UInt64)
        case quit
    }

    /// The beginning of an escape sequence, as of arrows.
    private var escape: [UInt8] = []

    /// Takes keys, which change the screen or ask for something.
    mutating func actions(_ bytes: [UInt8], _ screen: inout TopScreen) -> [Action] {
        var actions: [Action] = []
        for byte in bytes {
            if !escape.isEmpty {
                escape.append(byte)
                if escape.count == 2, byte == UInt8(ascii: "[") || byte == UInt8(ascii: "O") { continue }
                switch byte {
                case UInt8(ascii: "A"): screen.moveSelection(by: -1)
                case UInt8(ascii: "B"): screen.moveSelection(by: 1)
                default: break
                }
                escape = []
                continue
            }
            if let action = action(byte, &screen) { actions.append(action) }
        }
        // Nothing came behind it: it was the key Esc itself.
        if escape == [0x1b] {
            escape = []
            screen.prompt = .none
        }
        return actions
    }

    private mutating func action(_ byte: UInt8, _ screen: inout TopScreen) -> Action? {
        if byte == 0x1b {
            escape = [byte]
            return nil
        }
        switch screen.prompt {
        case .filter(let text):
            edit(text, byte, &screen)
            return nil
        case .kill(let id):
            screen.prompt = .none
            return byte == UInt8(ascii: "y") || byte == UInt8(ascii: "Y") ? .kill(id) : nil
        case .none:
            screen.message = nil
            return command(byte, &screen)
        }
    }

    private func edit(_ text: String, _ byte: UInt8, _ screen: inout TopScreen) {
        switch byte {
        case 0x0d, 0x0a:
            screen.prompt = .none
            screen.filter = text
            screen.keepSelection(at: 0)
        case 0x7f, 0x08: screen.prompt = .filter(String(text.dropLast()))
        case 0x15: screen.prompt = .filter("")
        case 0x20..<0x7f where text.count < 64:
            screen.prompt = .filter(text + String(UnicodeScalar(byte)))
        default: break
        }
    }

    private func command(_ byte: UInt8, _ screen: inout TopScreen) -> Action? {
        switch byte {
        case UInt8(ascii: "q"): return .quit
        case UInt8(ascii: "n"): screen.moveSelection(by: 1)
        case UInt8(ascii: "p"): screen.moveSelection(by: -1)
        case UInt8(ascii: "o"): screen.order = screen.order.next
        case UInt8(ascii: "f"), UInt8(ascii: "/"): screen.prompt = .filter(screen.filter)
        case UInt8(ascii: "k"): if let id = screen.selection { screen.prompt = .kill(id) }
        case UInt8(ascii: "s"): return screen.selection.map { .stop($0) }
        case UInt8(ascii: "c"): return screen.selection.map { .resume($0) }
        default: break
        }
        return nil
    }
}
#endif
