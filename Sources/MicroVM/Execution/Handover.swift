/// Suspends the task until another thread hands a value over.
///
/// The value goes through a lock, and not through the continuation: of one that is resumed before its task has
/// suspended, the thread sanitizer does not see that it orders anything, and reports races that are none (Swift 6.3).
///
/// - Parameter begin: has the other thread call what it is given, once.
func handedOver<Value: Sendable>(
    _ begin: (_ handOver: @escaping @Sendable (Value) -> Void) -> Void
) async -> Value {
    let place = Locked<Value?>(nil)
    await withCheckedContinuation { continuation in
        begin { value in
            place.withLock { $0 = value }
            continuation.resume()
        }
    }
    // Cannot be nil: the value was there before the task was resumed.
    guard let value = place.withLock({ $0 }) else { preconditionFailure("resumed without a value") }
    return value
}
