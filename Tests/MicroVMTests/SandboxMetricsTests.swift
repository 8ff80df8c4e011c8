#if Metrics
import Metrics
import MetricsTestKit
import Testing

@testable import MicroVM

/// What sandboxes count through swift-metrics.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct SandboxMetricsTests {
    private struct OwnError: Error {}

    private let metrics = TestMetrics()
    private let configuration: SandboxConfiguration

    init() {
        var configuration = SandboxConfiguration()
        configuration.metrics = SandboxMetrics(dimensions: [("service", "test")], factory: metrics)
        // Exits are counted.
        configuration.polling = .never
        self.configuration = configuration
    }

    private func sandbox(_ guest: Guest, _ hostFunctions: [HostFunction] = []) async throws -> Sandbox {
        try await Sandbox(guest.module(), hostFunctions: hostFunctions, configuration: configuration)
    }

    private func count(_ label: String, _ dimension: (String, String)? = nil) -> Int64 {
        metrics.counterTotal(
            label: "microvm." + label,
            dimensions: (dimension.map { [$0] } ?? []) + [("service", "test")]
        )
    }

    private var durations: Int { metrics.timers(label: "microvm.call_duration").flatMap(\.values).count }

    @Test func `calls, exits and host calls are counted when a call is over`() async throws {
        let sandbox = try await sandbox(.hostCalls, hostFunctions())
        for _ in 0..<5 { #expect(try await sandbox.call("add_in_a_loop", 3 as Int64) == 3 as Int64) }
        #expect(count("calls", ("outcome", "returned")) == 5 && durations == 5)
        #expect(count("host_calls") == 15 && count("nested_calls") == 0)
        #expect(count("exits", ("kind", "host_call")) == 15 && count("exits", ("kind", "return")) == 5)
        #expect(count("exits", ("kind", "other")) == 0)
        #expect(metrics.timers(label: "microvm.call_duration").flatMap(\.values).allSatisfy { $0 > 0 })
    }

    @Test func `nested calls are counted as what they are`() async throws {
        let descend = HostFunction("host_descend") { (context: HostCallContext, depth: Int64) throws -> Int64 in
            try context.call("descend", depth)
        }
        let sandbox = try await sandbox(.hostCalls, hostFunctions(descend))
        #expect(try await sandbox.call("descend", 4 as Int64) == 4 as Int64)
        #expect(count("calls", ("outcome", "returned")) == 1 && count("nested_calls") == 4)
        #expect(count("exits", ("kind", "return")) == 5 && count("exits", ("kind", "host_call")) == 4)
    }

    @Test func `a fault is counted by its kind`() async throws {
        for _ in 0..<2 {
            let sandbox = try await sandbox(.logging, [HostFunction("host_event") { (_: Int64) in }])
            await #expect(throws: SandboxError.self) { try await sandbox.call("trap") }
        }
        #expect(count("calls", ("outcome", "faulted")) == 2 && count("faults", ("kind", "invalidInstruction")) == 2)
        #expect(count("exits", ("kind", "other")) == 2 && count("calls", ("outcome", "returned")) == 0)
        #expect(metrics.counters(label: "microvm.faults").count == GuestFault.Kind.allCases.count)
    }

    @Test func `a kill is counted by its reason`() async throws {
        let killed = try await SpinningGuest(in: sandbox(.spin))
        #expect(await onThread { killed.handle.kill() } == .signalled)
        _ = await killed.call.value
        let spinning = try await sandbox(.spin)
        await #expect(throws: SandboxError.self) { try await spinning.call("spin", timeLimit: .milliseconds(5)) }
        let working = try await sandbox(.spin)
        await #expect(throws: SandboxError.self) { try await working.call("spin", cpuTimeLimit: .milliseconds(5)) }
        let cancelled = try await sandbox(.echo)
        let task = Task {
            await waitUntil { Task.isCancelled }
            await #expect(throws: SandboxError.self) { try await cancelled.call("add_to_static", 5) }
        }
        task.cancel()
        await task.value
        #expect(count("calls", ("outcome", "killed")) == 4)
        for reason in ["killed", "time_limit", "cpu_time_limit", "task_cancelled"] {
            #expect(count("kills", ("reason", reason)) == 1, "\(reason)")
        }
        // Only the first is known to have been in the guest by then.
        #expect(count("exits", ("kind", "interruption")) >= 1 && durations == 4)
    }

    @Test func `a call that fails otherwise is counted as one that failed`() async throws {
        let tick = HostFunction("host_tick") { () throws -> Void in throw OwnError() }
        let sandbox = try await sandbox(.hostCalls, hostFunctions(tick))
        await #expect(throws: OwnError.self) { try await sandbox.call("call_tick") }
        let tooLarge = try await Sandbox(
            Guest.echo.module(),
            configuration: { configuration in
                var configuration = configuration
                configuration.argumentArenaSize = 4096
                return configuration
            }(configuration)
        )
        let text = String(repeating: "x", count: 10_000)
        await #expect(throws: SandboxError.self) { _ = try await tooLarge.call("byte_length", text) as Int }
        #expect(count("calls", ("outcome", "failed")) == 2 && count("calls", ("outcome", "returned")) == 0)
        // A call that never began is none.
        await expectPoisoned(sandbox, "call_tick")
        #expect(count("calls", ("outcome", "failed")) == 2)
    }

    @Test func `open sandboxes are counted`() async throws {
        let sandboxes = try #require(metrics.meters(label: "microvm.sandboxes").first)
        let first = try await sandbox(.hello)
        let second = try await sandbox(.hello)
        #expect(sandboxes.lastValue == 2)
        await first.close()
        #expect(sandboxes.lastValue == 1)
        await second.close()
        #expect(sandboxes.lastValue == 0)
    }

    @Test func `a pool counts where its sandboxes do`() async throws {
        let pool = try await SandboxPool(
            Guest.hello.module(),
            configuration: configuration,
            size: 1...2,
            // One may still be on its way back.
            maximumWaiters: 2,
            name: "plugins"
        )
        for _ in 0..<3 { #expect(try await pool.withSandbox { try await $0.call("answer") } == 42) }
        _ = await pool.settled()
        #expect(metrics.counterTotal(label: "microvm.pool.restores", dimensions: [("pool", "plugins")]) == 3)
        #expect(count("calls", ("outcome", "returned")) == 3)
    }

    @Test func `no metric is made after the first ones, whatever happens`() async throws {
        let before = metrics.counters.count + metrics.timers.count + metrics.meters.count
        for guest in [Guest.hello, .spin] {
            let sandbox = try await sandbox(guest)
            _ = try? await sandbox.call("answer") as Int
            _ = try? await sandbox.call("spin", timeLimit: .milliseconds(1))
            await sandbox.close()
        }
        #expect(metrics.counters.count + metrics.timers.count + metrics.meters.count == before)
    }
}
#endif
