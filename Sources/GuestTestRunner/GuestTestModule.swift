package import MicroVM
import Synchronization

/// A module of tests: its exported functions whose names begin with `test_`.
///
/// The initialisers run once. Each test then runs in a sandbox that is what the first one was after them: a fork of its
/// snapshot, or one that was restored to it after the test before, which leaves nothing of that.
package final class GuestTestModule: Sendable {
    /// One sandbox, and what is heard from it.
    private struct Bench {
        var sandbox: Sandbox
        var record: GuestTestRecord
    }

    private enum SetUp: Sendable {
        case ready(Snapshot)
        case failed(GuestTestResult)
    }

    private struct State {
        var setUp: Task<SetUp, Never>?
        /// Restored, and in nobody's hands.
        var idle: [Bench] = []
        var isFinished = false
    }

    package static let prefix = "test_"

    /// Whether the runner is who offers an import.
    package static func provides(_ name: String) -> Bool {
        GuestTestRecord().hostFunctions.contains { $0.name == name }
    }

    package let module: GuestModule
    /// The module's name without `.so`.
    package let name: String
    /// The names of the tests, in the order in which the functions lie in the module: as a rule that of the source.
    package let tests: [String]
    private let hostFunctions: [HostFunction]
    private let configuration: SandboxConfiguration
    private let idleLimit: Int
    private let state = Mutex(State())

    /// - Parameters:
    ///   - hostFunctions: what the module's own imports stand for.
    ///   - configuration: memory and limits; the limits count for each test, and for the initialisers.
    ///   - idleLimit: how many sandboxes are kept for the tests to come.
    package init(
        _ module: GuestModule,
        hostFunctions: [HostFunction] = [],
        configuration: SandboxConfiguration,
        idleLimit: Int
    ) {
        self.module = module
        name = module.name.hasSuffix(".so") ? String(module.name.dropLast(3)) : module.name
        tests = module.exports
            .filter { $0.kind == .function && $0.name.hasPrefix(Self.prefix) }
            .sorted { ($0.address, $0.name) < ($1.address, $1.name) }
            .map(\.name)
        self.hostFunctions = hostFunctions
        self.configuration = configuration
        self.idleLimit = idleLimit
    }

    /// Gives the idle sandboxes back; none is kept from now on.
    package func finish() {
        let idle = state.withLock { state in
            state.isFinished = true
            defer { state.idle = [] }
            return state.idle
        }
        // They go with their last references.
        _ = idle
    }

    /// Runs a test. Tests of a module may run at the same time.
    package func run(_ test: String) async -> GuestTestResult {
        let bench: Bench
        let snapshot: Snapshot
        switch await setUp() {
        case .failed(let result): return result
        case .ready(let ready): snapshot = ready
        }
        do {
            bench = try await takeBench(snapshot)
        } catch {
            return GuestTestResult(outcome: Self.outcome(of: error))
        }
        let result = await run(test, on: bench)
        await putBack(bench, snapshot)
        return result
    }

    private func run(_ test: String, on bench: Bench) async -> GuestTestResult {
        let clock = ContinuousClock()
        let began = clock.now
        var outcome: GuestTestResult.Outcome
        var statistics: CallStatistics?
        do {
            let call = try bench.sandbox.start(test, returning: Int32.self)
            let end: Result<Int32, any Error>
            do { end = .success(try await call.result) } catch { end = .failure(error) }
            statistics = await call.statistics
            let value = try end.get()
            outcome = value == 0 ? .passed : .failed(GuestTestFailure(.result, "The test returned \(value)."))
        } catch {
            outcome = Self.outcome(of: error)
        }
        let contents = bench.record.take()
        // A failed check is a failure whatever comes after it, but what ended the test may be worse.
        if let first = contents.checks.first {
            let count = contents.checks.count + contents.omittedCheckCount
            let others = count == 1 ? "" : " (and \(count - 1) more)"
            switch outcome {
            case .passed, .skipped: outcome = .failed(GuestTestFailure(.check, first.description + others))
            case .failed(let failure) where failure.kind == .check || failure.kind == .result:
                outcome = .failed(GuestTestFailure(.check, first.description + others))
            default: break
            }
        }
        var result = GuestTestResult(outcome: outcome, contents)
        result.duration = statistics?.duration ?? began.duration(to: clock.now)
        result.cpuTime = statistics?.cpuTime
        return result
    }

    private static func outcome(of error: any Error) -> GuestTestResult.Outcome {
        switch error {
        case GuestTestRecord.End.skip(let reason): .skipped(reason)
        case GuestTestRecord.End.requirement: .failed(GuestTestFailure(.check, "A requirement did not hold."))
        case is CancellationError: .interrupted
        default: GuestTestFailure(error).map { .failed($0) } ?? .interrupted
        }
    }

    // MARK: - Sandboxes

    /// Makes the first sandbox, once for all tests.
    private func setUp() async -> SetUp {
        while true {
            let task = state.withLock { state in
                let task = state.setUp ?? Task { await self.setUpNow() }
                state.setUp = task
                return task
            }
            let setUp = await withTaskCancellationHandler {
                await task.value
            } onCancel: {
                task.cancel()
            }
            guard case .failed(let result) = setUp, case .interrupted = result.outcome else { return setUp }
            // Whoever was cancelled, the others can still have it.
            state.withLock { state in
                if state.setUp == task { state.setUp = nil }
            }
            if Task.isCancelled { return setUp }
        }
    }

    private func setUpNow() async -> SetUp {
        let record = GuestTestRecord()
        do {
            var configuration = configuration
            configuration.output = record.output
            let sandbox = try await Sandbox(
                module,
                hostFunctions: hostFunctions + record.hostFunctions,
                configuration: configuration
            )
            let snapshot = try await sandbox.snapshot()
            let contents = record.take()
            guard contents.checks.isEmpty else {
                let failure = GuestTestFailure(.check, contents.checks[0].description)
                return .failed(GuestTestResult(outcome: .setUpFailed(failure), contents))
            }
            await putBack(Bench(sandbox: sandbox, record: record), nil)
            return .ready(snapshot)
        } catch {
            let outcome: GuestTestResult.Outcome =
                switch Self.outcome(of: error) {
                case .failed(let failure): .setUpFailed(failure)
                case .skipped(let reason): .skipped(reason)
                default: .interrupted
                }
            var result = GuestTestResult(outcome: outcome, record.take())
            let statistics = (error as? SandboxError)?.statistics
            (result.duration, result.cpuTime) = (statistics?.duration ?? .zero, statistics?.cpuTime)
            return .failed(result)
        }
    }

    private func takeBench(_ snapshot: Snapshot) async throws -> Bench {
        if let bench = state.withLock({ $0.idle.popLast() }) { return bench }
        let record = GuestTestRecord()
        var configuration = configuration
        configuration.output = record.output
        let sandbox = try await Sandbox(
            from: snapshot,
            hostFunctions: hostFunctions + record.hostFunctions,
            configuration: configuration
        )
        return Bench(sandbox: sandbox, record: record)
    }

    /// Restores a sandbox, if there is something to restore it to, and keeps it if it can be restored.
    private func putBack(_ bench: Bench, _ snapshot: Snapshot?) async {
        if let snapshot {
            do { try await bench.sandbox.restore(to: snapshot) } catch { return await bench.sandbox.close() }
        }
        let isKept = state.withLock { state in
            guard !state.isFinished, state.idle.count < idleLimit else { return false }
            state.idle.append(bench)
            return true
        }
        if !isKept { await bench.sandbox.close() }
    }
}

extension GuestTestResult {
    fileprivate init(outcome: Outcome, _ contents: GuestTestRecord.Contents) {
        self.init(outcome: outcome)
        checks = contents.checks
        omittedCheckCount = contents.omittedCheckCount
        output = contents.output
    }
}
