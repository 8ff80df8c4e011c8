// Functions of Swift whose names are mangled, one in the other.

struct Ledger {
    var entries: [Int]

    @inline(never) func entry(at index: Int) -> Int { entries[index] }
}

@inline(never) private func sum(of ledger: Ledger, upTo last: Int) -> Int {
    var total = 0
    for index in 0...last { total &+= ledger.entry(at: index) }
    return total
}

/// Reads past the end for a `last` of 3 and more.
@c public func add_entries(_ last: Int) -> Int {
    sum(of: Ledger(entries: [1, 2, 3]), upTo: last) &+ 1
}
