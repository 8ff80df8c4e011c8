import BenchmarkThreads
import MicroVM
import SystemPackage

/// The thread that ends guest calls, the same one as plain C's.
///
/// Give orders from one thread at a time, and end each with ``finish()``.
@safe
final class Killer: Sendable {
    // Never changes, and whatever is behind it is handed from thread to thread by semaphores.
    private nonisolated(unsafe) let killer: OpaquePointer

    init() throws(Errno) {
        var killer: OpaquePointer?
        // The result is set when the call succeeds.
        try check(unsafe killer_create(&killer))
        unsafe self.killer = killer!
    }

    deinit {
        unsafe killer_destroy(killer)
    }

    /// Asks for the call under way in a millisecond to be ended.
    func order(_ handle: LinuxInterruptHandle) {
        unsafe killer_order(killer, kill, Unmanaged.passRetained(handle).toOpaque())
    }

    /// Waits until the kill is over; when it began, in nanoseconds, or nil where it found no guest running.
    func finish() -> UInt64? {
        let began = unsafe killer_finish(killer)
        return began == 0 ? nil : began
    }
}

// A file-scope function, because a closure could be isolated to whoever wrote it.
private func kill(_ context: UnsafeMutableRawPointer?) -> kill_outcome {
    // The reference that `order` retained, given back with the last attempt.
    guard let context = unsafe context else { return KILL_OUTSIDE_GUEST }
    let handle = unsafe Unmanaged<LinuxInterruptHandle>.fromOpaque(context)
    let outcome = unsafe handle.takeUnretainedValue().kill()
    if outcome == .notRunning { return KILL_TOO_EARLY }
    unsafe handle.release()
    return outcome == .signalled ? KILL_IN_GUEST : KILL_OUTSIDE_GUEST
}
