import MicroVM

/// A check in a test guest that did not hold.
package struct GuestCheckFailure: Sendable, Hashable {
    /// The most bytes of each text that are kept.
    static let longestText = 1024

    /// The guest's source file, as its compiler was given it.
    package var file: String
    package var line: Int
    /// The check, and the values.
    package var message: String

    /// `file:line: message`.
    package var description: String { "\(file):\(line): \(message)" }
}

/// Why a test has failed, apart from its checks.
package struct GuestTestFailure: Error, Sendable {
    /// The ways to fail; the raw values are the types in JUnit reports.
    package enum Kind: String, Sendable {
        case check, result, fault, abort, timeLimit, cpuTimeLimit
        /// The fault is not the guest's.
        case error
    }

    /// The most characters of a message that are kept, in Unicode scalars.
    static let longestMessage = 4096
    /// The most frames of a backtrace that are kept.
    static let longestBacktrace = 32

    package var kind: Kind
    /// One sentence; it may contain anything that a guest has said.
    package var message: String
    /// Where the guest was, the innermost function first.
    package var backtrace: [String] = []

    /// Sorts what a guest call, or the making of a sandbox, has thrown; nothing for a cancelled task.
    init?(_ error: any Error) {
        guard let error = error as? SandboxError else {
            (kind, message) = (.error, "\(error)")
            return
        }
        if let fault = error.fault {
            kind = fault.kind == .abort ? .abort : .fault
            message = fault.description.shortened(to: Self.longestMessage)
            backtrace = Self.lines(fault.backtrace)
        } else if error.code == .timeLimitExceeded || error.code == .cpuTimeLimitExceeded {
            kind = error.code == .timeLimitExceeded ? .timeLimit : .cpuTimeLimit
            message = error.message
            backtrace = error.interruption.map { Self.lines($0.backtrace) } ?? []
        } else if error.code == .taskCancelled {
            return nil
        } else {
            (kind, message) = (.error, error.description.shortened(to: Self.longestMessage))
        }
    }

    init(_ kind: Kind, _ message: String) { (self.kind, self.message) = (kind, message) }

    /// One line for each frame, and no more of them than somebody would read.
    private static func lines(_ backtrace: GuestBacktrace) -> [String] {
        let frames = backtrace.frames
        let lines = frames.prefix(Self.longestBacktrace).map {
            $0.description.shortened(to: GuestCheckFailure.longestText)
        }
        return lines + (frames.count > lines.count || backtrace.isTruncated ? ["…"] : [])
    }
}

/// How one run of a test ended.
package struct GuestTestResult: Sendable {
    package enum Outcome: Sendable {
        case passed
        /// With the reason.
        case skipped(String)
        case failed(GuestTestFailure)
        /// The module could not be made ready: no test of it can run.
        case setUpFailed(GuestTestFailure)
        /// The task that ran it was cancelled.
        case interrupted
    }

    package var outcome: Outcome
    /// The checks that failed, in their order; the first hundred of them.
    package var checks: [GuestCheckFailure] = []
    /// How many checks failed beyond those.
    package var omittedCheckCount = 0
    package var output = GuestTestOutput()
    package var duration: Duration = .zero
    package var cpuTime: Duration?

    package init(outcome: Outcome) { self.outcome = outcome }

    /// How much of what the guest has said is kept, in bytes.
    package var keptByteCount: Int {
        output.keptByteCount
            + checks.reduce(failure?.message.utf8.count ?? 0) {
                $0 + $1.file.utf8.count + $1.message.utf8.count
            }
    }

    /// Forgets what the guest has said, but for the beginning of what it failed by.
    package mutating func dropDetails() {
        output = GuestTestOutput()
        omittedCheckCount += checks.count
        checks = []
        guard case .failed(var failure) = outcome else { return }
        failure.message = failure.message.shortened(to: 100)
        outcome = .failed(failure)
    }

    package var failure: GuestTestFailure? {
        switch outcome {
        case .failed(let failure), .setUpFailed(let failure): failure
        default: nil
        }
    }

    package var isFailure: Bool { failure != nil }
}

extension String {
    /// The text, or its beginning and a sign that there was more.
    func shortened(to count: Int) -> String {
        guard let end = unicodeScalars.index(startIndex, offsetBy: count, limitedBy: endIndex), end < endIndex else {
            return self
        }
        return String(unicodeScalars[..<end]) + "…"
    }
}
