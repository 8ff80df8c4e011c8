import Glibc
import GuestTestRunner
import MicroVM

/// The results of tests, which are written as they come.
struct TestReport: Sendable {
    let jobCount: Int
    /// Whether the session ended before its time.
    private(set) var isInterrupted = false
    /// The tests that are over, in their order; of a module whose initialisers failed, one stands for all.
    private(set) var runs: [TestRun] = []
    /// How many tests have been reported, those included that could not be run.
    private(set) var count = 0
    private var counts: [TestRun.Verdict: Int] = [:]
    /// What is kept for the report of what tests have said, in bytes.
    private var keptSize = 0
    /// A module can have as many tests as it likes, and the report is written at the end.
    private static let keptSizeLimit = 64 << 20
    private var progress = TestProgress()
    /// On a terminal what has passed is counted, and not listed.
    private let listsAll = isatty(1) != 1 || isatty(2) != 1

    private let write: @Sendable (String) -> Void

    /// - Parameter write: takes each result as it comes.
    init(jobCount: Int, write: @escaping @Sendable (String) -> Void = { StandardStream.output.write($0) }) {
        self.jobCount = jobCount
        self.write = write
    }

    mutating func add(_ run: TestRun) {
        count += 1
        switch run.verdict {
        case .interrupted: return
        case .setUpFailed where runs.last?.verdict == .setUpFailed && runs.last?.job.module === run.job.module: return
        default: counts[run.verdict, default: 0] += 1
        }
        if listsAll || run.verdict != .passed {
            progress.clear()
            write(Self.text(run))
        }
        var run = run
        if run.verdict != .passed { keptSize += run.result.keptByteCount }
        if run.verdict == .passed || keptSize > Self.keptSizeLimit { run.dropDetails() }
        runs.append(run)
    }

    /// Nothing more comes.
    mutating func end() {
        progress.clear()
        isInterrupted = Task.isCancelled && notRunCount > 0
    }

    mutating func showProgress(_ job: TestJob?) {
        guard let job else { return progress.clear() }
        let failed = failedCount == 0 ? "" : " \(failedCount) failed,"
        progress.show("[\(count)/\(jobCount)]\(failed) \(job.name)")
    }

    // MARK: - Counts

    private func count(_ verdicts: TestRun.Verdict...) -> Int { verdicts.reduce(0) { $0 + (counts[$1] ?? 0) } }
    private var notRunCount: Int { jobCount - runs.count + count(.setUpFailed) }
    private var failedCount: Int { count(.failed, .flaky, .setUpFailed) }

    /// The last lines.
    var summary: String {
        let flaky = runs.filter { $0.verdict == .flaky }.map {
            "Flaky: \($0.job.name.printable) failed \($0.failureCount) of \($0.count) times.\n"
        }
        var line = "\(count(.passed)) passed, \(failedCount) failed, \(count(.skipped)) skipped"
        if notRunCount > 0 { line += ", \(notRunCount) not run" }
        return flaky.joined() + (isInterrupted ? "Interrupted.\n" : "") + line + "\n"
    }

    var exitStatus: ExitStatus { isInterrupted ? .interrupted : failedCount > 0 ? .testsFailed : .success }

    // MARK: - Text

    /// One line; for a failure, all that is known about it behind that.
    private static func text(_ run: TestRun) -> String {
        let name = run.verdict == .setUpFailed ? "\(run.job.moduleName): initialisers" : run.job.name
        var line = name.printable + "  " + TimeSpan(run.duration).description
        if run.cpuTime > .zero { line += ", CPU \(TimeSpan(run.cpuTime))" }
        let result = run.result
        switch run.verdict {
        case .passed: return "PASS   \(line)\n"
        case .skipped:
            guard case .skipped(let reason) = result.outcome else { return "" }
            return "SKIP   \(name.printable): \(reason.printable)\n"
        case .flaky: line = "FLAKY  \(line), failed \(run.failureCount) of \(run.count) times"
        default: line = "FAIL   \(line)"
        }
        return ([line] + details(result).map { "       " + $0 }).joined(separator: "\n") + "\n"
    }

    /// Why a test failed: its checks, what else, where, and its output.
    private static func details(_ result: GuestTestResult) -> [String] {
        var lines = explanation(result, checkLimit: 20)
        if !result.output.isEmpty { lines += ["output:"] + result.output.lines.map { "| " + $0 } }
        return lines
    }

    /// Why a test failed, but for its output; each line is fit for a terminal.
    static func explanation(_ result: GuestTestResult, checkLimit: Int = .max) -> [String] {
        var lines = result.checks.prefix(checkLimit).map(\.description.printable)
        let omitted = result.checks.count - lines.count + result.omittedCheckCount
        if omitted > 0 { lines.append("and \(omitted) more failed checks") }
        if let failure = result.failure {
            if failure.kind != .check || lines.isEmpty { lines.append(failure.message.printable) }
            lines += failure.backtrace.map { "at \($0.printable)" }
        }
        return lines
    }
}
