#if Server
import MicroVM
import MicroVMServer

/// What `microvm top` shows, as lines of text for a terminal of any size.
struct TopScreen {
    /// By what the calls are sorted.
    enum Order: String, CaseIterable {
        case cpu, elapsed, memory, exits, call

        var next: Order {
            let all = Self.allCases
            return all[(all.firstIndex(of: self)! + 1) % all.count]
        }

        /// Whether one call comes before another.
        func precedes(_ left: API.Call, _ right: API.Call) -> Bool {
            func key(_ call: API.Call) -> Double {
                switch self {
                case .cpu: call.sample?.cpuShare ?? -1
                case .elapsed: call.elapsedMicroseconds ?? -1
                case .memory: Double(call.sample?.memoryBytes ?? 0)
                case .exits: call.sample?.exitsPerSecond ?? -1
                case .call: -Double(call.id)
                }
            }
            return (key(left), right.id) > (key(right), left.id)
        }
    }

    /// What is being asked for at the bottom of the screen.
    enum Prompt: Equatable {
        case none
        case filter(String)
        case kill(UInt64)
    }

    var overview: API.Overview?
    var calls: [API.Call] = []
    var order = Order.cpu
    var filter = ""
    var prompt = Prompt.none
    /// The call that keys act on.
    var selection: UInt64?
    /// What there is to be said, until the next key.
    var message: String?

    /// The calls that the filter lets through, in their order.
    var shown: [API.Call] {
        let calls =
            filter.isEmpty
            ? calls
            : calls.filter { call in
                let labels = call.labels.map { "\($0)=\($1)" }
                return (["\(call.id)", call.module, call.function, call.state] + labels).contains {
                    $0.contains(filter)
                }
            }
        return calls.sorted(by: order.precedes)
    }

    /// Takes new calls in; the selection stays where it is, or goes to the next one.
    mutating func update(_ calls: [API.Call], _ overview: API.Overview) {
        let before = shown.firstIndex { $0.id == selection }
        self.calls = calls
        self.overview = overview
        keepSelection(at: before ?? 0)
    }

    mutating func keepSelection(at index: Int) {
        let shown = shown
        if shown.contains(where: { $0.id == selection }) { return }
        selection = shown.isEmpty ? nil : shown[min(max(index, 0), shown.count - 1)].id
    }

    mutating func moveSelection(by distance: Int) {
        let shown = shown
        guard !shown.isEmpty else { return }
        let index = shown.firstIndex { $0.id == selection } ?? 0
        selection = shown[min(max(index + distance, 0), shown.count - 1)].id
    }

    // MARK: - Text

    private static let columns: [(title: String, width: Int, isNumber: Bool)] = [
        ("CALL", 6, true), ("STATE", 9, false), ("MODULE", 8, false), ("FUNCTION", 10, false), ("%CPU", 5, true),
        ("TIME", 7, true), ("EXIT/s", 6, true), ("HOST/s", 6, true), ("MEM", 6, true), ("WHERE", 0, false),
    ]

    /// So many lines, each so wide at most.
    func lines(columns: Int, rows: Int) -> [String] {
        var lines = head()
        let shown = shown
        let room = max(0, rows - lines.count - 2)
        lines.append(Self.row(Self.columns.map(\.title)))
        let index = shown.firstIndex { $0.id == selection } ?? 0
        let first = max(0, min(index - room / 2, shown.count - room))
        for call in shown.dropFirst(first).prefix(room) {
            let line = Self.fitted(Self.row(Self.cells(call)), to: columns)
            lines.append(call.id == selection ? "\u{1b}[7m\(line.padded(to: columns))\u{1b}[0m" : line)
        }
        while lines.count < rows - 1 { lines.append("") }
        lines = lines.map { $0.hasPrefix("\u{1b}") ? $0 : Self.fitted($0, to: columns) }
        return Array(lines.prefix(max(0, rows - 1))) + [Self.fitted(foot, to: columns)]
    }

    private func head() -> [String] {
        guard let overview else { return ["microvm top"] }
        let totals = overview.totals
        let latency =
            overview.latency.map { latency in
                "  p50 \(CallText.time(latency.p50Microseconds)) p99 \(CallText.time(latency.p99Microseconds))"
            } ?? ""
        var state =
            "microvm top: \(overview.running) running, \(overview.queued) queued, \(overview.stopped) stopped"
        if overview.throttled > 0 { state += ", \(overview.throttled) throttled" }
        if overview.isShuttingDown { state += ", shutting down" }
        let pools =
            "pools \(overview.poolInUse)/\(overview.poolMaximum)  memory \(CallText.bytes(overview.memoryBytes))  "
            + "CPU in minute \(CallText.time(overview.cpuTimeInMinuteMicroseconds))"
            + latency
        return [
            state, pools,
            "returned \(totals.returned)  faulted \(totals.faulted)  killed \(totals.killed)  "
                + "limited \(totals.limited)  failed \(totals.failed)  by \(order.rawValue)"
                + (filter.isEmpty ? "" : "  filter “\(Self.plain(filter))”"),
        ]
    }

    private static let keys = "k kill  s stop  c continue  f filter  o sort  arrows select  q quit"

    private var foot: String {
        switch prompt {
        case .filter(let text): return "Filter (Enter sets it, Esc leaves it): \(Self.plain(text))_"
        case .kill(let id): return "Kill call \(id)? y or n"
        case .none: return message.map(Self.plain) ?? Self.keys
        }
    }

    private static func cells(_ call: API.Call) -> [String] {
        let sample = call.state == "queued" ? nil : call.sample
        func rate(_ value: Double?) -> String {
            guard let value else { return "-" }
            return value < 10_000 ? value.decimal(places: 0) : (value / 1000).decimal(places: 0) + "k"
        }
        return [
            "\(call.id)", call.state, call.module, call.function,
            sample.map { (100 * $0.cpuShare).decimal(places: 0) } ?? "-",
            CallText.time(call.elapsedMicroseconds ?? call.queuedMicroseconds), rate(sample?.exitsPerSecond),
            rate(sample?.hostCallsPerSecond), sample?.memoryBytes.map(CallText.bytes) ?? "-",
            sample?.hostFunction ?? sample?.place ?? "-",
        ]
    }

    private static func row(_ cells: [String]) -> String {
        zip(cells, columns).map { cell, column in
            let text = plain(cell)
            guard column.width > 0 else { return text }
            let cut = fitted(text, to: column.width)
            return column.isNumber ? cut.padded(before: column.width) : cut.padded(to: column.width)
        }
        .joined(separator: " ")
    }

    static func fitted(_ text: String, to width: Int) -> String {
        text.count <= width ? text : String(text.prefix(max(0, width - 1))) + "…"
    }

    /// Text of which every character is as wide as any other; what came from a guest can be anything.
    static func plain(_ text: String) -> String {
        String(
            String.UnicodeScalarView(
                text.printable.unicodeScalars.map { scalar in
                    let isNarrow =
                        scalar.value < 0x300 || (0x370..<0x590).contains(scalar.value)
                        || "…“”".unicodeScalars.contains(scalar)
                    return isNarrow ? scalar : "?"
                }
            )
        )
    }
}
#endif
