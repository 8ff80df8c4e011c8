#if Logging
import Logging

/// What goes to a sandbox's logger: the life of the sandbox, calls that did not return, and what the guest says.
final class SandboxLog {
    /// What a line is about.
    struct Place {
        var call: UInt64
        var function: String?

        var metadata: Logger.Metadata {
            var metadata: Logger.Metadata = ["call": .stringConvertible(call)]
            if let function { metadata["function"] = .string(function) }
            return metadata
        }
    }

    private let logger: Logger
    private let limits: GuestLogLimits
    private let now: @Sendable () -> UInt64
    private var bucket: TokenBucket
    /// How many lines of the guest have come too soon, and nobody has been told of yet.
    private var suppressed: UInt64 = 0

    /// The bytes that are kept of an error's description, or of what a guest said when it aborted.
    private static let longestText = 1024

    /// Nothing where there is no logger.
    init?(_ configuration: SandboxConfiguration, sandbox: String) {
        guard var logger = configuration.logger else { return nil }
        logger[metadataKey: "sandbox"] = .string(sandbox)
        self.logger = logger
        limits = configuration.guestLogLimits
        now = configuration.guestLogClock
        bucket = TokenBucket(perSecond: limits.linesPerSecond, burst: limits.burst, now: now())
    }

    func made() { logger.debug("The sandbox has been made.") }
    func closed() { logger.debug("The sandbox has been closed.") }

    /// At once, and not at the call's end: the host functions around it may still have much to do.
    func callFails(_ hostFunction: String?, _ error: any Error, _ place: Place) {
        let message: Logger.Message =
            hostFunction == nil ? "A call failed." : "A host function failed, and the call with it."
        logger.warning(
            message,
            metadata: {
                var metadata = place.metadata
                if let hostFunction { metadata["host_function"] = .string(HarmlessText.name(hostFunction)) }
                metadata["error"] = Self.text(error)
                return metadata
            }()
        )
    }

    func callEnded(_ outcome: CallOutcome, _ error: (any Error)?, _ meter: CallMeter, _ place: @autoclosure () -> Place)
    {
        if suppressed > 0 { tellSuppressed(place()) }
        switch outcome {
        case .returned:
            logger.trace("The call has returned.", metadata: place().metadata.merging(Self.cost(meter)) { $1 })
        case .failed: break
        case .faulted(let fault):
            // Those that a guest cannot be blamed for.
            let isHosts = fault.kind == .hypervisor || fault.kind == .memoryUnavailable
            logger.log(
                level: isHosts ? .warning : .notice,
                "The guest faulted.",
                metadata: place().metadata.merging(Self.cost(meter)) { $1 }.merging(Self.metadata(fault)) { $1 }
            )
        case .interrupted(let reason):
            logger.notice(
                "The call was ended.",
                metadata: {
                    var metadata = place().metadata.merging(Self.cost(meter)) { $1 }
                    metadata["reason"] = .string(reason.name)
                    guard let interruption = (error as? SandboxError)?.interruption else { return metadata }
                    metadata["symbol"] = .string(HarmlessText.name(interruption.place))
                    metadata["host_function"] = interruption.hostFunction.map { .string(HarmlessText.name($0)) }
                    return metadata
                }()
            )
        }
    }

    private static func cost(_ meter: CallMeter) -> Logger.Metadata {
        [
            "duration": .stringConvertible(meter.duration), "exits": .stringConvertible(meter.exits),
            "host_calls": .stringConvertible(meter.hostCalls),
        ]
    }

    private static func metadata(_ fault: GuestFault) -> Logger.Metadata {
        func hexadecimal(_ value: UInt64) -> Logger.MetadataValue { .string("0x" + String(value, radix: 16)) }
        var metadata: Logger.Metadata = [
            "fault": .string(fault.kind.rawValue), "instruction": hexadecimal(fault.instructionPointer),
        ]
        metadata["symbol"] = fault.symbol.map { .string(HarmlessText.name($0.description)) }
        metadata["address"] = fault.address.map(hexadecimal)
        metadata["access"] = fault.access.map { .string($0.rawValue) }
        metadata["message"] = fault.message.map { .string(HarmlessText.text($0, limit: longestText)) }
        return metadata
    }

    private static func text(_ error: any Error) -> Logger.MetadataValue {
        .string(HarmlessText.text(String(describing: error), limit: longestText))
    }

    func restored(_ pages: RestoredPages) {
        guard pages.dropped > 0 else { return }
        logger.debug(
            "A restore has dropped pages.",
            metadata: [
                "pages_copied": .stringConvertible(pages.copied), "pages_dropped": .stringConvertible(pages.dropped),
            ]
        )
    }

    func restoreFailed(_ error: any Error) {
        logger.warning("A restore failed half way.", metadata: ["error": Self.text(error)])
    }

    // MARK: - What the guest says

    func wantedLength(ofGuestLineAt level: GuestLogLevel) -> Int? {
        guard logger.logLevel <= Logger.Level(level) else { return nil }
        guard bucket.take(now: now()) else {
            suppressed += 1
            return nil
        }
        return limits.maximumLength
    }

    func guestLogs(_ level: GuestLogLevel, _ text: String, _ place: Place) {
        if suppressed > 0 { tellSuppressed(place) }
        logger.log(level: Logger.Level(level), "\(text)", metadata: place.metadata, source: "guest")
    }

    private func tellSuppressed(_ place: Place) {
        var metadata = place.metadata
        metadata["suppressed"] = .stringConvertible(suppressed)
        suppressed = 0
        // Whoever hears the guest hears this as well.
        logger.log(level: max(.notice, logger.logLevel), "The guest logs faster than it may.", metadata: metadata)
    }
}

extension Logger.Level {
    fileprivate init(_ level: GuestLogLevel) {
        self =
            switch level {
            case .trace: .trace
            case .debug: .debug
            case .info: .info
            case .notice: .notice
            case .warning: .warning
            case .error: .error
            case .critical: .critical
            }
    }
}
#else
/// What goes to a sandbox's logger: nothing without the trait Logging.
final class SandboxLog {
    struct Place {
        var call: UInt64
        var function: String?
    }

    init?(_ configuration: SandboxConfiguration, sandbox: String) { nil }

    func made() {}
    func closed() {}
    func callFails(_ hostFunction: String?, _ error: any Error, _ place: Place) {}
    func callEnded(_ outcome: CallOutcome, _ error: (any Error)?, _ meter: CallMeter, _ place: @autoclosure () -> Place)
    {}
    func restored(_ pages: RestoredPages) {}
    func restoreFailed(_ error: any Error) {}
    func wantedLength(ofGuestLineAt level: GuestLogLevel) -> Int? { nil }
    func guestLogs(_ level: GuestLogLevel, _ text: String, _ place: Place) {}
}
#endif
