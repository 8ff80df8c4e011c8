#if Logging
import Logging
import MicroVM

/// What goes to a supervisor's logger.
struct SupervisorLog: Sendable {
    private let logger: Logger?

    init(_ configuration: SupervisorConfiguration) { logger = configuration.logger }

    func event(_ kind: SupervisorEvent.Kind, _ call: SupervisedCall) {
        guard let logger else { return }
        let level: Logger.Level
        switch kind {
        case .overdue: level = .warning
        case .faulted, .killed, .limitHit, .failed, .throttled: level = .info
        default: level = .debug
        }
        // Nothing is made of it where nobody reads it.
        guard level >= logger.logLevel else { return }
        var metadata: Logger.Metadata = [
            "call.id": .string(call.id.description), "call.module": .string(call.request.module.printable),
            "call.function": .string(call.request.function.printable),
        ]
        if let detail = kind.detail { metadata["detail"] = .string(detail.printable) }
        logger.log(level: level, "call \(kind.name)", metadata: metadata)
    }

    func shutDown(_ report: ShutdownReport) {
        guard let logger else { return }
        logger.notice(
            "The supervisor has shut down.",
            metadata: [
                "calls": .stringConvertible(report.calls),
                "killed": .string(report.killed.map(\.id.description).joined(separator: " ")),
            ]
        )
    }
}
#else
/// What goes to a supervisor's logger: nothing without the trait Logging.
struct SupervisorLog: Sendable {
    init(_ configuration: SupervisorConfiguration) {}

    func event(_ kind: SupervisorEvent.Kind, _ call: SupervisedCall) {}
    func shutDown(_ report: ShutdownReport) {}
}
#endif
