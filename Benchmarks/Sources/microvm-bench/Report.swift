/// A benchmark's results, and both ways to print them.
struct Report {
    let benchmark: String
    /// In words, which processors the threads ran on.
    let placement: String
    let series: [(name: String, summary: Summary)]
    let fields: [(name: String, value: Double)]
    /// Why this is not to be relied on, if it is not. They contain no quotation marks.
    let complaints: [String]

    var jsonLine: String {
        let times = series.flatMap { [($0.name + "_p50", $0.summary.p50), ($0.name + "_p99", $0.summary.p99)] }
        let numbers = (times + fields.map { ($0.name, $0.value) }).map { "\"\($0.0)\": \(rounded($0.1))" }
        let words = [("benchmark", benchmark), ("unit", "us"), ("placement", placement)].map { "\"\($0)\": \"\($1)\"" }
        let lists = complaints.isEmpty ? [] : ["\"complaints\": [\"" + complaints.joined(separator: "\", \"") + "\"]"]
        return "{" + (words + numbers + lists).joined(separator: ", ") + "}"
    }

    static let tableHeader = row("benchmark", "series", "p50 (us)", "p99 (us)", "")

    var tableRows: String {
        let remarks = (fields.map { "\($0.name) \(rounded($0.value))" } + [placement]).joined(separator: ", ")
        let rows = series.enumerated().map { index, each in
            Self.row(
                index == 0 ? benchmark : "",
                each.name,
                rounded(each.summary.p50),
                rounded(each.summary.p99),
                index == 0 ? remarks : ""
            )
        }
        return (rows + complaints.map { "*** \(benchmark): \($0)" }).joined(separator: "\n")
    }

    private static func row(_ benchmark: String, _ series: String, _ p50: String, _ p99: String, _ remarks: String)
        -> String
    {
        func left(_ text: String, _ width: Int) -> String {
            text + String(repeating: " ", count: max(width - text.count, 0))
        }
        func right(_ text: String, _ width: Int) -> String {
            String(repeating: " ", count: max(width - text.count, 0)) + text
        }
        let line = left(benchmark, 32) + left(series, 10) + right(p50, 10) + right(p99, 10) + "  " + remarks
        return String(line.reversed().drop { $0 == " " }.reversed())
    }
}

/// With three digits after the point, the same in any locale.
private func rounded(_ value: Double) -> String {
    let thousandths = Int((value.magnitude * 1000).rounded())
    let fraction = String(thousandths % 1000)
    let sign = value < 0 && thousandths > 0 ? "-" : ""
    return sign + "\(thousandths / 1000)." + String(repeating: "0", count: 3 - fraction.count) + fraction
}
