import Synchronization

/// How a call has ended.
enum CallOutcome {
    case returned
    case faulted(GuestFault)
    case interrupted(CallState.Reason)
    /// By an error of a host function or of the host itself, or by values that cannot be passed.
    case failed

    /// As attributes and dimensions spell it.
    var name: String {
        switch self {
        case .returned: "returned"
        case .faulted: "faulted"
        case .interrupted(let reason): reason.name
        case .failed: "failed"
        }
    }
}

extension CallState.Reason {
    /// As attributes and dimensions spell it.
    var name: String {
        switch self {
        case .killed: "killed"
        case .taskCancelled: "task_cancelled"
        case .timeLimit: "time_limit"
        case .cpuTimeLimit: "cpu_time_limit"
        case .confinement: "confinement"
        }
    }
}

/// What a sandbox tells those who watch it, through a logger, metrics and a tracer. There is none where nobody watches:
/// then a call costs a look at a nil where it begins, where it ends, and at each of its host calls.
///
/// Used by whoever makes the sandbox, and then on the virtual CPU's thread only. Goes with the run loop.
final class SandboxObserver {
    private let log: SandboxLog?
    private let metrics: SandboxMetrics?
    private var trace: SandboxTrace?
    /// How the call under way ends, once it is known that it does not return, and with what.
    private var end: (outcome: CallOutcome, error: any Error)?
    /// The function that the call under way began with.
    private var function: String?
    /// The names of functions by their addresses, so that each is made once: at most so many.
    private var functionNames: [UInt64: String] = [:]
    private static let functionNamesMaximum = 256

    private static let count = Atomic<UInt64>(0)

    /// Nothing where nobody watches.
    init?(_ module: GuestModule, _ configuration: SandboxConfiguration) {
        guard configuration.isObserved else { return nil }
        // A number need only be another one each time.
        let number = Self.count.wrappingAdd(1, ordering: .relaxed).newValue
        let moduleName = HarmlessText.name(module.name)
        let sandbox = "\(moduleName)#\(number)"
        log = SandboxLog(configuration, sandbox: sandbox)
        metrics = SandboxMetrics.of(configuration)
        trace = SandboxTrace(configuration, sandbox: sandbox, module: moduleName)
        log?.made()
        metrics?.made()
    }

    deinit {
        log?.closed()
        metrics?.closed()
    }

    // MARK: - Calls

    /// A call begins, if it has not done so with an earlier one of several functions.
    func callBegins(_ runLoop: RunLoop) {
        guard function == nil else { return }
        let name = runLoop.isInitializing ? "initializers" : name(of: runLoop.calledFunction, runLoop)
        function = name
        trace?.beginCall(name)
    }

    /// It is known what the call under way ends with. The first such news counts.
    func callEnds(_ outcome: CallOutcome, _ error: any Error) {
        if end == nil { end = (outcome, error) }
    }

    /// An error of the host's own ends the call under way.
    func callFails(_ hostFunction: String?, _ error: any Error, call number: UInt64) {
        guard end == nil else { return }
        callEnds(.failed, error)
        inContext { log?.callFails(hostFunction, error, SandboxLog.Place(call: number, function: function)) }
    }

    func callEnded(_ number: UInt64, _ meter: CallMeter) {
        let end = end
        let outcome = end?.outcome ?? .returned
        inContext { log?.callEnded(outcome, end?.error, meter, SandboxLog.Place(call: number, function: function)) }
        metrics?.callEnded(outcome, meter)
        trace?.endCall(number, outcome, end?.error, meter)
        (self.end, function) = (nil, nil)
    }

    /// Whether host calls and nested calls are to be wrapped.
    var isTracing: Bool { trace != nil }

    /// Runs a host function as a part of the call under way.
    func traceHostCall(_ name: String, _ body: () throws -> Void) throws {
        try SandboxTrace.withSpan(trace?.beginHostCall(name), body)
    }

    /// Runs a nested call as a part of whatever the host function is doing.
    func traceNestedCall(_ runLoop: RunLoop, _ function: UInt64, _ body: () throws -> Void) throws {
        trace?.beginNestedCall(name(of: function, runLoop))
        do {
            try body()
            trace?.endNestedCall(nil)
        } catch {
            trace?.endNestedCall(error)
            throw error
        }
    }

    private func name(of function: UInt64, _ runLoop: RunLoop) -> String {
        if let name = functionNames[function] { return name }
        let symbol = runLoop.symbol(at: function)
        let name = HarmlessText.name(symbol?.name ?? "0x" + String(function, radix: 16))
        if functionNames.count < Self.functionNamesMaximum { functionNames[function] = name }
        return name
    }

    // MARK: - All else

    func restored(_ pages: RestoredPages) { log?.restored(pages) }
    func restoreFailed(_ error: any Error) { log?.restoreFailed(error) }

    /// How many bytes of a line are wanted; nothing where the line is not, for its level or for its coming too soon.
    func wantedLength(ofGuestLineAt level: GuestLogLevel) -> Int? { log?.wantedLength(ofGuestLineAt: level) }

    /// Logs what a guest says.
    ///
    /// - Parameter isCut: whether the line went on.
    func guestLogs(_ level: GuestLogLevel, _ line: [UInt8], isCut: Bool, call number: UInt64) {
        let text = HarmlessText.text(line, isCut: isCut) + (isCut ? "…" : "")
        inContext { log?.guestLogs(level, text, SandboxLog.Place(call: number, function: function)) }
    }

    /// Does something with the span of the call under way as the current one, for what loggers add of their own.
    private func inContext(_ body: () -> Void) {
        if let trace { trace.inContext(body) } else { body() }
    }
}
