#if Logging
import Logging

/// What goes to a pool's logger, which is that of its sandboxes.
struct SandboxPoolLog: Sendable {
    private let logger: Logger?

    init(_ configuration: SandboxConfiguration, pool: String) {
        var logger = configuration.logger
        logger?[metadataKey: "pool"] = .string(pool)
        self.logger = logger
    }

    func made(_ size: ClosedRange<Int>) {
        logger?.debug(
            "The pool has been made.",
            metadata: ["minimum": .stringConvertible(size.lowerBound), "maximum": .stringConvertible(size.upperBound)]
        )
    }

    func resized(_ size: ClosedRange<Int>) {
        logger?.debug(
            "The pool has a new size.",
            metadata: ["minimum": .stringConvertible(size.lowerBound), "maximum": .stringConvertible(size.upperBound)]
        )
    }

    func isExhausted(_ reason: String) {
        logger?.warning("The pool turns callers away.", metadata: ["reason": .string(reason)])
    }

    func returned(killed: Bool, poisoned: Bool) {
        guard killed || poisoned else { return }
        logger?.debug(
            "A sandbox came back in the middle of a call, or poisoned.",
            metadata: ["killed": .stringConvertible(killed), "poisoned": .stringConvertible(poisoned)]
        )
    }

    func restoreFailed(_ error: any Error) {
        logger?.warning(
            "A sandbox is closed because it cannot be restored.",
            metadata: ["error": .string(HarmlessText.text(String(describing: error), limit: 1024))]
        )
    }

    func makingFailed(_ error: any Error) {
        logger?.warning(
            "A sandbox cannot be made.",
            metadata: ["error": .string(HarmlessText.text(String(describing: error), limit: 1024))]
        )
    }

    func shutsDown() { logger?.debug("The pool shuts down.") }
}
#else
/// What goes to a pool's logger: nothing without the trait Logging.
struct SandboxPoolLog: Sendable {
    init(_ configuration: SandboxConfiguration, pool: String) {}

    func made(_ size: ClosedRange<Int>) {}
    func resized(_ size: ClosedRange<Int>) {}
    func isExhausted(_ reason: String) {}
    func returned(killed: Bool, poisoned: Bool) {}
    func restoreFailed(_ error: any Error) {}
    func makingFailed(_ error: any Error) {}
    func shutsDown() {}
}
#endif
