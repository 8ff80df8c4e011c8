/// Moments between two steps of the protocol at which a test may hold a thread still. Builds without
/// SYNCHRONIZATION_POINTS, which all but debug builds are, contain none of it.
enum SynchronizationPoint: Hashable {
    /// A call has begun, and can be found by its number.
    case callBegun
    /// Before RUNNING is set, and after.
    case enteringGuest, enteredGuest
    /// KVM_RUN has returned: before RUNNING is cleared, and after.
    case leavingGuest, leftGuest
    /// Before a host function is begun, and after it has ended.
    case enteringHostFunction, leftHostFunction
    /// A request has been made, and nobody has been kicked or woken for it.
    case requested
    /// How the call ends is settled, and it is not over.
    case decided
}

/// What a test wants done at such moments.
final class SynchronizationPoints: Sendable {
    #if SYNCHRONIZATION_POINTS
    private let actions = Locked<[SynchronizationPoint: @Sendable () -> Void]>([:])

    /// From now on `action` is run by whichever thread gets to `point`; null ends that.
    func set(_ point: SynchronizationPoint, _ action: (@Sendable () -> Void)?) {
        actions.withLock { $0[point] = action }
    }
    #endif

    @inline(__always) func reach(_ point: @autoclosure () -> SynchronizationPoint) {
        #if SYNCHRONIZATION_POINTS
        actions.withLock { $0[point()] }?()
        #endif
    }
}
