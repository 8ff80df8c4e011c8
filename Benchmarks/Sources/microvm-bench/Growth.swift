/// How the time for one of many grows with how many are there already.
///
/// Keeps, for each series, the two halves of the largest batch there has been.
final class Growth: @unchecked Sendable {
    // Written and read by the one task that runs the benchmarks.
    private var halves: [(name: String, first: Double, last: Double)] = []
    private var largest: [String: Int] = [:]

    /// A sampler that is looked at as well; its samples are in the order in which they were taken.
    func watching(_ name: String, _ sample: @escaping Sampler) -> Sampler {
        { [self] count in
            let times = try await sample(count)
            note(name, times)
            return times
        }
    }

    private func note(_ name: String, _ times: [UInt64]) {
        let half = times.count / 2
        guard half > 0, times.count >= largest[name] ?? 0 else { return }
        largest[name] = times.count
        func median(_ values: ArraySlice<UInt64>) -> Double { Double(values.sorted()[values.count / 2]) / 1000 }
        halves.removeAll { $0.name == name }
        halves.append((name, median(times[..<half]), median(times[half...])))
    }

    /// The median of the last half over that of the first, and the one less the other in microseconds.
    var fields: [(name: String, value: Double)] {
        halves.flatMap { name, first, last in
            [("\(name)_last_half_to_first", last / first), ("\(name)_last_half_more", last - first)]
        }
    }
}
