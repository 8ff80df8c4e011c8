/// How many requests one measurement takes: each is quick, and the tasks that make them have to be begun.
private let each = 50

/// Times requests that tasks make, each one after the other. A sample is the time between two answers.
///
/// The tasks are of the group's own, so that they run on no actor that they would have to come back to.
func requestTimes(
    _ count: Int,
    tasks: Int = 1,
    _ request: @escaping @Sendable () async throws -> Void
) async throws -> [UInt64] {
    // The first ones find cold memories.
    for _ in 0..<4 * tasks { try await request() }
    var times: [UInt64] = []
    for _ in 0..<max(count / each, 1) {
        let begin = now()
        try await withThrowingTaskGroup { group in
            for _ in 0..<tasks {
                group.addTask { for _ in 0..<each / tasks { try await request() } }
            }
            try await group.waitForAll()
        }
        let time = (now() - begin) / UInt64(each / tasks * tasks)
        times += Array(repeating: time, count: each)
    }
    return Array(times.prefix(count))
}
