/// What a caller of a pool gets.
enum SandboxPoolGrant: Sendable {
    /// A sandbox, lent.
    case sandbox(Sandbox)
    /// The right to make one.
    case place
}

/// Those who wait for a pool's sandboxes, in the order in which they came. The pool's lock guards all of it.
struct SandboxPoolLine {
    typealias Outcome = Result<SandboxPoolGrant, any Error>
    typealias Continuation = CheckedContinuation<Void, Never>

    /// One who waits. Unchecked, because the compiler does not see the lock.
    ///
    /// What the wait ends with goes through the lock as well, and not through the continuation: of one that is resumed
    /// before its task has suspended, the thread sanitizer does not see that it orders anything (Swift 6.3).
    final class Waiter: @unchecked Sendable {
        fileprivate let number: UInt64
        /// Set when the task has suspended, unless `outcome` came first.
        private var continuation: Continuation?
        /// How the wait has ended, if it has.
        private(set) var outcome: Outcome?

        fileprivate init(number: UInt64) { self.number = number }

        /// The task suspends, unless the wait is over already. Whether it has to.
        func suspend(_ continuation: Continuation) -> Bool {
            if outcome == nil { self.continuation = continuation }
            return outcome == nil
        }

        /// Settles how the wait ends, once. Whom to resume outside of the lock, if the task has suspended.
        func settle(_ outcome: Outcome) -> Resumption {
            self.outcome = outcome
            return Resumption(continuation: continuation)
        }
    }

    /// What is left to do when the lock is free.
    struct Resumption {
        fileprivate let continuation: Continuation?

        func callAsFunction() { continuation?.resume() }
    }

    private var waiters: [UInt64: Waiter] = [:]
    /// The numbers of those who wait lie in here, with gaps where somebody has left.
    private var numbers: Range<UInt64> = 0..<0

    var count: Int { waiters.count }

    mutating func join() -> Waiter {
        let waiter = Waiter(number: numbers.upperBound)
        numbers = numbers.lowerBound..<numbers.upperBound + 1
        waiters[waiter.number] = waiter
        return waiter
    }

    /// Whoever has waited longest, if anybody waits, to be served.
    mutating func next() -> Waiter? {
        while let number = numbers.first {
            numbers = number + 1..<numbers.upperBound
            if let waiter = waiters.removeValue(forKey: number) { return waiter }
        }
        return nil
    }

    /// Ends one's wait, unless it has ended.
    mutating func leave(_ waiter: Waiter, _ error: any Error) -> Resumption? {
        waiters.removeValue(forKey: waiter.number)?.settle(.failure(error))
    }

    mutating func sendAway(_ error: any Error) -> [Resumption] {
        defer { waiters.removeAll() }
        return waiters.values.map { $0.settle(.failure(error)) }
    }
}
