import Foundation
import Testing

/// A run of `microvm test`.
struct TestCommandRun {
    var run: CommandRun
    /// The report, when there is one.
    var report: XMLElement?

    /// Long enough for every test that ends by itself.
    static let ample = isEmulated ? "50s" : "20s"

    init(_ arguments: [String], report: Bool = false) async throws {
        let file = FileManager.default.temporaryDirectory.appending(path: "microvm-report-\(UUID().uuidString).xml")
        defer { try? FileManager.default.removeItem(at: file) }
        run = try await CommandRun.microvm(["test"] + arguments + (report ? ["--junit", file.path] : []))
        if report { self.report = try XMLElement.parse(Data(contentsOf: file)) }
    }

    init(_ guest: String, _ arguments: String..., report: Bool = false) async throws {
        try await self.init([CommandRun.guest(guest)] + arguments, report: report)
    }

    var lines: [String] { run.outputText.split(separator: "\n").map(String.init) }
    var summary: String? { lines.last }

    /// `PASS name` and the like, without times and details.
    var results: [String] {
        lines.filter { $0.first != " " }.dropLast().map { line in
            let words = line.split(separator: " ", maxSplits: 1, omittingEmptySubsequences: true)
            let name = words.dropFirst().joined().trimmingCharacters(in: .whitespaces)
            return "\(words[0]) \(name.components(separatedBy: "  ")[0].components(separatedBy: ": ")[0])"
        }
    }

    /// The first of what is said about a test; empty where nothing is.
    func detail(_ test: String) -> String { details(test).first ?? "" }

    /// What is said about a test, but for its first line, without the indentation.
    func details(_ test: String) -> [String] {
        let rest = lines.drop { !$0.contains("/\(test)  ") }.dropFirst()
        return rest.prefix { $0.first == " " }.map { String($0.dropFirst(7)) }
    }
}
