import MicroVM

/// How a run of a guest function ended.
enum RunEnding {
    case returned(GuestResult, Duration)
    case fault(GuestFault, Duration)
    /// Ended from outside: by the time limit, or by a signal.
    case ended(ExitStatus, GuestInterruption?, Duration)
    case failed(CommandFailure)

    /// Sorts what a guest call has thrown.
    init(_ error: any Error, after duration: Duration) {
        switch error {
        case let failure as CommandFailure:
            self = .failed(failure)
        case let error as SandboxError:
            if let fault = error.fault {
                self = .fault(fault, duration)
            } else if error.code == .timeLimitExceeded {
                self = .ended(.timeLimit, error.interruption, duration)
            } else if error.code == .taskCancelled || error.code == .killed {
                self = .ended(.interrupted, error.interruption, duration)
            } else {
                self = .failed(CommandFailure(error))
            }
        default:
            self = .failed(CommandFailure(.systemError, "unknown", "\(error)"))
        }
    }
}
