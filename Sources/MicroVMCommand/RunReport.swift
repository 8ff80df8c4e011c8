import ArgumentParser
import MicroVM

/// How a run ended, as one JSON object.
struct RunReport: Encodable {
    /// The ways in which a run ends.
    enum Outcome: String, Encodable {
        case returned, fault, abort, timeLimitExceeded, cpuTimeLimitExceeded, interrupted, killed, error
    }

    /// Where a call was when it was ended from outside.
    struct Interruption: Encodable {
        var instructionPointer: String
        var symbol: FaultReport.Place?
        var hostFunction: String?
        var registers: [String: String]
        var backtrace: BacktraceReport
    }

    /// What was wrong before or after the guest ran.
    struct Problem: Encodable {
        var code: String
        var message: String
    }

    var module: String
    var function: String
    var returns: String
    var outcome: Outcome
    var exitStatus: Int32
    var result: GuestResult?
    /// How long the guest was at work, initialisers included.
    var durationMicroseconds: Double?
    var fault: FaultReport?
    var interruption: Interruption?
    /// Where one was asked for and the guest was ended.
    var coreDump: CoreDumpReport?
    var error: Problem?
    /// What the call had cost, where that was asked for and there was one.
    var statistics: StatisticsReport?

    /// The end for people, for standard error; empty when the function returned.
    private(set) var text = ""

    private enum CodingKeys: String, CodingKey {
        case module, function, returns, outcome, exitStatus, result, durationMicroseconds, fault, interruption, error
        case statistics, coreDump
    }

    init(
        _ ending: RunEnding,
        module: String,
        function: String,
        returns: ResultType,
        statistics: CallStatistics? = nil
    ) {
        self.module = module
        self.function = function
        self.returns = returns.name
        self.statistics = statistics.map(StatisticsReport.init)
        switch ending {
        case .returned(let result, let duration):
            (outcome, exitStatus) = (.returned, ExitStatus.success.rawValue)
            self.result = result
            durationMicroseconds = TimeSpan(duration).microseconds
        case .fault(let fault, let duration, let coreDump):
            let isAbort = fault.kind == .abort
            outcome = isAbort ? .abort : .fault
            exitStatus = (isAbort ? ExitStatus.abort : .fault).rawValue
            self.fault = FaultReport(fault)
            durationMicroseconds = TimeSpan(duration).microseconds
            self.coreDump = coreDump
            text = FaultReport.text(fault) + (coreDump.map { $0.line + "\n" } ?? "")
        case .ended(let cause, let interruption, let duration, let coreDump):
            let what: String
            let status: ExitStatus
            (outcome, what, status) =
                switch cause {
                case .timeLimit: (.timeLimitExceeded, "Time limit exceeded", .timeLimit)
                case .cpuTimeLimit: (.cpuTimeLimitExceeded, "CPU limit exceeded", .timeLimit)
                case .interruption: (.interrupted, "Interrupted", .interrupted)
                case .kill: (.killed, "Killed", .interrupted)
                }
            exitStatus = status.rawValue
            durationMicroseconds = TimeSpan(duration).microseconds
            self.interruption = interruption.map {
                Interruption(
                    instructionPointer: $0.instructionPointer.hexadecimal,
                    symbol: $0.symbol.map(FaultReport.Place.init),
                    hostFunction: $0.hostFunction,
                    registers: RegisterTable($0.registers).byName,
                    backtrace: BacktraceReport($0.backtrace)
                )
            }
            var text = "\(what) after \(TimeSpan(duration))"
            if let interruption {
                text += ", at \(GuestPlace.text(interruption.symbol, interruption.instructionPointer))"
                if let function = interruption.hostFunction { text += ", in the host function \(function.printable)" }
            } else {
                text += ", before the guest began"
            }
            let backtrace = interruption.map { BacktraceReport.lines($0.backtrace) } ?? []
            self.coreDump = coreDump
            let lines = [text + "."] + backtrace.map { "  " + $0 } + (coreDump.map { [$0.line] } ?? [])
            self.text = lines.joined(separator: "\n") + "\n"
        case .failed(let failure):
            outcome = .error
            exitStatus = failure.status.rawValue
            error = Problem(code: failure.code, message: failure.message)
            text = "Error: \(failure.message)\n"
        }
    }
}
