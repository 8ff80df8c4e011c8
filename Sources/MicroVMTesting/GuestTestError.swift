import GuestTestRunner
import MicroVM

/// Why a guest's test failed, where it was not by a check: a fault, an abort, a time limit, a result other than 0.
///
/// All texts are fit for a terminal: what the guest has said is escaped.
public struct GuestTestError: Error, Sendable, CustomStringConvertible {
    /// `module/test_name`.
    public let test: String
    /// One sentence.
    public let message: String
    /// Where the guest was, the innermost function first; empty where that is not known.
    public let backtrace: [String]
    /// What the test had written, line by line; of much output, the beginning and the end.
    public let output: [String]

    init(test: String, message: String) {
        self.test = test
        self.message = message.printable
        backtrace = []
        output = []
    }

    init(test: String, _ failure: GuestTestFailure, _ output: GuestTestOutput) {
        self.test = test
        message = failure.message.printable
        backtrace = failure.backtrace.map(\.printable)
        self.output = output.lines
    }

    /// The test, the message, the backtrace and the output.
    public var description: String {
        "\(test): \(message)" + backtrace.map { "\n  at \($0)" }.joined() + Self.text(output)
    }

    static func text(_ output: [String]) -> String {
        output.isEmpty ? "" : "\noutput:" + output.map { "\n| \($0)" }.joined()
    }
}
