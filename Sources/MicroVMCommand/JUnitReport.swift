import GuestTestRunner
import MicroVM

/// The results of tests in the XML that JUnit's reports have become known for, as the schemas of Jenkins' xUnit plugin
/// (junit-10.xsd) and of Maven's Surefire (surefire-test-report.xsd, for each suite) describe it.
///
/// Nothing that a guest says can leave its place: control characters and all else that XML does not allow, or that does
/// not show, are escaped as in Swift.
struct JUnitReport {
    private(set) var text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"

    private struct Suite {
        var name: String
        var runs: [TestRun] = []

        var failures: Int { runs.count { !$0.isError && $0.result.isFailure } }
        var errors: Int { runs.count(where: \.isError) }
        var skipped: Int { runs.count { $0.verdict == .skipped } }
        var duration: Duration { runs.reduce(.zero) { $0 + $1.duration } }
        var cpuTime: Duration { runs.reduce(.zero) { $0 + $1.cpuTime } }
    }

    init(_ report: TestReport) {
        var suites: [Suite] = []
        for run in report.runs {
            if suites.last?.name != run.job.moduleName { suites.append(Suite(name: run.job.moduleName)) }
            suites[suites.count - 1].runs.append(run)
        }
        open(
            "testsuites",
            [
                ("name", "microvm test"), ("time", Self.seconds(suites.reduce(.zero) { $0 + $1.duration })),
                ("tests", "\(report.runs.count)"), ("failures", "\(suites.reduce(0) { $0 + $1.failures })"),
                ("errors", "\(suites.reduce(0) { $0 + $1.errors })"),
            ]
        )
        for suite in suites { add(suite) }
        close("testsuites")
    }

    private mutating func add(_ suite: Suite) {
        open(
            "testsuite",
            [
                ("name", suite.name), ("time", Self.seconds(suite.duration)), ("tests", "\(suite.runs.count)"),
                ("failures", "\(suite.failures)"), ("errors", "\(suite.errors)"), ("skipped", "\(suite.skipped)"),
            ]
        )
        open("properties")
        element("property", [("name", "cpuTime"), ("value", Self.seconds(suite.cpuTime))])
        close("properties")
        for run in suite.runs { add(run) }
        close("testsuite")
    }

    private mutating func add(_ run: TestRun) {
        open(
            "testcase",
            [
                ("name", run.verdict == .setUpFailed ? "initialisers" : run.job.test),
                ("classname", run.job.moduleName), ("time", Self.seconds(run.duration)),
            ]
        )
        if case .skipped(let reason) = run.result.outcome { element("skipped", [("message", reason)]) }
        if let failure = run.result.failure {
            var lines = TestReport.explanation(run.result)
            if run.verdict == .flaky { lines.insert("failed \(run.failureCount) of \(run.count) times", at: 0) }
            element(
                run.isError ? "error" : "failure",
                [
                    ("message", (run.verdict == .flaky ? "flaky: " : "") + failure.message),
                    ("type", failure.kind.rawValue),
                ],
                lines.joined(separator: "\n")
            )
        }
        if !run.result.output.isEmpty { element("system-out", [], run.result.output.text) }
        close("testcase")
    }

    // MARK: - XML

    private mutating func open(_ name: String, _ attributes: [(String, String)] = []) {
        text += Self.tag(name, attributes) + ">\n"
    }

    private mutating func close(_ name: String) { text += "</\(name)>\n" }

    private mutating func element(_ name: String, _ attributes: [(String, String)], _ content: String = "") {
        text += Self.tag(name, attributes) + (content.isEmpty ? "/>\n" : ">\(Self.escaped(content))</\(name)>\n")
    }

    private static func tag(_ name: String, _ attributes: [(String, String)]) -> String {
        "<" + name + attributes.map { " \($0)=\"\(escaped($1.printable))\"" }.joined()
    }

    private static func escaped(_ content: String) -> String {
        var text = ""
        for scalar in content.unicodeScalars {
            switch scalar {
            case "&": text += "&amp;"
            case "<": text += "&lt;"
            case ">": text += "&gt;"
            case "\"": text += "&quot;"
            case "\n", "\t", " "..."~": text.unicodeScalars.append(scalar)
            default: text += String(scalar).printable
            }
        }
        return text
    }

    /// With three decimals, which is as many as Surefire's schema allows.
    private static func seconds(_ duration: Duration) -> String {
        (TimeSpan(duration).microseconds / 1e6).decimal(places: 3)
    }
}

extension TestRun {
    /// Whether the test did not come to its end, in JUnit's words an error and not a failure.
    fileprivate var isError: Bool {
        guard let failure = result.failure else { return false }
        return failure.kind != .check && failure.kind != .result
    }
}
