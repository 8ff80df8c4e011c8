import MicroVM
import Testing

@testable import MicroVMSupervisor

/// What a supervisor knows of calls, and what it does to them.
@Suite(.requiresKVM, .timeLimit(.minutes(2))) struct SupervisorTests {
    @Test func `a call returns its value, and what it has cost is remembered`() async throws {
        let supervisor = try await Supervisor.forTests()
        let id = try await supervisor.start(
            CallRequest(
                module: "echo",
                function: "concatenate",
                arguments: [.string("micro"), .bytes(Array("-vm".utf8))],
                returns: .string,
                labels: ["who": "test"]
            )
        )
        let call = try await supervisor.wait(for: id)
        #expect(call.value == .string("micro-vm"))
        #expect(call.state == .finished && call.labels == ["who": "test"])
        let statistics = try #require(call.statistics)
        #expect(statistics.exits > 0 && statistics.cpuTime != nil)
        let (accepted, began, ended) = (call.accepted, try #require(call.began), try #require(call.ended))
        #expect(accepted <= began && began <= ended)
        #expect(await supervisor.finished().map(\.id) == [id])
        #expect(await supervisor.list().isEmpty)
        // Asked later, it is the same.
        #expect(try await supervisor.wait(for: id).value == .string("micro-vm"))
    }

    @Test func `calls that end while somebody begins to wait for them are told to everybody`() async throws {
        let supervisor = try await Supervisor.forTests(pool: 0...2)
        let answers = try await withThrowingTaskGroup(of: Int.self) { group in
            for _ in 0..<4 {
                group.addTask {
                    var answers = 0
                    for _ in 0..<500 {
                        let id = try await supervisor.startAnswering()
                        async let other = supervisor.wait(for: id).value
                        let value = try await supervisor.wait(for: id).value
                        #expect(try await other == value && value != nil)
                        answers += 1
                    }
                    return answers
                }
            }
            return try await group.reduce(0, +)
        }
        #expect(answers == 2000)
        #expect(await supervisor.list().isEmpty)
    }

    @Test func `every type of value goes in and comes out`() async throws {
        let supervisor = Supervisor()
        try await supervisor.register(guestModule("arithmetic"), as: "arithmetic")
        try await supervisor.register(guestModule("echo"), as: "echo")
        func result(_ request: CallRequest) async throws -> CallValue? {
            try await supervisor.wait(for: supervisor.start(request)).value
        }
        #expect(
            try await result(CallRequest(module: "arithmetic", function: "add", arguments: [.i64(2), .i64(-5)]))
                == .i64(-3)
        )
        #expect(
            try await result(
                CallRequest(module: "arithmetic", function: "add_f64", arguments: [.f64(1.5), .f64(2)], returns: .f64)
            ) == .f64(3.5)
        )
        #expect(
            try await result(
                CallRequest(module: "echo", function: "reverse", arguments: [.bytes([1, 2, 3])], returns: .bytes)
            ) == .bytes([3, 2, 1])
        )
    }

    @Test func `a killed call ends as killed, wherever it is`() async throws {
        let supervisor = try await Supervisor.forTests(pool: 0...1)
        let running = try await supervisor.startSpinning()
        let waiting = try await supervisor.startAnswering()
        #expect(try await supervisor.status(of: waiting).state == .queued)
        try await supervisor.kill(waiting)
        let second = try await supervisor.wait(for: waiting)
        #expect(second.killer == .request && second.began == nil && second.statistics == nil)
        try await supervisor.kill(running)
        let first = try await supervisor.wait(for: running)
        #expect(first.killer == .request)
        if case .killed(_, let place?) = first.outcome { #expect(place.symbol?.name == "spin") }
        await #expect(performing: { try await supervisor.kill(running) }, throws: hasCode(.callFinished))
        await #expect(
            performing: { try await supervisor.kill(CallID(rawValue: 999)) },
            throws: hasCode(.unknownCall)
        )
        // Its place is free again.
        #expect(try await supervisor.wait(for: supervisor.startAnswering()).value == .i64(42))
    }

    @Test func `a stopped call does not get on, and goes on when it is told to`() async throws {
        let supervisor = try await Supervisor.forTests()
        let id = try await supervisor.start(
            CallRequest(
                module: "spin",
                function: "iterate",
                arguments: [.i64(.max)],
                limits: CallLimits(time: .seconds(100))
            )
        )
        try await supervisor.wait(until: id, is: .running)
        try await supervisor.stop(id)
        try await supervisor.stop(id)
        #expect(try await supervisor.status(of: id).state == .stopped)
        let first = try await supervisor.inspect(id)
        let second = try await supervisor.inspect(id)
        #expect(first.isInCall && second.isInCall && first.registers == second.registers)
        try await supervisor.resume(id)
        #expect(try await supervisor.status(of: id).state == .running)
        try await waitUntil { try await supervisor.inspect(id).registers != second.registers }
        // Killed while it is stopped, it ends all the same, and what comes next is not held.
        try await supervisor.stop(id)
        try await supervisor.kill(id)
        #expect(try await supervisor.wait(for: id).killer == .request)
        #expect(try await supervisor.wait(for: supervisor.startAnswering()).value == .i64(42))
        await #expect(performing: { try await supervisor.stop(id) }, throws: hasCode(.callFinished))
    }

    @Test func `a call that is stopped while it waits is held when it begins`() async throws {
        let supervisor = try await Supervisor.forTests(pool: 0...1)
        let first = try await supervisor.startSpinning()
        let second = try await supervisor.startAnswering()
        try await supervisor.stop(second)
        #expect(try await supervisor.status(of: second).state == .queued)
        try await supervisor.kill(first)
        try await supervisor.wait(until: second, is: .stopped)
        try await supervisor.resume(second)
        #expect(try await supervisor.wait(for: second).value == .i64(42))
    }

    @Test func `faults, limits and refusals are told apart`() async throws {
        let supervisor = try await Supervisor.forTests()
        let faulting = try await supervisor.start(
            CallRequest(module: "faults", function: "read_address", arguments: [.u64(16)], returns: .u64)
        )
        let fault = try await supervisor.wait(for: faulting)
        guard case .faulted(let report) = fault.outcome else {
            Issue.record("\(String(describing: fault.outcome))")
            return
        }
        #expect(report.kind == .memoryAccess && report.address == 16 && report.symbol?.name == "read_address")
        let late = try await supervisor.startSpinning(limits: CallLimits(time: .milliseconds(20)))
        #expect(try await supervisor.wait(for: late).limit == .time)
        let greedy = try await supervisor.startSpinning(limits: CallLimits(cpuTime: .milliseconds(20)))
        #expect(try await supervisor.wait(for: greedy).limit == .cpuTime)
        for (request, code) in [
            (CallRequest(module: "none", function: "answer"), SupervisorError.Code.unknownModule),
            (CallRequest(module: "spin", function: "none"), .unknownFunction),
            (CallRequest(module: "spin", function: "answer", labels: ["": ""]), .invalidRequest),
            (CallRequest(module: "spin", function: "answer", limits: CallLimits(time: .zero)), .invalidRequest),
        ] {
            await #expect(performing: { try await supervisor.start(request) }, throws: hasCode(code))
        }
        let totals = await supervisor.statistics.totals
        #expect(totals.accepted == 3 && totals.faulted == 1 && totals.limited == 2 && totals.refused == 0)
    }

    @Test func `a forked call goes on from the middle, and so do calls from a snapshot`() async throws {
        let supervisor = try await Supervisor.forTests()
        let id = try await supervisor.startSpinning(["tenant": "a"])
        let fork = try await supervisor.fork(id, labels: ["tenant": "b"])
        try await supervisor.wait(until: fork, is: .running)
        #expect(try await supervisor.inspect(fork).symbol?.name == "spin")
        let status = try await supervisor.status(of: fork)
        #expect(status.parent == id && status.labels == ["tenant": "b"])
        let snapshot = try await supervisor.snapshot(id)
        #expect(snapshot.call == id && snapshot.pageCount > 0)
        try await supervisor.kill(id)
        let later = try await supervisor.start(from: snapshot.id)
        try await supervisor.wait(until: later, is: .running)
        #expect(try await supervisor.inspect(later).symbol?.name == "spin")
        for call in [fork, later] {
            try await supervisor.kill(call)
            #expect(try await supervisor.wait(for: call).killer == .request)
        }
        try await supervisor.removeSnapshot(snapshot.id)
        await #expect(performing: { try await supervisor.start(from: snapshot.id) }, throws: hasCode(.unknownSnapshot))
        await #expect(performing: { try await supervisor.snapshot(id) }, throws: hasCode(.callFinished))
    }

    @Test func `samples say where calls are and how fast they go`() async throws {
        let supervisor = try await Supervisor.forTests()
        let id = try await supervisor.start(
            CallRequest(module: "spin", function: "spin_with_host_calls", returns: .void)
        )
        try await supervisor.wait(until: id, is: .running)
        await supervisor.sample(maximumAge: .zero)
        let first = try #require(try await supervisor.status(of: id).sample)
        try await waitUntil {
            await supervisor.sample(maximumAge: .zero)
            return try await supervisor.status(of: id).sample?.hostCallsPerSecond ?? 0 > 0
        }
        let second = try #require(try await supervisor.status(of: id).sample)
        #expect(second.statistics.hostCalls > first.statistics.hostCalls)
        #expect(second.memory ?? 0 > 0 && second.cpuShare >= 0)
        try await supervisor.kill(id)
    }

    @Test func `the last calls are remembered, and no more of their output and results than allowed`() async throws {
        let supervisor = try await Supervisor.forTests(configure: {
            $0.historySize = 5
            $0.historyOutputSize = 2500
        })
        var ids: [CallID] = []
        for _ in 0..<8 {
            let id = try await supervisor.start(
                CallRequest(
                    module: "echo",
                    function: "echo",
                    arguments: [.bytes(Array(repeating: 7, count: 1000))],
                    returns: .bytes
                )
            )
            _ = try await supervisor.wait(for: id)
            ids.append(id)
        }
        #expect(await supervisor.finished().map(\.id) == ids.suffix(5).reversed())
        #expect(await supervisor.finished(limit: 2).map(\.id) == [ids[7], ids[6]])
        await #expect(performing: { try await supervisor.status(of: ids[2]) }, throws: hasCode(.unknownCall))
        let values = await supervisor.finished().map(\.value)
        #expect(values.filter { $0 != nil }.count == 2 && values[0] != nil && values[4] == nil)
    }

    @Test func `waiting ends when the waiting task is cancelled, and the call goes on`() async throws {
        let supervisor = try await Supervisor.forTests()
        let id = try await supervisor.startSpinning()
        let waiter = Task { try await supervisor.wait(for: id) }
        let other = Task { try await supervisor.wait(for: id) }
        waiter.cancel()
        #expect(try await waiter.value.state == .running)
        try await supervisor.kill(id)
        #expect(try await other.value.killer == .request)
    }
}
