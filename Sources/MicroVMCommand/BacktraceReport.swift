import MicroVM

/// A backtrace for people and for programs.
struct BacktraceReport: Encodable {
    /// One function that was under way.
    struct Frame: Encodable {
        var address: String
        /// From the start of the module's image.
        var moduleOffset: String?
        /// The name as the module spells it.
        var name: String?
        /// The name as it was in the source.
        var demangledName: String?
        /// The distance from the function's start.
        var offset: UInt64?

        init(_ frame: GuestBacktrace.Frame) {
            address = frame.address.hexadecimal
            moduleOffset = frame.moduleOffset?.hexadecimal
            name = frame.symbol?.name
            demangledName = frame.symbol?.demangledName
            offset = frame.symbol?.offset
        }
    }

    var frames: [Frame]
    var isTruncated: Bool

    init(_ backtrace: GuestBacktrace) {
        frames = backtrace.frames.map(Frame.init)
        isTruncated = backtrace.isTruncated
    }

    /// A heading, and a line for each frame.
    static func lines(_ backtrace: GuestBacktrace) -> [String] {
        guard !backtrace.frames.isEmpty else { return [] }
        var lines = ["backtrace"]
        for (number, frame) in backtrace.frames.enumerated() {
            lines.append("  \("#\(number)".padded(to: 4)) \(frame.description.printable)")
        }
        if backtrace.isTruncated { lines.append("  …") }
        return lines
    }
}
