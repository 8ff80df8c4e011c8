import MicroVM

/// What a call has cost, for people and for programs.
struct StatisticsReport: Encodable {
    var durationMicroseconds: Double
    var stoppedMicroseconds: Double
    var cpuTimeMicroseconds: Double?
    var exits: UInt64
    var hostCalls: UInt64
    var nestedCalls: UInt64
    var debugInterrupts: UInt64

    /// The same as lines for standard error.
    private(set) var text = ""

    private enum CodingKeys: String, CodingKey {
        case durationMicroseconds, stoppedMicroseconds, cpuTimeMicroseconds, exits, hostCalls, nestedCalls
        case debugInterrupts
    }

    init(_ statistics: CallStatistics) {
        durationMicroseconds = TimeSpan(statistics.duration).microseconds
        stoppedMicroseconds = TimeSpan(statistics.stoppedDuration).microseconds
        cpuTimeMicroseconds = statistics.cpuTime.map { TimeSpan($0).microseconds }
        exits = statistics.exits
        hostCalls = statistics.hostCalls
        nestedCalls = statistics.nestedCalls
        debugInterrupts = statistics.debugInterrupts
        let rows = [
            ["  duration", TimeSpan(statistics.duration).description],
            ["  stopped", TimeSpan(statistics.stoppedDuration).description],
            ["  CPU time", statistics.cpuTime.map { TimeSpan($0).description } ?? "not measured"],
            ["  exits", "\(exits)"],
            ["  host calls", "\(hostCalls)"],
            ["  nested calls", "\(nestedCalls)"],
            ["  debug interrupts", "\(debugInterrupts)"],
        ]
        text = (["Statistics"] + TextTable.lines(rows)).joined(separator: "\n") + "\n"
    }
}
