// A guest to be looked at with a debugger.

@c public func sum_of_squares(_ count: Int64) -> Int64 {
    var sum: Int64 = 0
    for number in 1...count {
        sum &+= square(of: number)
    }
    return sum
}

@inline(never)
func square(of number: Int64) -> Int64 {
    let result = number &* number
    return result
}
