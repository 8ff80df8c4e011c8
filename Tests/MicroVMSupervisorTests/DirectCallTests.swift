import Dispatch
import MicroVM
import Synchronization
import Testing

@testable import MicroVMSupervisor

/// Calls that run in the task of whoever asks for them.
@Suite(.requiresKVM, .timeLimit(.minutes(2))) struct DirectCallTests {
    private enum Local { @TaskLocal static var name = "none" }

    /// What the workers of a test and those who disturb them share.
    private final class Shared: Sendable {
        let refused = Atomic<UInt64>(0)
        let isOver = Atomic<Bool>(false)
    }

    private static let answer = CallRequest(module: "spin", function: "answer")
    private static let spin = CallRequest(module: "spin", function: "spin", returns: .void)

    /// The one call that runs or waits, when it is there.
    private static func only(_ supervisor: Supervisor, in state: CallStatus.State) async -> CallID {
        while true {
            if let call = await supervisor.list().first(where: { $0.state == state }) { return call.id }
            try? await Task.sleep(for: .milliseconds(1))
        }
    }

    @Test func `a call's value is what is returned, and it is seen and remembered like any other`() async throws {
        let supervisor = try await Supervisor.forTests()
        let events = supervisor.events()
        let call = try await supervisor.call(Self.answer)
        #expect(call.value == .i64(42) && call.state == .finished && call.statistics?.cpuTime != nil)
        let (began, ended) = (try #require(call.began), try #require(call.ended))
        #expect(call.accepted <= began && began <= ended)
        #expect(await supervisor.list().isEmpty)
        #expect(await supervisor.finished().map(\.id) == [call.id])
        #expect(try await supervisor.wait(for: call.id).value == .i64(42))
        #expect(await supervisor.statistics.totals.returned == 1)
        var kinds: [SupervisorEvent.Kind] = []
        for await event in events where event.call == call.id {
            kinds.append(event.kind)
            if kinds.count == 3 { break }
        }
        #expect(kinds == [.queued, .started, .exited])
        let fault = try await supervisor.call(CallRequest(module: "faults", function: "read_null", returns: .void))
        if case .faulted = fault.outcome {} else { Issue.record("\(fault)") }
    }

    @Test func `a refused call throws`() async throws {
        let supervisor = try await Supervisor.forTests()
        await #expect(
            performing: { try await supervisor.call(CallRequest(module: "none", function: "answer")) },
            throws: hasCode(.unknownModule)
        )
        await supervisor.shutDown()
        await #expect(performing: { try await supervisor.call(Self.answer) }, throws: hasCode(.unknownModule))
    }

    @Test func `its host functions see the caller's values, and its output is its own`() async throws {
        let supervisor = try await Supervisor.forTests()
        let seen = Mutex<[String]>([])
        var settings = ModuleSettings()
        settings.hostFunctions = [
            HostFunction("host_note") { (number: UInt64) -> Int64 in
                seen.withLock { $0.append(Local.name) }
                return Int64(number)
            },
            HostFunction("host_wait") { (_: UInt64) -> Void in },
            HostFunction("host_nest") { (_: UInt64, _: Int64) -> Int64 in 0 },
            HostFunction("host_nest_later") { (_: UInt64, _: Int64) -> Int64 in 0 },
        ]
        try await supervisor.register(guestModule("interruption"), as: "interruption", settings: settings)
        let note = CallRequest(module: "interruption", function: "note", arguments: [.u64(5)])
        #expect(try await Local.$name.withValue("caller") { try await supervisor.call(note) }.value == .i64(5))
        #expect(seen.withLock { $0 } == ["caller"])
        for name in ["Ada", "Grace"] {
            let call = try await supervisor.call(
                CallRequest(module: "hello", function: "greet", arguments: [.string(name)], returns: .void)
            )
            let output = try await supervisor.output(of: call.id).pieces()
            #expect(String(decoding: output.pieces.flatMap(\.bytes), as: UTF8.self).contains(name))
            #expect(!output.mayGoOn)
        }
        // Of a call that has written nothing there is nothing, and no more comes.
        let silent = try await supervisor.output(of: supervisor.call(Self.answer).id)
        #expect(silent.pieces().pieces.isEmpty && !silent.pieces().mayGoOn && silent.written == 0)
        await silent.wait(beyond: 0)
    }

    @Test func `the executor that the supervisor is given runs it, as it does calls that are started`() async throws {
        let executor = CountingExecutor()
        let supervisor = try await Supervisor.forTests(configure: { $0.taskExecutor = executor })
        #expect(executor.jobs.load(ordering: .relaxed) == 0)
        #expect(try await supervisor.call(Self.answer).value == .i64(42))
        let jobs = executor.jobs.load(ordering: .relaxed)
        #expect(jobs > 0)
        #expect(try await supervisor.wait(for: supervisor.start(Self.answer)).value == .i64(42))
        #expect(executor.jobs.load(ordering: .relaxed) > jobs)
    }

    @Test func `it can be killed, held and inspected by others`() async throws {
        let supervisor = try await Supervisor.forTests(pool: 0...1)
        let running = Task { try await supervisor.call(Self.spin) }
        let id = await Self.only(supervisor, in: .running)
        #expect(try await supervisor.inspect(id).symbol?.name == "spin")
        try await supervisor.stop(id)
        #expect(try await supervisor.status(of: id).state == .stopped)
        // The next one waits for its turn, and is killed while it does.
        let waiting = Task { try await supervisor.call(Self.answer) }
        try await supervisor.kill(await Self.only(supervisor, in: .queued))
        let never = try await waiting.value
        #expect(never.killer == .request && never.began == nil && never.statistics == nil)
        let next = Task { try await supervisor.call(Self.answer) }
        _ = await Self.only(supervisor, in: .queued)
        try await supervisor.resume(id)
        try await supervisor.kill(id)
        #expect(try await running.value.killer == .request)
        #expect(try await next.value.value == .i64(42))
    }

    @Test func `its task's cancellation ends it, wherever it is`() async throws {
        let supervisor = try await Supervisor.forTests(pool: 0...1)
        let running = Task { try await supervisor.call(Self.spin) }
        _ = await Self.only(supervisor, in: .running)
        let waiting = Task { try await supervisor.call(Self.answer) }
        _ = await Self.only(supervisor, in: .queued)
        waiting.cancel()
        guard case .failed(let error)? = try await waiting.value.outcome else { return #expect(Bool(false)) }
        #expect(error is CancellationError)
        let cancelledBefore = Task {
            unsafe withUnsafeCurrentTask { unsafe $0?.cancel() }
            return try await supervisor.call(Self.answer)
        }
        guard case .failed? = try await cancelledBefore.value.outcome else { return #expect(Bool(false)) }
        running.cancel()
        guard case .failed(let failure)? = try await running.value.outcome else { return #expect(Bool(false)) }
        #expect((failure as? SandboxError)?.code == .taskCancelled)
        #expect(try await supervisor.call(Self.answer).value == .i64(42))
        let statistics = await supervisor.statistics
        #expect(statistics.running == 0 && statistics.queued == 0 && statistics.memory == 0)
        #expect(statistics.totals.failed == 3)
    }

    @Test func `a shutdown ends it, and the queue's limit refuses it`() async throws {
        let supervisor = try await Supervisor.forTests(pool: 0...1, configure: { $0.maximumQueuedCalls = 1 })
        let running = Task { try await supervisor.call(Self.spin) }
        _ = await Self.only(supervisor, in: .running)
        let waiting = Task { try await supervisor.call(Self.answer) }
        _ = await Self.only(supervisor, in: .queued)
        await #expect(performing: { try await supervisor.call(Self.answer) }, throws: hasCode(.queueFull))
        let report = await supervisor.shutDown(drainTime: .zero)
        #expect(report.killed.count == 2)
        #expect(try await running.value.killer == .shutdown)
        #expect(try await waiting.value.killer == .shutdown)
    }

    @Test func `many at the same time all get their turn, in which nothing ends for others`() async throws {
        let supervisor = try await Supervisor.forTests(pool: 0...2)
        let outcomes = try await withThrowingTaskGroup(of: [String: Int].self) { group in
            for worker in 0..<8 {
                group.addTask {
                    var outcomes: [String: Int] = [:]
                    for round in 0..<100 {
                        let task = Task { try await supervisor.call(worker < 4 ? Self.answer : Self.spin) }
                        if worker >= 4 {
                            try? await Task.sleep(for: .microseconds(round * 20))
                            task.cancel()
                        }
                        switch try await task.value.outcome {
                        case .returned(.i64(42))?: outcomes["returned", default: 0] += 1
                        case .failed?: outcomes["cancelled", default: 0] += 1
                        case let other: Issue.record("\(String(describing: other))")
                        }
                    }
                    return outcomes
                }
            }
            return try await group.reduce(into: [:]) { $0.merge($1, uniquingKeysWith: +) }
        }
        #expect(outcomes == ["returned": 400, "cancelled": 400])
        let statistics = await supervisor.statistics
        #expect(statistics.running == 0 && statistics.queued == 0 && statistics.memory == 0)
        #expect(statistics.totals.accepted == 800)
    }

    @Test func `calls that are killed, held and cancelled at every moment are each told of once`() async throws {
        let supervisor = try await Supervisor.forTests(pool: 0...2, configure: { $0.maximumQueuedCalls = 3 })
        let events = supervisor.events(bufferSize: 1_000_000)
        let shared = Shared()
        let disturber = Task {
            while !shared.isOver.load(ordering: .relaxed) {
                for call in await supervisor.list() {
                    switch Int.random(in: 0..<4) {
                    case 0: try? await supervisor.kill(call.id)
                    case 1: try? await supervisor.stop(call.id)
                    case 2: try? await supervisor.resume(call.id)
                    default: await Task.yield()
                    }
                }
                // Nobody is held for ever, and others have a processor as well.
                for call in await supervisor.list() { try? await supervisor.resume(call.id) }
                try? await Task.sleep(for: .microseconds(100))
            }
        }
        let ended = try await withThrowingTaskGroup(of: [CallID].self) { group in
            for worker in 0..<6 {
                group.addTask {
                    var ended: [CallID] = []
                    for round in 0..<150 {
                        var request = (worker + round) % 3 == 0 ? Self.spin : Self.answer
                        request.limits.time = .milliseconds(5)
                        let wanted = request
                        let task = Task {
                            if worker % 2 == 0 { return try await supervisor.call(wanted) }
                            return try await supervisor.wait(for: supervisor.start(wanted))
                        }
                        if round % 4 == 0 {
                            await Task.yield()
                            task.cancel()
                        }
                        do {
                            ended.append(try await task.value.id)
                        } catch let error as SupervisorError where error.code == .queueFull {
                            shared.refused.add(1, ordering: .relaxed)
                            try? await Task.sleep(for: .milliseconds(1))
                        }
                    }
                    return ended
                }
            }
            return try await group.reduce(into: []) { $0 += $1 }
        }
        shared.isOver.store(true, ordering: .relaxed)
        await disturber.value
        await waitUntil { await supervisor.list().isEmpty }
        let statistics = await supervisor.statistics
        #expect(statistics.running == 0 && statistics.queued == 0 && statistics.memory == 0)
        let totals = statistics.totals
        #expect(totals.refused == shared.refused.load(ordering: .relaxed) && totals.accepted + totals.refused == 900)
        #expect(totals.accepted == totals.returned + totals.killed + totals.limited + totals.failed)
        #expect(Set(ended).count == ended.count && ended.count == totals.accepted)
        await waitUntil { await supervisor.moduleList().allSatisfy { $0.poolStatistics.inUse == 0 } }
        await supervisor.shutDown()
        var beginnings: [CallID: Int] = [:]
        var ends: [CallID: Int] = [:]
        for await event in events {
            guard let call = event.call else { continue }
            switch event.kind {
            case .queued: beginnings[call, default: 0] += 1
            case .exited, .killed, .failed, .limitHit: ends[call, default: 0] += 1
            default: break
            }
        }
        #expect(beginnings.count == Int(totals.accepted) && beginnings.values.allSatisfy { $0 == 1 })
        #expect(ends == beginnings)
    }
}

/// Runs tasks where others do, and counts how often.
private final class CountingExecutor: TaskExecutor {
    let jobs = Atomic<Int>(0)

    func enqueue(_ job: consuming ExecutorJob) {
        jobs.add(1, ordering: .relaxed)
        let job = UnownedJob(job)
        // Once, and this object stays as long as it has jobs.
        DispatchQueue.global().async { unsafe job.runSynchronously(on: self.asUnownedTaskExecutor()) }
    }
}
