#if Server
import MicroVM
import MicroVMServer
import MicroVMSupervisor

/// Calls as people read them.
enum CallText {
    static func table(_ calls: [API.CallLine]) -> String {
        guard !calls.isEmpty else { return "No calls.\n" }
        var rows = [["CALL", "STATE", "MODULE", "FUNCTION", "AGE", "CPU", "OUTPUT", "LABELS", "WHERE"]]
        for call in calls {
            let cpuTime = (call.statistics ?? call.sample?.statistics)?.cpuTimeMicroseconds
            rows.append([
                "\(call.id)", state(call.state, call.outcome), call.module.printable, call.function.printable,
                time(call.elapsedMicroseconds ?? call.queuedMicroseconds), cpuTime.map(time) ?? "-",
                bytes(call.outputBytes),
                call.labels.sorted { $0.key < $1.key }.map { "\($0)=\($1)".printable }.joined(separator: ","),
                (call.sample?.hostFunction ?? call.sample?.place)?.printable ?? "-",
            ])
        }
        return TextTable.lines(rows).joined(separator: "\n") + "\n"
    }

    /// How a call is, or how it ended.
    static func state(_ state: String, _ outcome: API.Outcome?) -> String {
        guard let outcome else { return state }
        let detail = outcome.fault?.kind ?? outcome.limit ?? outcome.killedBy ?? outcome.error?.code
        return detail.map { "\(outcome.kind):\($0)".printable } ?? outcome.kind.printable
    }

    static func time(_ microseconds: Double) -> String {
        switch microseconds {
        case ..<1000: "\(microseconds.decimal(places: 0))µs"
        case ..<1_000_000: "\((microseconds / 1e3).decimal(places: 1))ms"
        case ..<60_000_000: "\((microseconds / 1e6).decimal(places: 1))s"
        case ..<3_600_000_000: "\((microseconds / 60e6).decimal(places: 1))min"
        default: "\((microseconds / 3600e6).decimal(places: 1))h"
        }
    }

    static func bytes(_ count: UInt64) -> String {
        for (unit, size) in [("G", UInt64(1) << 30), ("M", 1 << 20), ("K", 1 << 10)] where count >= size {
            return "\((Double(count) / Double(size)).decimal(places: 1))\(unit)"
        }
        return "\(count)"
    }

    /// A value as `microvm run` writes it.
    static func value(_ value: API.Value) -> [UInt8] {
        func line(_ value: some CustomStringConvertible) -> [UInt8] { Array("\(value)\n".utf8) }
        return switch value.value {
        case .i8(let value): line(value)
        case .u8(let value): line(value)
        case .i16(let value): line(value)
        case .u16(let value): line(value)
        case .i32(let value): line(value)
        case .u32(let value): line(value)
        case .i64(let value): line(value)
        case .u64(let value): line(value)
        case .f32(let value): line(value)
        case .f64(let value): line(value)
        case .bool(let value): line(value)
        case .string(let value): line(value)
        case .bytes(let bytes): bytes
        case .void: []
        }
    }

    /// How a call ended that has not returned, with where it was.
    static func ending(_ call: API.Call) -> String {
        guard let outcome = call.outcome else { return "Call \(call.id) is \(call.state).\n" }
        var lines = ["Call \(call.id) \(state(call.state, call.outcome))"]
        if let message = outcome.fault?.message ?? outcome.error?.message { lines[0] += ": \(message.printable)" }
        if let address = outcome.fault?.address { lines[0] += " at \(address.printable)" }
        if let place = outcome.place {
            if let symbol = place.symbol { lines[0] += ", in \(symbol.demangledName.printable)" }
            lines += Self.lines(place).map { "  " + $0 }
        }
        return lines.joined(separator: "\n") + "\n"
    }

    /// Registers and backtrace.
    static func lines(_ place: API.Place) -> [String] {
        var lines: [String] = []
        if let function = place.hostFunction { lines.append("in the host function \(function.printable)") }
        let names = [
            "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
            "r15", "rip", "rflags",
        ]
        for start in stride(from: 0, to: names.count, by: 3) {
            lines.append(
                names[start..<min(start + 3, names.count)].map { name in
                    name.padded(to: 7) + (place.registers[name] ?? "?").printable.padded(to: 18)
                }
                .joined(separator: " ")
            )
        }
        if !place.backtrace.isEmpty { lines.append("backtrace") }
        for (number, frame) in place.backtrace.enumerated() {
            lines.append("  #\(number) \(frame.text.printable)")
        }
        if place.backtraceIsTruncated { lines.append("  …") }
        return lines
    }

    static func inspection(_ inspection: API.Inspection) -> String {
        let statistics = inspection.statistics
        let rows = [
            ["call", "\(inspection.call.id)"],
            ["state", state(inspection.call.state, inspection.call.outcome)],
            ["function", "\(inspection.call.module.printable) \(inspection.call.function.printable)"],
            ["duration", time(statistics.durationMicroseconds)],
            ["stopped", time(statistics.stoppedMicroseconds)],
            ["CPU time", statistics.cpuTimeMicroseconds.map(time) ?? "-"],
            ["exits", "\(statistics.exits)"],
            ["host calls", "\(statistics.hostCalls)"],
            ["memory", inspection.memoryBytes.map(bytes) ?? "-"],
            ["output", bytes(inspection.call.outputBytes)],
        ]
        return (TextTable.lines(rows) + lines(inspection.place)).joined(separator: "\n") + "\n"
    }
}
#endif
