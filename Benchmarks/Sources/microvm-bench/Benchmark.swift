import AllocationCounter

/// Takes as many samples as asked for, in nanoseconds.
typealias Sampler = (_ count: Int) async throws -> [UInt64]

/// One job, done in several ways that take turns.
struct Benchmark {
    /// One way to do the job; `name` begins its fields in the output.
    struct Series {
        let name: String
        let sample: Sampler
    }

    let name: String
    /// Samples of one series before the next has its turn.
    var batch = 50
    /// The part of the iterations asked for that this benchmark takes, for those that take long.
    var share = 1.0
    /// As many samples are taken at any rate.
    var leastSamples = 1
    var placement = Placement.oneProcessor
    /// Whether it is left out where there is one processor only: two threads that poll for each other would wait for
    /// the scheduler there.
    var needsTwoProcessors = false
    /// Whether the ratio of the slowest samples is printed too.
    var comparesTails = false
    /// Whether a sample of the library's is something of which allocations can be told.
    var countsAllocations = true
    /// The library's way, once there is one.
    let ours: Sampler?
    /// Plain C's way.
    let raw: Sampler
    /// What else is measured in the same run.
    var others: [Series] = []
    /// Further fields, computed from the results by series.
    var derived: (_ summaries: [String: Summary]) -> [(name: String, value: Double)] = { _ in [] }
    /// Why the results are not of what the benchmark is about, if they are not, in words.
    var complaints: () -> [String] = { [] }

    /// Runs every series in turn, batch by batch, in the benchmark's placement, and sums up.
    func run(iterations: Int) async throws -> Report {
        try placement.begin()
        do {
            let report = try await runPlaced(iterations)
            try Placement.end()
            return report
        } catch {
            try? Placement.end()
            throw error
        }
    }

    private func runPlaced(_ iterations: Int) async throws -> Report {
        let oursSeries = ours.map { [Series(name: "ours", sample: $0)] } ?? []
        let series = oursSeries + [Series(name: "raw", sample: raw)] + others
        let wanted = max(Int(Double(iterations) * share), leastSamples)
        var samples = [[UInt64]](repeating: [], count: series.count)

        for each in series {
            _ = try await each.sample(min(batch, wanted))
        }
        while samples[0].count < wanted {
            let count = min(batch, wanted - samples[0].count)
            for (index, each) in series.enumerated() {
                samples[index] += try await each.sample(count)
            }
        }

        let summaries = zip(series, samples).map { (name: $0.name, summary: Summary(nanoseconds: $1)) }
        let byName = Dictionary(uniqueKeysWithValues: summaries.map { ($0.name, $0.summary) })
        var fields: [(name: String, value: Double)] = []
        if let ours, let oursSummary = byName["ours"], let rawSummary = byName["raw"] {
            // CPU time may be nothing at all.
            if rawSummary.p50 > 0 { fields.append(("ratio_p50", oursSummary.p50 / rawSummary.p50)) }
            if comparesTails { fields.append(("ratio_p99", oursSummary.p99 / rawSummary.p99)) }
            if countsAllocations { fields.append(("allocations_per_call", try await allocationsPerCall(ours))) }
        }
        return Report(
            benchmark: name,
            placement: placement.outcome,
            series: summaries,
            fields: fields + derived(byName),
            complaints: complaints()
        )
    }

    /// The allocations that a batch makes more than a batch of one, so that those of a batch itself cancel out.
    private func allocationsPerCall(_ sample: Sampler) async throws -> Double {
        func allocations(_ count: Int) async throws -> Double {
            let before = allocation_count()
            _ = try await sample(count)
            return Double(allocation_count() - before)
        }
        return try await (allocations(batch + 1) - allocations(1)) / Double(batch)
    }
}
