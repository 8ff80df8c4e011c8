import MicroVM

/// A guest fault for people and for programs.
struct FaultReport: Encodable {
    /// A place in the module.
    struct Place: Encodable {
        var name: String
        var offset: UInt64

        init(_ symbol: GuestSymbol) {
            name = symbol.name
            offset = symbol.offset
        }
    }

    var kind: String
    var explanation: String
    var vector: UInt8?
    var errorCode: String?
    var address: String?
    var access: String?
    var port: String?
    var message: String?
    var instructionPointer: String
    var symbol: Place?
    var registers: [String: String]
    var backtrace: BacktraceReport

    init(_ fault: GuestFault) {
        kind = fault.kind.rawValue
        explanation = fault.kind.explanation
        vector = fault.vector
        errorCode = fault.errorCode?.hexadecimal
        address = fault.address?.hexadecimal
        access = fault.access?.rawValue
        port = fault.port.map { UInt64($0).hexadecimal }
        message = fault.message
        instructionPointer = fault.instructionPointer.hexadecimal
        symbol = fault.symbol.map(Place.init)
        registers = RegisterTable(fault.registers).byName
        backtrace = BacktraceReport(fault.backtrace)
    }

    /// The report for standard error: one line that says it all, then the details, the registers and the backtrace.
    static func text(_ fault: GuestFault) -> String {
        let place = GuestPlace.text(fault.symbol, fault.instructionPointer)
        var lines: [String]
        if fault.kind == .abort {
            lines = ["Guest abort: \(fault.message?.printable ?? "")"]
        } else {
            lines = ["Guest fault: \(fault.kind.explanation)" + (fault.message.map { " (\($0.printable))" } ?? "")]
            lines.append("  kind     \(fault.kind.rawValue)")
        }
        lines.append("  at       \(place)")
        if let address = fault.address { lines.append("  address  \(address.hexadecimal)") }
        if let access = fault.access { lines.append("  access   \(access.rawValue)") }
        if let port = fault.port { lines.append("  port     \(UInt64(port).hexadecimal)") }
        if let vector = fault.vector {
            lines.append("  vector   \(vector)" + (fault.errorCode.map { ", error code \($0.hexadecimal)" } ?? ""))
        }
        // An abort is the guest's own decision: where it was is enough.
        if fault.kind != .abort { lines += RegisterTable(fault.registers).lines.map { "  " + $0 } }
        lines += BacktraceReport.lines(fault.backtrace).map { "  " + $0 }
        return lines.joined(separator: "\n") + "\n"
    }
}
