import GuestTestRunner

/// One test that is to run.
struct TestJob: Sendable {
    var module: GuestTestModule
    /// What the module is called in reports.
    var moduleName: String
    var test: String
    /// Whether it is the last one of its module.
    var isLast: Bool

    /// `module/test_name`, which may contain anything.
    var name: String { "\(moduleName)/\(test)" }
}

/// All runs of one test.
struct TestRun: Sendable {
    enum Verdict { case passed, failed, flaky, skipped, setUpFailed, interrupted }

    var job: TestJob
    /// The first run that failed; the last one where none did.
    private(set) var result = GuestTestResult(outcome: .interrupted)
    private(set) var count = 0
    private(set) var failureCount = 0
    /// Those of all runs.
    private(set) var duration = Duration.zero
    private(set) var cpuTime = Duration.zero

    init(_ job: TestJob) { self.job = job }

    mutating func add(_ result: GuestTestResult) {
        duration += result.duration
        cpuTime += result.cpuTime ?? .zero
        if case .interrupted = result.outcome { return }
        count += 1
        if failureCount == 0 { self.result = result }
        if result.isFailure { failureCount += 1 }
    }

    /// Forgets what the test has said.
    mutating func dropDetails() { result.dropDetails() }

    var verdict: Verdict {
        switch result.outcome {
        case .passed: .passed
        case .skipped: .skipped
        case .setUpFailed: .setUpFailed
        case .interrupted: .interrupted
        case .failed: failureCount < count ? .flaky : .failed
        }
    }
}

/// Runs tests side by side, and reports them in their order.
struct TestSession: Sendable {
    var jobs: [TestJob]
    var parallel: Int
    var repetitions: Int
    var failFast: Bool

    /// Runs all tests, or as many as there is time for until the task is cancelled.
    func run() async -> TestReport {
        var report = TestReport(jobCount: jobs.count)
        await withTaskGroup(of: (Int, TestRun).self) { group in
            var finished: [Int: TestRun] = [:]
            var next = 0
            var isStopping = false
            func begin() {
                guard next < jobs.count, !isStopping, !Task.isCancelled else { return }
                let index = next
                next += 1
                group.addTask { (index, await run(jobs[index])) }
            }
            for _ in 0..<parallel { begin() }
            report.showProgress(jobs.first)
            while let (index, run) = await group.next() {
                finished[index] = run
                isStopping = isStopping || failFast && run.result.isFailure
                while let run = finished.removeValue(forKey: report.count) {
                    report.add(run)
                    if run.job.isLast { run.job.module.finish() }
                }
                begin()
                report.showProgress(report.count < next ? jobs[report.count] : nil)
            }
        }
        report.end()
        return report
    }

    private func run(_ job: TestJob) async -> TestRun {
        var run = TestRun(job)
        for _ in 0..<repetitions {
            run.add(await job.module.run(job.test))
            switch run.verdict {
            case .skipped, .setUpFailed, .interrupted: return run
            default: if Task.isCancelled { return run }
            }
        }
        return run
    }
}
