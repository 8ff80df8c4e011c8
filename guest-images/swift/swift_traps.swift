// What Swift stops by itself: each of these ends in an undefined instruction (ud2).

nonisolated(unsafe) private var numbers = [1, 2, 3]

/// Reads past the end of an array when `index` is not 0, 1 or 2.
@c public func element(_ index: Int) -> Int {
    numbers[index]
}

/// Overflows for the largest value.
@c public func successor(_ value: Int) -> Int {
    value + 1
}

@c public func divide(_ dividend: Int, _ divisor: Int) -> Int {
    dividend / divisor
}

@c public func unwrap_nothing(_ value: Int) -> Int {
    let odd: Int? = value % 2 == 1 ? value : nil
    return odd!
}

@c public func fail_precondition(_ value: Int) {
    precondition(value == 42, "not the answer")
}

@c public func stop() {
    fatalError("stopped")
}

@c public func answer() -> Int { 42 }
