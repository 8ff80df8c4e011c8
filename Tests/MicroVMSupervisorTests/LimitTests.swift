import MicroVM
import Testing

@testable import MicroVMSupervisor

/// Limits on what calls may use, alone and together.
@Suite(.requiresKVM, .timeLimit(.minutes(2))) struct LimitTests {
    @Test func `no more calls run than the module and all together may`() async throws {
        let supervisor = try await Supervisor.forTests(pool: 0...2, configure: { $0.limits.sandboxes = 3 })
        let spinning = [try await supervisor.startSpinning(), try await supervisor.startSpinning()]
        let third = try await supervisor.startAnswering()
        #expect(try await supervisor.status(of: third).state == .queued)
        // Another module has room, but only for one more.
        let echo = CallRequest(module: "echo", function: "get_static")
        #expect(try await supervisor.wait(for: supervisor.start(echo)).value == .i64(10))
        #expect(await supervisor.statistics.running == 2)
        try await supervisor.resizePool(of: "spin", to: 0...3)
        #expect(try await supervisor.wait(for: third).value == .i64(42))
        let fourth = try await supervisor.startSpinning()
        let blocked = try await supervisor.start(echo)
        #expect(try await supervisor.status(of: blocked).state == .queued)
        #expect(await supervisor.statistics.running == 3)
        try await supervisor.kill(fourth)
        #expect(try await supervisor.wait(for: blocked).value == .i64(10))
        for id in spinning { try await supervisor.kill(id) }
    }

    @Test func `memory is counted by what sandboxes may own`() async throws {
        let supervisor = try await Supervisor.forTests(configure: { $0.limits.memory = 40 << 20 })
        let first = try await supervisor.startSpinning()
        let second = try await supervisor.startSpinning()
        let third = try await supervisor.startAnswering()
        #expect(await supervisor.statistics.memory == 32 << 20)
        #expect(try await supervisor.status(of: third).state == .queued)
        try await supervisor.kill(first)
        #expect(try await supervisor.wait(for: third).value == .i64(42))
        try await supervisor.kill(second)
        _ = try await supervisor.wait(for: second)
        #expect(await supervisor.statistics.memory == 0)
        let small = try await Supervisor.forTests(configure: { $0.limits.memory = 1 << 20 })
        await #expect(performing: { try await small.startAnswering() }, throws: hasCode(.limitTooSmall))
    }

    @Test func `the queue is bounded in calls and in bytes`() async throws {
        let supervisor = try await Supervisor.forTests(
            pool: 0...1,
            configure: {
                $0.maximumQueuedCalls = 3
                $0.maximumQueuedBytes = 1000
            }
        )
        let spinning = try await supervisor.startSpinning()
        let waiting = try [
            await supervisor.startAnswering(), await supervisor.startAnswering(), await supervisor.startAnswering(),
        ]
        await #expect(performing: { try await supervisor.startAnswering() }, throws: hasCode(.queueFull))
        // One that goes makes room for one.
        try await supervisor.kill(waiting[1])
        let bytes = CallValue.bytes(Array(repeating: 0, count: 1001))
        let large = CallRequest(module: "spin", function: "answer", arguments: [bytes])
        await #expect(performing: { try await supervisor.start(large) }, throws: hasCode(.queueFull))
        let last = try await supervisor.startAnswering()
        try await supervisor.kill(spinning)
        for id in [waiting[0], waiting[2], last] {
            #expect(try await supervisor.wait(for: id).value == .i64(42))
        }
        #expect(await supervisor.statistics.totals.refused == 2)
    }

    @Test func `tenants take turns, and priorities come first`() async throws {
        let supervisor = try await Supervisor.forTests(pool: 0...1)
        let events = supervisor.events()
        let spinning = try await supervisor.startSpinning()
        var names: [CallID: String] = [:]
        for number in 1...4 { names[try await supervisor.startAnswering(["tenant": "a"])] = "a\(number)" }
        for number in 1...2 { names[try await supervisor.startAnswering(["tenant": "b"])] = "b\(number)" }
        names[try await supervisor.startAnswering()] = "none"
        names[try await supervisor.startAnswering(["tenant": "a"], priority: 5)] = "first"
        names[try await supervisor.startAnswering(["tenant": "b"], priority: -5)] = "last"
        try await supervisor.kill(spinning)
        for id in names.keys { _ = try await supervisor.wait(for: id) }
        var order: [String] = []
        for await event in events {
            if event.kind == .started, let id = event.call, let name = names[id] { order.append(name) }
            if order.count == names.count { break }
        }
        #expect(order == ["first", "a1", "b1", "none", "a2", "b2", "a3", "a4", "last"])
    }

    @Test func `a call that waits for too long is over`() async throws {
        let supervisor = try await Supervisor.forTests(pool: 0...1)
        let spinning = try await supervisor.startSpinning()
        let id = try await supervisor.start(
            CallRequest(module: "spin", function: "answer", limits: CallLimits(queueTime: .milliseconds(10)))
        )
        #expect(try await supervisor.wait(for: id).limit == .queueTime)
        try await supervisor.kill(spinning)
    }

    @Test func `a flood of output ends the call, and not the others`() async throws {
        let supervisor = try await Supervisor.forTests(module: { $0.callLimits.output = 1000 })
        let other = try await supervisor.startSpinning()
        let flood = try await supervisor.start(
            CallRequest(module: "spin", function: "spin_with_output", returns: .void)
        )
        let call = try await supervisor.wait(for: flood)
        #expect(call.limit == .output && call.output == 1000)
        let bytes = try await supervisor.output(of: flood).pieces().pieces.flatMap(\.bytes)
        #expect(bytes == Array(repeating: UInt8(ascii: "x"), count: 1000))
        #expect(try await supervisor.status(of: other).state == .running)
        try await supervisor.kill(other)
    }

    @Test func `output in a minute is limited for all together`() async throws {
        let supervisor = try await Supervisor.forTests(configure: { $0.limits.outputPerMinute = 500 })
        let request = CallRequest(module: "spin", function: "spin_with_output", returns: .void)
        let first = try await supervisor.wait(for: supervisor.start(request))
        #expect(first.limit == .outputPerMinute && first.output == 501)
        #expect(try await supervisor.wait(for: supervisor.start(request)).limit == .outputPerMinute)
        #expect(try await supervisor.wait(for: supervisor.startAnswering()).value == .i64(42))
    }

    @Test func `calls are held when the CPU time of the minute is used up, and can be killed then`() async throws {
        let supervisor = try await Supervisor.forTests(module: { $0.limits.cpuTimePerMinute = .milliseconds(60) })
        let events = supervisor.events()
        let id = try await supervisor.startSpinning()
        try await supervisor.wait(until: id, is: .throttled)
        let held = try await supervisor.inspect(id)
        #expect(held.statistics.cpuTime ?? .zero >= .milliseconds(50))
        let next = try await supervisor.startAnswering()
        #expect(try await supervisor.status(of: next).state == .queued)
        // Other modules have their own minute.
        let other = try await supervisor.start(CallRequest(module: "echo", function: "get_static"))
        #expect(try await supervisor.wait(for: other).value == .i64(10))
        try await supervisor.kill(id)
        #expect(try await supervisor.wait(for: id).killer == .request)
        try await supervisor.kill(next)
        for await event in events where event.kind == .throttled {
            #expect(event.call == id)
            break
        }
    }

    @Test func `a call that outstays its limit in a host function is reported and ended`() async throws {
        let supervisor = Supervisor(
            configuration: {
                var configuration = SupervisorConfiguration()
                configuration.watchInterval = .milliseconds(5)
                configuration.watchdogGrace = .milliseconds(10)
                return configuration
            }()
        )
        let (stream, continuation) = AsyncStream.makeStream(of: Void.self)
        var settings = ModuleSettings()
        settings.hostFunctions = [
            // It does not listen, until it is told to return.
            HostFunction("host_wait") { (_: UInt64) async throws -> Void in
                await Task.detached { for await _ in stream { return } }.value
            },
            HostFunction("host_note") { (_: UInt64) -> Int64 in 0 },
            HostFunction("host_nest") { (_: UInt64, _: Int64) -> Int64 in 0 },
            HostFunction("host_nest_later") { (_: UInt64, _: Int64) -> Int64 in 0 },
        ]
        try await supervisor.register(guestModule("interruption"), as: "waiting", settings: settings)
        let events = supervisor.events()
        let id = try await supervisor.start(
            CallRequest(
                module: "waiting",
                function: "wait",
                arguments: [.u64(1)],
                returns: .void,
                limits: CallLimits(time: .milliseconds(5))
            )
        )
        for await event in events where event.kind == .overdue {
            #expect(event.call == id)
            break
        }
        continuation.yield()
        #expect(try await supervisor.wait(for: id).limit == .time)
    }
}
