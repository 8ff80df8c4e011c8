/// How many calls have taken how long.
public struct DurationHistogram: Sendable, Hashable {
    /// The upper bounds of the classes but the last, in ascending order.
    public static let bounds: [Duration] = [
        .microseconds(50), .microseconds(100), .microseconds(250), .microseconds(500), .milliseconds(1),
        .microseconds(2500), .milliseconds(5), .milliseconds(10), .milliseconds(25), .milliseconds(50),
        .milliseconds(100), .milliseconds(250), .milliseconds(500), .seconds(1), .milliseconds(2500), .seconds(5),
        .seconds(10), .seconds(30), .seconds(60),
    ]

    /// How many calls there were in each class; in the last those beyond all bounds.
    public private(set) var counts = [UInt64](repeating: 0, count: bounds.count + 1)
    /// How long all together have taken.
    public private(set) var sum = Duration.zero

    mutating func add(_ duration: Duration) {
        counts[Self.bounds.firstIndex { duration <= $0 } ?? Self.bounds.count] += 1
        sum += duration
    }
}
