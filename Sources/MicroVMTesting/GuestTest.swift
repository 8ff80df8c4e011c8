import GuestTestRunner
import MicroVM
public import Testing

/// One test of a guest module.
public struct GuestTest: Sendable, Identifiable {
    private enum Origin {
        case module(GuestTestModule)
        /// Why there is none.
        case problem(String)
    }

    /// The module's name, without `.so`.
    public let module: String
    /// The name of the function; empty where there is none.
    public let name: String
    private let origin: Origin

    init(_ name: String, in module: GuestTestModule) {
        self.module = module.name
        self.name = name
        origin = .module(module)
    }

    init(of module: String, problem: String) {
        self.module = module
        name = ""
        origin = .problem(problem)
    }

    /// `module/test_name`.
    public var id: String { name.isEmpty ? module : "\(module)/\(name)" }

    /// Runs the test in a fresh sandbox, and reports how it ended to the Swift test that calls this.
    ///
    /// Each check of the guest that failed is recorded as an issue at the guest's file and line. A test that was
    /// skipped is a warning with the reason, and cancels the Swift test's case; with Swift 6.2, which can do neither,
    /// it is recorded as a known issue.
    ///
    /// - Parameter sourceLocation: where a skip is reported.
    /// - Throws: ``GuestTestError`` for a test that failed by anything else than its checks; `CancellationError` when
    ///   the task is cancelled, which ends the guest.
    public func run(sourceLocation: SourceLocation = #_sourceLocation) async throws {
        guard case .module(let module) = origin else {
            if case .problem(let problem) = origin { throw GuestTestError(test: description, message: problem) }
            return
        }
        let result = await module.run(name)
        record(result)
        switch result.outcome {
        case .passed:
            break
        case .interrupted:
            throw CancellationError()
        case .skipped(let reason):
            let comment = Comment(rawValue: reason.printable)
            #if compiler(>=6.3)
            // Consoles do not show which of a test's cases were cancelled, nor why.
            Issue.record("Skipped: \(reason.printable)", severity: .warning, sourceLocation: sourceLocation)
            try Test.cancel(comment, sourceLocation: sourceLocation)
            #else
            withKnownIssue(comment) { Issue.record("The guest has skipped it.", sourceLocation: sourceLocation) }
            #endif
        case .failed(let failure) where failure.kind == .check && !result.checks.isEmpty:
            break
        case .failed(let failure):
            throw GuestTestError(test: description, failure, result.output)
        case .setUpFailed(let failure):
            throw GuestTestError(test: "\(self.module.printable): initialisers", failure, result.output)
        }
    }

    /// Records the checks that failed; the last one has the output with it.
    private func record(_ result: GuestTestResult) {
        for (index, check) in result.checks.enumerated() {
            var text = check.message.printable
            if index == result.checks.count - 1 {
                if result.omittedCheckCount > 0 { text += "\nand \(result.omittedCheckCount) more failed checks" }
                text += GuestTestError.text(result.output.lines)
            }
            Issue.record(Comment(rawValue: text), sourceLocation: location(check))
        }
    }

    /// The place in the guest's source, in the form that Swift's have. The guest may have said anything.
    private func location(_ check: GuestCheckFailure) -> SourceLocation {
        let path = check.file.printable
        let file = path.split(separator: "/").last.map(String.init) ?? "unknown"
        let module = module.printable.split(separator: "/").last.map(String.init) ?? "guest"
        return SourceLocation(fileID: "\(module)/\(file)", filePath: path, line: max(check.line, 1), column: 1)
    }
}

extension GuestTest: CustomStringConvertible, CustomTestStringConvertible {
    /// The ``id``, with characters that do not show escaped.
    public var description: String { id.printable }
    /// Likewise.
    public var testDescription: String { description }
}
