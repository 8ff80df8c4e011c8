import MicroVM
import Synchronization

/// What one sandbox's tests say and report, one test after the other.
final class GuestTestRecord: Sendable {
    /// How many failed checks of one test are kept.
    static let mostChecks = 100

    struct Contents: Sendable {
        var output = GuestTestOutput()
        var checks: [GuestCheckFailure] = []
        var omittedCheckCount = 0
    }

    /// What ends a test from inside: the guest is left for good in the middle of the host call.
    enum End: Error {
        case requirement
        case skip(reason: String)
    }

    private let contents = Mutex(Contents())

    /// What has come since the last time, or the beginning.
    func take() -> Contents {
        contents.withLock { contents in
            defer { contents = Contents() }
            return contents
        }
    }

    /// Where a guest's output goes.
    var output: SandboxConfiguration.Output {
        .handler { [self] _, bytes in contents.withLock { $0.output.append(bytes) } }
    }

    /// The imports of `microvm_test.h`. They are weak, so that a module of tests can be loaded by everybody.
    var hostFunctions: [HostFunction] {
        [
            HostFunction("microvm_test_failed") {
                [self] (context: HostCallContext, file: GuestBuffer, line: UInt32, message: GuestBuffer, isLast: Bool)
                    throws -> Void in
                let failure = GuestCheckFailure(
                    file: Self.text(file, context),
                    line: Int(line),
                    message: Self.text(message, context)
                )
                contents.withLock { contents in
                    if contents.checks.count < Self.mostChecks {
                        contents.checks.append(failure)
                    } else {
                        contents.omittedCheckCount += 1
                    }
                }
                if isLast { throw End.requirement }
            },
            HostFunction("microvm_test_skipped") { (context: HostCallContext, reason: GuestBuffer) throws -> Void in
                throw End.skip(reason: Self.text(reason, context))
            },
        ]
        .map(\.ofLibrary)
    }

    /// The beginning of a text, whatever its length.
    private static func text(_ buffer: GuestBuffer, _ context: HostCallContext) -> String {
        let count = min(buffer.count, UInt64(GuestCheckFailure.longestText))
        guard let bytes = try? context.memory.load(GuestBuffer(address: buffer.address, count: count)) else {
            return "(not in the guest's memory)"
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
