import Foundation
import GuestTestRunner
import MicroVM
import SystemPackage
import Testing

@testable import MicroVMCommand

/// Reports of more tests than a guest should have.
struct TestReportTests {
    private static func module() throws -> GuestTestModule {
        let module = try GuestModule(contentsOf: FilePath(CommandRun.guest("setup_skips_tests")))
        return GuestTestModule(module, configuration: SandboxConfiguration(), idleLimit: 1)
    }

    @Test func `what is kept for the report is bounded, however many tests there are`() throws {
        let count = 2000
        let module = try Self.module()
        var report = TestReport(jobCount: count) { _ in }
        for number in 0..<count {
            var run = TestRun(TestJob(module: module, moduleName: "many", test: "test_\(number)", isLast: false))
            var result = GuestTestResult(outcome: .skipped("too many"))
            result.output.append([UInt8](repeating: UInt8(ascii: "x"), count: 100_000))
            run.add(result)
            report.add(run)
        }
        #expect(report.runs.reduce(0) { $0 + $1.result.keptByteCount } <= 64 << 20)
        #expect(report.runs.count == count)
        #expect(report.runs[0].result.keptByteCount > 60_000)
        #expect(report.summary == "0 passed, 0 failed, 2000 skipped\n")
        #expect(report.exitStatus == .success)
    }
}
