import ArgumentParser

/// What the process's exit status says; the lower ones are those of `sysexits.h`.
enum ExitStatus: Int32, CaseIterable {
    case success = 0
    /// A test has failed.
    case testsFailed = 1
    /// The command line is wrong, or asks for what cannot be.
    case usage = 64
    /// The module cannot be used: not loadable, no such function, missing imports; or its result is not of its type.
    case unusable = 65
    /// There is no test to run.
    case noTests = 66
    /// There is no KVM that can run guests.
    case unavailable = 69
    /// The operating system refused something.
    case systemError = 71
    /// The result could not be written.
    case outputFailed = 74
    /// The time limit had passed, or the CPU limit.
    case timeLimit = 124
    /// Ended by Ctrl-C or SIGTERM, or by the key k.
    case interrupted = 130
    /// The guest ended itself by `microvm_abort`.
    case abort = 134
    /// The guest did something illegal.
    case fault = 139
    /// Nobody reads standard output any more: what a shell reports of a process that SIGPIPE has ended.
    case outputClosed = 141

    var exitCode: ExitCode { ExitCode(rawValue) }

    /// The status in words, for the help texts.
    var explanation: String {
        switch self {
        case .success: "the function returned"
        case .testsFailed: "a test failed"
        case .usage: "wrong usage, or values that do not fit"
        case .unusable: "module refused, no such function, missing imports, invalid result"
        case .noTests: "no test, or none that matches --filter"
        case .unavailable: "no KVM that can run guests (see microvm doctor)"
        case .systemError: "the operating system refused something"
        case .outputFailed: "the result could not be written"
        case .timeLimit: "the time limit or the CPU limit had passed"
        case .interrupted: "interrupted by Ctrl-C or SIGTERM, or killed by the key k"
        case .abort: "the guest aborted"
        case .fault: "the guest faulted"
        case .outputClosed: "nobody reads standard output any more"
        }
    }

    /// The table of the help text of `microvm run`.
    static let runTable = table(
        allCases.filter { $0 != .testsFailed && $0 != .noTests }.map { ($0, $0.explanation) }
    )

    /// The table of the help text of `microvm test`.
    static let testTable = table([
        (.success, "all tests passed, or were skipped"), (.testsFailed, testsFailed.explanation),
        (.usage, usage.explanation), (.unusable, "module refused, missing imports"), (.noTests, noTests.explanation),
        (.unavailable, unavailable.explanation), (.systemError, systemError.explanation),
        (.outputFailed, "the results or the report could not be written"),
        (.interrupted, "interrupted by Ctrl-C or SIGTERM"), (.outputClosed, outputClosed.explanation),
    ])

    private static func table(_ rows: [(ExitStatus, String)]) -> String {
        rows.map { "  " + String($0.rawValue).padded(to: 5) + $1 }.joined(separator: "\n")
    }
}
