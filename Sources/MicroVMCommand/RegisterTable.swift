import MicroVM

/// The general registers with their names.
struct RegisterTable {
    private let entries: [(name: String, value: UInt64)]

    init(_ registers: GuestRegisters) {
        entries = [
            ("rax", registers.rax), ("rbx", registers.rbx), ("rcx", registers.rcx), ("rdx", registers.rdx),
            ("rsi", registers.rsi), ("rdi", registers.rdi), ("rbp", registers.rbp), ("rsp", registers.rsp),
            ("r8", registers.r8), ("r9", registers.r9), ("r10", registers.r10), ("r11", registers.r11),
            ("r12", registers.r12), ("r13", registers.r13), ("r14", registers.r14), ("r15", registers.r15),
            ("rip", registers.rip), ("rflags", registers.rflags),
        ]
    }

    /// Hexadecimal, as JSON numbers lose the low bits of large ones.
    var byName: [String: String] {
        Dictionary(uniqueKeysWithValues: entries.map { ($0.name, $0.value.hexadecimal) })
    }

    /// Four registers a line.
    var lines: [String] {
        stride(from: 0, to: entries.count, by: 4).map { start in
            entries[start..<min(start + 4, entries.count)].map { entry in
                let digits = String(entry.value, radix: 16)
                return entry.name.padded(to: 6) + " " + String(repeating: "0", count: 16 - digits.count) + digits
            }
            .joined(separator: "  ")
        }
    }
}
