import MicroVM
import Synchronization

/// Runs a built-in guest and measures how long calls take.
struct SelfTest: Sendable {
    /// One call of a guest function from the sandbox's own thread: the median.
    var guestCall: Duration
    /// One call of a guest function from elsewhere, where the guest may poll for it: the median.
    var polledCall: Duration
    /// How often such calls have found the guest polling.
    var polling: PollingStatistics
    /// From one host call to the next in a guest that does nothing else: the median.
    var hostCall: Duration
    /// Making the sandbox, until its first call has returned.
    var coldStart: Duration
    /// What the guest found in XCR0.
    var extendedState: UInt64

    private static let warmUp = 100
    private static let count = 2_000

    static func run() async throws -> SelfTest {
        let clock = ContinuousClock()
        let module = try GuestModule(SelfTestModule.bytes, name: "self-test")
        // What is found out once in a process is not part of a cold start.
        _ = try HostSupport()
        let moments = Mutex<[ContinuousClock.Instant]>([])
        moments.withLock { $0.reserveCapacity(warmUp + count + 1) }

        let began = clock.now
        var configuration = SandboxConfiguration()
        configuration.polling = .never
        let sandbox = try await Sandbox(
            module,
            hostFunctions: [HostFunction("host") { moments.withLock { $0.append(clock.now) } }],
            configuration: configuration
        )
        let sum: Int = try await sandbox.call("add", 40, 2)
        let coldStart = began.duration(to: clock.now)
        guard sum == 42 else { throw CommandFailure(.unavailable, "selfTestFailed", "The guest says 40 + 2 = \(sum).") }

        let guestCall = try await sandbox.run { try await callDuration($0) }

        try await sandbox.call("call_host", warmUp + count + 1)
        let hostCalls = moments.withLock { moments in
            zip(moments, moments.dropFirst()).map { $0.duration(to: $1) }
        }
        guard hostCalls.count == warmUp + count else {
            throw CommandFailure(.unavailable, "selfTestFailed", "Host calls were lost: \(hostCalls.count) came.")
        }
        let extendedState: UInt64 = try await sandbox.call("extended_state")
        let polled = try await polledCalls(module)
        return SelfTest(
            guestCall: guestCall,
            polledCall: polled.duration,
            polling: polled.statistics,
            hostCall: median(Array(hostCalls.dropFirst(warmUp))),
            coldStart: coldStart,
            extendedState: extendedState
        )
    }

    private static func polledCalls(
        _ module: GuestModule
    ) async throws -> (duration: Duration, statistics: PollingStatistics) {
        let sandbox = try await Sandbox(module, hostFunctions: [HostFunction("host") {}])
        return (try await callDuration(sandbox), sandbox.pollingStatistics)
    }

    /// One call, made from wherever this is called: the median.
    private static func callDuration(_ sandbox: Sandbox) async throws -> Duration {
        let add = try sandbox.function("add", as: ((Int, Int) -> Int).self)
        let clock = ContinuousClock()
        var durations: [Duration] = []
        durations.reserveCapacity(count)
        for round in 0..<warmUp + count {
            let start = clock.now
            guard try await add(round, 1) == round + 1 else {
                throw CommandFailure(.unavailable, "selfTestFailed", "The guest cannot add \(round) and 1.")
            }
            if round >= warmUp { durations.append(start.duration(to: clock.now)) }
        }
        return median(durations)
    }

    private static func median(_ durations: [Duration]) -> Duration { durations.sorted()[durations.count / 2] }
}
