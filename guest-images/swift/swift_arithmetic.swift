// Functions over every type of value, from Embedded Swift.

@c public func echo_i8(_ value: Int8) -> Int8 { value }
@c public func echo_i16(_ value: Int16) -> Int16 { value }
@c public func echo_i32(_ value: Int32) -> Int32 { value }
@c public func echo_i64(_ value: Int64) -> Int64 { value }
@c public func echo_u8(_ value: UInt8) -> UInt8 { value }
@c public func echo_u16(_ value: UInt16) -> UInt16 { value }
@c public func echo_u32(_ value: UInt32) -> UInt32 { value }
@c public func echo_u64(_ value: UInt64) -> UInt64 { value }
@c public func echo_f32(_ value: Float) -> Float { value }
@c public func echo_f64(_ value: Double) -> Double { value }
@c public func echo_bool(_ value: Bool) -> Bool { value }

@c public func add(_ left: Int, _ right: Int) -> Int { left &+ right }

/// Traps when the sum does not fit.
@c public func checked_add(_ left: Int, _ right: Int) -> Int { left + right }

@c public func sum_9(
    _ a: Int, _ b: Int, _ c: Int, _ d: Int, _ e: Int, _ f: Int, _ g: Int, _ h: Int, _ i: Int
) -> Int {
    let low = a &+ 2 &* b &+ 3 &* c &+ 4 &* d
    let high = 5 &* e &+ 6 &* f &+ 7 &* g &+ 8 &* h &+ 9 &* i
    return low &+ high
}

@c public func mix(_ a: Int32, _ b: Double, _ c: UInt8, _ d: Float, _ e: Int, _ f: Bool) -> Double {
    Double(a) + 2 * b + 3 * Double(c) + 4 * Double(d) + 5 * Double(e) + (f ? 6 : 0)
}

/// The average of the numbers from 0 up to `count`, by way of an array.
@c public func average(_ count: Int) -> Double {
    let numbers = (0..<count).map { Double($0) }
    return numbers.isEmpty ? 0 : numbers.reduce(0, +) / Double(numbers.count)
}
