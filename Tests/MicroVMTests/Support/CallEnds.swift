import Glibc
import Testing

@testable import MicroVM

/// What ``KillSwitch/terminate()`` answered.
typealias KillAnswer = Result<KillSuccess, KillError>

extension KillSwitch {
    func answer() -> KillAnswer { KillAnswer { () throws(KillError) in try terminate() } }
}

extension Flag {
    /// Waits on a thread that may block.
    func block() { while !isSet { usleep(100) } }
}

extension Shared {
    /// The value, as soon as there is one; on a thread that may block.
    func block() -> Value {
        while true {
            if let value { return value }
            usleep(100)
        }
    }
}

/// How a call ended, without the result.
enum CallEnd: Sendable {
    case returned
    case threw(any Error)

    init(_ body: () async throws -> Void) async {
        do {
            try await body()
            self = .returned
        } catch {
            self = .threw(error)
        }
    }

    init<Result: Sendable>(_ call: GuestCall<Result>) async { await self.init { _ = try await call.result } }

    var hasReturned: Bool { if case .returned = self { true } else { false } }
    var error: (any Error)? { if case .threw(let error) = self { error } else { nil } }
    var sandboxError: SandboxError? { error as? SandboxError }
    /// The code of the library's own errors; nothing for a call that returned, or a host function's error.
    var code: SandboxError.Code? { sandboxError?.code }
}

/// Whether the sandbox refuses further calls.
func isPoisoned(_ sandbox: Sandbox, _ function: String = "answer") async -> Bool {
    await CallEnd { let _: Int = try await sandbox.call(function) }.code == .poisoned
}

/// Three words of guest memory that the guest nested.c leaves its traces in.
struct Traces: Sendable {
    let words: [SharedWord]

    init(in sandbox: Sandbox) async throws {
        var words: [SharedWord] = []
        for index in 0..<3 {
            let word = try await SharedWord(of: sandbox, index: index)
            word.value = 0
            words.append(word)
        }
        self.words = words
    }

    var address: UInt64 { words[0].address }
    /// Whether the innermost call does what it was told to.
    var isAtWork: Bool { words[0].value == 1 }
    /// How many times guest code ran on behind a host call.
    var after: UInt64 { words[1].value }
    /// How many times guest code was begun.
    var before: UInt64 { words[2].value }
}

#if SYNCHRONIZATION_POINTS
extension LinuxInterruptHandle {
    /// Holds the virtual CPU's thread still where it gets to `point` for the `occurrence`th time from now on, until
    /// another thread has done something, or has only asked for the end of the call: a kick needs the held thread to go
    /// on.
    func once(at point: SynchronizationPoint, occurrence: Int = 1, _ deed: @escaping @Sendable () -> Void) {
        let requested = Flag()
        let count = Counter()
        points.set(.requested) { requested.set() }
        points.set(point) {
            guard count.next() == occurrence else { return }
            let done = Flag()
            startThread {
                deed()
                done.set()
            }
            while !done.isSet, !requested.isSet { usleep(100) }
        }
    }
}
#endif
