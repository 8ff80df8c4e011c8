import MicroVM
import Synchronization
import Testing

@testable import MicroVMSupervisor

/// How supervisors, and modules, end.
@Suite(.requiresKVM, .timeLimit(.minutes(2))) struct ShutdownTests {
    @Test func `a shutdown lets calls end, kills the rest, and says which`() async throws {
        let supervisor = try await Supervisor.forTests(pool: 0...2)
        let short = try await supervisor.start(
            CallRequest(module: "spin", function: "spin_for", arguments: [.u64(20_000_000)])
        )
        let spinning = try await supervisor.startSpinning()
        let waiting = try await supervisor.startAnswering()
        let stopped = try await supervisor.startAnswering()
        try await supervisor.stop(stopped)
        let report = await supervisor.shutDown(drainTime: .milliseconds(500))
        #expect(report.calls == 4)
        #expect(report.killed.map(\.id) == [spinning, stopped])
        #expect(try await supervisor.status(of: short).killer == nil)
        #expect(try await supervisor.status(of: waiting).value == .i64(42))
        #expect(try await supervisor.status(of: spinning).killer == .shutdown)
        await #expect(performing: { try await supervisor.startAnswering() }, throws: hasCode(.unknownModule))
        await #expect(
            performing: { try await supervisor.register(guestModule("spin"), as: "spin") },
            throws: hasCode(.shuttingDown)
        )
        // Once more does no harm.
        #expect(await supervisor.shutDown().killed.isEmpty)
    }

    @Test func `nothing is accepted while calls are drained`() async throws {
        let supervisor = try await Supervisor.forTests()
        let spinning = try await supervisor.startSpinning()
        let shutDown = Task { await supervisor.shutDown(drainTime: .seconds(1000)) }
        await waitUntil { await supervisor.statistics.isShuttingDown }
        await #expect(performing: { try await supervisor.startAnswering() }, throws: hasCode(.shuttingDown))
        shutDown.cancel()
        #expect(await shutDown.value.killed.map(\.id) == [spinning])
    }

    @Test func `events end with the supervisor's shutdown`() async throws {
        let supervisor = try await Supervisor.forTests()
        let events = supervisor.events()
        let reader = Task {
            var count = 0
            for await _ in events { count += 1 }
            return count
        }
        _ = try await supervisor.wait(for: supervisor.startAnswering())
        await supervisor.shutDown()
        #expect(await reader.value >= 3)
        for await _ in supervisor.events() { Issue.record("An event after the shutdown") }
    }

    @Test func `a replaced module's calls go on, and a removed one's can be killed`() async throws {
        let supervisor = try await Supervisor.forTests()
        let old = try await supervisor.startSpinning()
        await #expect(
            performing: { try await supervisor.register(guestModule("hello"), as: "spin") },
            throws: hasCode(.moduleExists)
        )
        try await supervisor.register(guestModule("hello"), as: "spin", replacing: true)
        #expect(try await supervisor.status(of: old).state == .running)
        let new = try await supervisor.start(CallRequest(module: "spin", function: "hello"))
        #expect(try await supervisor.wait(for: new).value == .i64(22))
        try await supervisor.kill(old)
        _ = try await supervisor.wait(for: old)
        #expect(await supervisor.hasRetiredModules == false)
        let other = try await supervisor.start(
            CallRequest(module: "faults", function: "read_address", arguments: [.u64(16)], returns: .u64)
        )
        _ = try await supervisor.wait(for: other)
        try await supervisor.unregister("echo")
        await #expect(performing: { try await supervisor.unregister("echo") }, throws: hasCode(.unknownModule))
        try await supervisor.register(guestModule("spin"), as: "again")
        let spinning = try await supervisor.start(CallRequest(module: "again", function: "spin", returns: .void))
        try await supervisor.unregister("again", killing: true)
        #expect(try await supervisor.wait(for: spinning).killer == .removal)
        #expect(await supervisor.moduleList().map(\.name) == ["faults", "hello", "spin"])
    }

    @Test(arguments: ["", ".", "..", "../x", "a/b", "a b", "é", String(repeating: "a", count: 65), "a\0b"])
    func `names that are none are refused`(_ name: String) async throws {
        let supervisor = Supervisor()
        await #expect(
            performing: { try await supervisor.register(guestModule("spin"), as: name) },
            throws: hasCode(.invalidRequest)
        )
    }

    @Test func `a recorder is told of every call, once at each end`() async throws {
        let recorder = Recorder()
        let supervisor = try await Supervisor.forTests(configure: {
            $0.recorder = recorder
            $0.firstCall = CallID(rawValue: 100)
        })
        let ids = try await (0..<20).asyncMap { _ in try await supervisor.startAnswering() }
        for id in ids { _ = try await supervisor.wait(for: id) }
        #expect(ids.first == CallID(rawValue: 100))
        #expect(recorder.accepted.map(\.id) == ids)
        #expect(Set(recorder.ended.map(\.id)) == Set(ids) && recorder.ended.count == 20)
        #expect(recorder.ended.allSatisfy { $0.value == .i64(42) })
    }

    @Test func `calls from many tasks, ended in many ways, leave nothing behind`() async throws {
        let supervisor = try await Supervisor.forTests(pool: 0...3, configure: { $0.maximumQueuedCalls = 20 })
        await withTaskGroup { group in
            for worker in 0..<6 {
                group.addTask {
                    for round in 0..<30 {
                        let function = (worker + round) % 3 == 0 ? "spin" : "answer"
                        let request = CallRequest(
                            module: "spin",
                            function: function,
                            returns: function == "spin" ? .void : .i64,
                            labels: ["tenant": "\(worker)"]
                        )
                        guard let id = try? await supervisor.start(request) else { continue }
                        if round % 4 == 1 { try? await supervisor.stop(id) }
                        if round % 5 == 2 { _ = try? await supervisor.inspect(id) }
                        if round % 4 == 1 { try? await supervisor.resume(id) }
                        if function == "spin" { try? await supervisor.kill(id) }
                        _ = try? await supervisor.wait(for: id)
                    }
                }
            }
        }
        let statistics = await supervisor.statistics
        let totals = statistics.totals
        #expect(statistics.running == 0 && statistics.queued == 0 && statistics.memory == 0)
        #expect(totals.accepted == totals.returned + totals.killed)
        #expect(await supervisor.list().isEmpty)
        let report = await supervisor.shutDown()
        #expect(report.calls == 0 && report.killed.isEmpty)
    }
}

private final class Recorder: CallRecorder {
    private let calls = Mutex<(accepted: [CallStatus], ended: [CallStatus])>(([], []))
    var accepted: [CallStatus] { calls.withLock { $0.accepted } }
    var ended: [CallStatus] { calls.withLock { $0.ended } }
    func accepted(_ call: CallStatus) { calls.withLock { $0.accepted.append(call) } }
    func ended(_ call: CallStatus) { calls.withLock { $0.ended.append(call) } }
}

extension Sequence {
    func asyncMap<Result>(_ body: (Element) async throws -> Result) async rethrows -> [Result] {
        var results: [Result] = []
        for element in self { results.append(try await body(element)) }
        return results
    }
}
