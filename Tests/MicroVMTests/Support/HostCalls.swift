@testable import MicroVM

/// Host functions for the guest that makes host calls: those given, and for all other imports ones that do the obvious.
func hostFunctions(_ replacements: HostFunction...) -> [HostFunction] {
    let defaults = [
        HostFunction("host_add") { (left: Int64, right: Int64) -> Int64 in left &+ right },
        HostFunction("host_log") { (_: String) in },
        HostFunction("host_concatenate") { (left: String, right: String) -> String in left + right },
        HostFunction("host_fill") { (context: HostCallContext, buffer: GuestBuffer) -> Int64 in
            let bytes = (0..<buffer.count).map { UInt8(truncatingIfNeeded: $0) }
            try context.memory.store(bytes, to: buffer)
            return Int64(bytes.count)
        },
        HostFunction("host_tick") { () in },
        HostFunction("host_scale") { (value: Double, factor: Float) -> Double in value * Double(factor) },
        HostFunction("host_sum_of_nine") {
            (a: Int, b: Int, c: Int, d: Int, e: Int, f: Int, g: Int, h: Int, i: Int) -> Int in
            let low = a + 2 * b + 3 * c + 4 * d
            let high = 5 * e + 6 * f + 7 * g + 8 * h + 9 * i
            return low + high
        },
        HostFunction("host_mix") {
            (_: Int8, _: Float, _: UInt16, _: Double, _: Bool, _: Int64, _: UInt8, _: Int32, _: Int64, _: Int16)
                -> Double in 0
        },
        HostFunction("host_negate_i8") { (value: Int8) -> Int8 in 0 &- value },
        HostFunction("host_not") { (value: Bool) -> Bool in !value },
        HostFunction("host_pointer") { (_: UInt64, _: UInt64) -> UInt64 in 0 },
        HostFunction("host_descend") { (_: Int64) -> Int64 in 0 },
    ]
    let names = Set(replacements.map(\.name))
    return replacements + defaults.filter { !names.contains($0.name) }
}
