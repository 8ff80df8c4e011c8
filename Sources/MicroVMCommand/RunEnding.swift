import MicroVM

/// How a run of a guest function ended.
enum RunEnding {
    case returned(GuestResult, Duration)
    case fault(GuestFault, Duration, CoreDumpReport?)
    case ended(Cause, GuestInterruption?, Duration, CoreDumpReport?)
    case failed(CommandFailure)

    /// What a run was ended by from outside.
    enum Cause {
        case timeLimit, cpuTimeLimit
        /// A signal.
        case interruption
        /// A key.
        case kill
    }

    /// Sorts what a guest call has thrown.
    ///
    /// - Parameter isKilled: whether it was a key that asked for the end of the task that made the call.
    init(_ error: any Error, after duration: Duration, isKilled: Bool) {
        switch error {
        case let failure as CommandFailure:
            self = .failed(failure)
        case let error as SandboxError:
            let coreDump = CoreDumpReport(error)
            if let fault = error.fault {
                self = .fault(fault, duration, coreDump)
            } else if error.code == .timeLimitExceeded {
                self = .ended(.timeLimit, error.interruption, duration, coreDump)
            } else if error.code == .cpuTimeLimitExceeded {
                self = .ended(.cpuTimeLimit, error.interruption, duration, coreDump)
            } else if error.code == .taskCancelled || error.code == .killed {
                let cause = error.code == .killed || isKilled ? Cause.kill : .interruption
                self = .ended(cause, error.interruption, duration, coreDump)
            } else {
                self = .failed(CommandFailure(error))
            }
        default:
            self = .failed(CommandFailure(.systemError, "unknown", "\(error)"))
        }
    }
}
