import AllocationCounter
import Testing

@testable import MicroVM

#if Logging
import Logging
#endif

/// Calls with integer arguments allocate nothing on the sandbox's thread, in either direction.
@Suite(
    .requiresKVM,
    .timeLimit(.minutes(5)),
    .enabled(if: allocations_are_counted(), "A sanitizer counts for itself.")
) struct AllocationTests {
    /// How many blocks a thousand runs of a body take, once whatever it needs has been made.
    private func allocations(
        _ sandbox: Sandbox,
        _ body: @Sendable (isolated Sandbox) async throws -> Void
    ) async throws -> UInt64 {
        try await sandbox.run { sandbox in
            for _ in 0..<100 { try await body(sandbox) }
            let before = allocation_count_of_thread()
            for _ in 0..<1000 { try await body(sandbox) }
            return allocation_count_of_thread() - before
        }
    }

    @Test func `the counter counts`() {
        let before = allocation_count_of_thread()
        let array = Array(repeating: 1, count: Int.random(in: 100...200))
        #expect(array.count >= 100)
        #expect(allocation_count_of_thread() > before)
    }

    @Test func `guest calls`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        let add = try sandbox.function("add", as: ((Int, Int) -> Int).self)
        let count = try await allocations(sandbox) { _ in _ = try await add(2, 3) }
        let byName = try await allocations(sandbox) { _ = try await $0.call("add", 2, 3, returning: Int.self) }
        let limited = try await allocations(sandbox) { _ in _ = try await add(2, 3, timeLimit: .seconds(60)) }
        #expect(count == 0 && byName == 0 && limited == 0)
    }

    @Test func `host calls`() async throws {
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions())
        let loop = try sandbox.function("add_in_a_loop", as: ((Int) -> Int).self)
        let one = try await allocations(sandbox) { _ in _ = try await loop(1) }
        let three = try await allocations(sandbox) { _ in _ = try await loop(3) }
        #expect(one == 0 && three == 0)
    }

    #if Logging
    @Test func `calls under a logger that wants nothing of them`() async throws {
        let log = LogRecorder()
        let events = HostFunction("host_event") { (_: Int64) in }
        for logger in [log.logger(.info), nil] {
            let sandbox = try await Guest.logging.sandbox([events]) { $0.logger = logger }
            let event = try sandbox.function("event_then_twice", as: ((Int64) -> Int64).self)
            let lines = try sandbox.function("log_same_line", as: ((Int32, Int) -> Void).self)
            let calls = try await allocations(sandbox) { _ in _ = try await event(2) }
            let said = try await allocations(sandbox) { _ in try await lines(1, 3) }
            #expect(calls == 0 && said == 0, "\(calls), \(said)")
        }
        #expect(log.lines.count == 0)
    }
    #endif
}
