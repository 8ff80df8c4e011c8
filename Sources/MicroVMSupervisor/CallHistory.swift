/// The calls that are over, as many as are remembered.
struct CallHistory {
    private struct Entry {
        var status: CallStatus
        var output: CallOutput
        /// The bytes that it takes beyond the usual.
        var bytes: Int
    }

    private let size: Int
    private let outputSize: Int
    private var entries: [CallID: Entry] = [:]
    /// In the order in which they ended, from `first` on.
    private var order: [CallID] = []
    private var first = 0
    /// From here on entries may have output and results that are kept.
    private var firstWithOutput = 0
    private var keptOutput = 0

    init(size: Int, outputSize: Int) {
        self.size = max(size, 0)
        self.outputSize = max(outputSize, 0)
    }

    var count: Int { order.count - first }

    subscript(_ id: CallID) -> CallStatus? { entries[id]?.status }

    func output(of id: CallID) -> CallOutput? { entries[id]?.output }

    /// The last ones, the last one first.
    func latest(_ limit: Int) -> [CallStatus] {
        order[first...].suffix(max(0, limit)).reversed().compactMap { entries[$0]?.status }
    }

    mutating func add(_ status: CallStatus, output: CallOutput) {
        let entry = Entry(status: status, output: output, bytes: output.size + status.resultSize)
        entries[status.id] = entry
        order.append(status.id)
        keptOutput += entry.bytes
        while keptOutput > outputSize, firstWithOutput < order.count { forgetOutput() }
        while count > size {
            if firstWithOutput == first { forgetOutput() }
            entries[order[first]] = nil
            first += 1
        }
        if first > 1024, first > order.count / 2 {
            order.removeFirst(first)
            firstWithOutput -= first
            first = 0
        }
    }

    private mutating func forgetOutput() {
        let id = order[firstWithOutput]
        firstWithOutput += 1
        guard let entry = entries[id] else { return }
        keptOutput -= entry.bytes
        entry.output.clear()
        entries[id]?.bytes = 0
        if entry.status.resultSize > 0 { entries[id]?.status.outcome = .returned(nil) }
    }
}

extension CallStatus {
    fileprivate var resultSize: Int {
        if case .returned(let value?) = outcome { value.byteCount } else { 0 }
    }
}
