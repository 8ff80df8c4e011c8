import MicroVM
import Synchronization

/// One run of a guest function, from the making of its sandbox to its end.
struct GuestRun: Sendable {
    var module: GuestModule
    var function: String
    var arguments: [any GuestValue]
    var returns: ResultType
    var memory: MemoryPlan
    /// For initialisers and call together.
    var timeLimit: Duration?
    /// Whether standard output is wanted for something else than what the guest writes there.
    var keepsStandardOutputFree: Bool

    func ending() async -> RunEnding {
        let clock = ContinuousClock()
        let began = Mutex<ContinuousClock.Instant?>(nil)
        func elapsed() -> Duration { began.withLock { $0 }.map { $0.duration(to: clock.now) } ?? .zero }
        do {
            let sandbox = try await Sandbox(module, configuration: configuration) { _ in
                began.withLock { $0 = clock.now }
            }
            // What the initialisers have left of the limit; a call without time ends as one that has used it up.
            let rest = timeLimit.map { max($0 - elapsed(), .microseconds(1)) }
            let result = try await GuestResult.call(sandbox, function, arguments, returning: returns, timeLimit: rest)
            return .returned(result, elapsed())
        } catch {
            return RunEnding(error, after: elapsed())
        }
    }

    private var configuration: SandboxConfiguration {
        var configuration = SandboxConfiguration()
        configuration.memoryLimit = memory.memory
        configuration.stackSize = memory.stack
        configuration.argumentArenaSize = memory.arena
        configuration.initializerTimeLimit = timeLimit
        let output: StandardStream = keepsStandardOutputFree ? .error : .output
        configuration.output = .handler { stream, bytes in
            (stream == .standardOutput ? output : .error).write(bytes)
        }
        return configuration
    }
}
