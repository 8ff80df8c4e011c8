/// The calls that are over, as many as are remembered.
struct CallHistory {
    /// One call. An object, because it is large, and is handed about for as long as it is remembered.
    private final class Entry {
        var status: CallStatus
        /// Nothing where nothing was written, as it is with most calls.
        let output: CallOutput?
        /// The bytes that it takes beyond the usual.
        private(set) var bytes: Int

        init(_ status: CallStatus, _ output: CallOutput) {
            self.status = status
            self.output = status.output > 0 ? output : nil
            bytes = status.resultSize + (self.output?.size ?? 0)
        }

        /// Forgets what is more than usual.
        func shrink() {
            guard bytes > 0 else { return }
            bytes = 0
            output?.clear()
            if status.resultSize > 0 { status.outcome = .returned(nil) }
        }
    }

    private let size: Int
    private let outputSize: Int
    private var entries: [CallID: Entry] = [:]
    /// In the order in which they ended, from `first` on.
    private var order: [Entry?] = []
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

    func output(of id: CallID) -> CallOutput? { entries[id].map { $0.output ?? .nothing } }

    /// The last ones, the last one first.
    func latest(_ limit: Int) -> [CallStatus] {
        order[first...].suffix(max(0, limit)).reversed().compactMap { $0?.status }
    }

    mutating func add(_ status: CallStatus, output: CallOutput) {
        let entry = Entry(status, output)
        entries[status.id] = entry
        order.append(entry)
        keptOutput += entry.bytes
        while keptOutput > outputSize, firstWithOutput < order.count { forgetOutput() }
        while count > size {
            if firstWithOutput == first { forgetOutput() }
            if let oldest = order[first] { entries[oldest.status.id] = nil }
            order[first] = nil
            first += 1
        }
        if first > 1024, first > order.count / 2 {
            order.removeFirst(first)
            firstWithOutput -= first
            first = 0
        }
    }

    private mutating func forgetOutput() {
        if let entry = order[firstWithOutput] {
            keptOutput -= entry.bytes
            entry.shrink()
        }
        firstWithOutput += 1
    }
}

extension CallStatus {
    fileprivate var resultSize: Int {
        if case .returned(let value?) = outcome { value.byteCount } else { 0 }
    }
}
