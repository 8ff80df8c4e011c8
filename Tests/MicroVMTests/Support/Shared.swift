import Synchronization

@testable import MicroVM

/// A value that closures on several threads share.
final class Shared<Value: Sendable>: Sendable {
    private let storage: Locked<Value?>

    init(_ value: Value?) { storage = Locked(value) }

    var value: Value? {
        get { storage.withLock { $0 } }
        set { storage.withLock { $0 = newValue } }
    }
}

/// Something that has happened or not.
final class Flag: Sendable {
    private let state = Atomic<Bool>(false)

    var isSet: Bool { state.load(ordering: .acquiring) }
    func set() { state.store(true, ordering: .releasing) }
    func clear() { state.store(false, ordering: .releasing) }
}

/// Counts from 1.
final class Counter: Sendable {
    private let count = Atomic<Int>(0)

    var value: Int { count.load(ordering: .acquiring) }
    @discardableResult
    func next() -> Int { count.wrappingAdd(1, ordering: .acquiringAndReleasing).newValue }
}
