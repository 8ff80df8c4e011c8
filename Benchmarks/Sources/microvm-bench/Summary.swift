/// What is kept of a series' samples, in microseconds.
struct Summary {
    let count: Int
    let p50: Double
    let p90: Double
    let p99: Double
    /// Of all samples.
    let total: Double

    init(nanoseconds samples: [UInt64]) {
        count = samples.count
        let sorted = samples.sorted()
        // Nearest rank: the least sample that so many percent of all do not exceed.
        func percentile(_ percent: Int) -> Double {
            Double(sorted[max((sorted.count * percent + 99) / 100, 1) - 1]) / 1000
        }
        p50 = percentile(50)
        p90 = percentile(90)
        p99 = percentile(99)
        total = Double(samples.reduce(0, +)) / 1000
    }
}
