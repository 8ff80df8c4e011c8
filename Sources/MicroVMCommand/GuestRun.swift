import MicroVM
import Synchronization
import SystemPackage

/// One run of a guest function, from the making of its sandbox to its end.
struct GuestRun: Sendable {
    var module: GuestModule
    var function: String
    var arguments: [any GuestValue]
    var returns: ResultType
    var memory: MemoryPlan
    /// For initialisers and call together.
    var timeLimit: Duration?
    /// In CPU time, for both together.
    var cpuTimeLimit: Duration?
    var debugger: DebuggerOptions?
    /// Where core dumps of faults and kills go.
    var coreDumpDirectory: FilePath?
    /// What the process leaves itself before the guest's first instruction.
    var confinement: CommandConfinement?
    /// Whether standard output is wanted for something else than what the guest writes there.
    var keepsStandardOutputFree: Bool

    /// Runs the initialisers and the function. The second value is what the last call had cost, if one had begun.
    func ending(_ control: RunControl) async -> (RunEnding, CallStatistics?) {
        let clock = ContinuousClock()
        let began = Mutex<ContinuousClock.Instant?>(nil)
        func elapsed() -> Duration { began.withLock { $0 }.map { $0.duration(to: clock.now) } ?? .zero }
        do {
            let server = Mutex<DebugServer?>(nil)
            defer { server.withLock { $0 }?.close() }
            let sandbox = try await Sandbox(module, configuration: configuration(control)) { sandbox in
                if let debugger {
                    let started = try debugger.start(for: sandbox)
                    server.withLock { $0 = started }
                }
                // The sandbox is there, and what it needs is open.
                try confinement?.apply()
                began.withLock { $0 = clock.now }
            }
            let spent = try await spentOnInitializers(sandbox)
            let (result, statistics) = try await GuestResult.call(
                sandbox,
                function,
                arguments,
                returning: returns,
                // A call without time ends as one that has used it up.
                timeLimit: timeLimit.map { max($0 - spent.time, .microseconds(1)) },
                cpuTimeLimit: cpuTimeLimit.map { max($0 - spent.cpuTime, .microseconds(1)) },
                began: control.call
            )
            let duration = elapsed()
            // Then a debugger is told that there is nothing left.
            if debugger != nil { await sandbox.close() }
            switch result {
            case .success(let result): return (.returned(result, duration), statistics)
            case .failure(let error):
                return (RunEnding(error, after: duration, isKilled: control.isKilled), statistics)
            }
        } catch {
            let ending = RunEnding(error, after: elapsed(), isKilled: control.isKilled)
            return (ending, (error as? SandboxError)?.statistics)
        }
    }

    /// What the initialisers have used up of the limits.
    private func spentOnInitializers(_ sandbox: Sandbox) async throws -> (time: Duration, cpuTime: Duration) {
        guard timeLimit != nil || cpuTimeLimit != nil, !module.initializers.isEmpty else { return (.zero, .zero) }
        // Those of the last call, which theirs was.
        let statistics = try await sandbox.pullFullState().statistics
        return (statistics.duration - statistics.stoppedDuration, statistics.cpuTime ?? .zero)
    }

    private func configuration(_ control: RunControl) -> SandboxConfiguration {
        var configuration = SandboxConfiguration()
        configuration.memoryLimit = memory.memory
        configuration.stackSize = memory.stack
        configuration.argumentArenaSize = memory.arena
        configuration.initializerTimeLimit = timeLimit
        configuration.initializerCPUTimeLimit = cpuTimeLimit
        configuration.measuresCPUTime = true
        configuration.sandboxSet = control.sandboxes
        #if Logging
        configuration.logger = GuestLogHandler.logger
        #endif
        if let coreDumpDirectory {
            var policy = CoreDumpPolicy(directory: coreDumpDirectory)
            policy.includesKills = true
            configuration.coreDumps = policy
        }
        let output: StandardStream = keepsStandardOutputFree ? .error : .output
        configuration.output = .handler { stream, bytes in
            (stream == .standardOutput ? output : .error).write(bytes)
        }
        return configuration
    }
}
