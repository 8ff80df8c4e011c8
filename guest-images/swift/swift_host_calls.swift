// Calls from Embedded Swift to the host.

import MicroVMGuest

@_extern(c, "host_add") private func hostAdd(_ left: Int, _ right: Int) -> Int
@_extern(c, "host_log") private func hostLog(_ text: UnsafePointer<UInt8>, _ length: Int)
@_extern(c, "host_scale") private func hostScale(_ value: Double, _ factor: Float) -> Double

@c public func call_add(_ left: Int, _ right: Int) -> Int {
    hostAdd(left, right)
}

/// Calls `host_add` for every number below `count`.
@c public func add_in_a_loop(_ count: Int) -> Int {
    (0..<count).reduce(0) { hostAdd($0, $1) }
}

@c public func call_scale(_ value: Double, _ factor: Float) -> Double {
    hostScale(value, factor)
}

/// Logs a text made here.
@c public func log_number(_ value: Int) {
    var text = "the number is \(value)"
    text.withUTF8 { hostLog($0.baseAddress!, $0.count) }
}

/// Ends the call with a message of its own.
@c public func give_up(_ value: Int) {
    var text = "gave up at \(value)"
    text.withUTF8 { microvm_abort($0.baseAddress, $0.count) }
}

@c public func real_time() -> UInt64 {
    microvm_clock(Int32(MICROVM_CLOCK_REALTIME))
}
