import Glibc

/// A value behind a lock.
///
/// The C library's, because the thread sanitizer knows what it does; of the standard library's `Mutex` it reports races
/// that are none (Swift 6.3).
@safe final class Locked<Value>: @unchecked Sendable {
    /// Initialised in `init`, destroyed in `deinit`; never moves, as the C library demands.
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private var value: Value

    init(_ value: Value) {
        self.value = value
        unsafe mutex = .allocate(capacity: 1)
        unsafe mutex.initialize(to: pthread_mutex_t())
        unsafe pthread_mutex_init(mutex, nil)
    }

    deinit {
        unsafe pthread_mutex_destroy(mutex)
        unsafe mutex.deallocate()
    }

    func withLock<Result, Failure: Error>(_ body: (inout Value) throws(Failure) -> Result) throws(Failure) -> Result {
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        return try body(&value)
    }
}
