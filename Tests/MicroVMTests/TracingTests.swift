#if Tracing
import InMemoryTracing
import Testing
import Tracing

@testable import MicroVM

#if Logging
import Logging
#endif

/// The spans of calls: which there are, below which others they lie, and how they end.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct TracingTests {
    private struct OwnError: Error {}

    private let tracer = InMemoryTracer()

    private func sandbox(_ guest: Guest, _ hostFunctions: [HostFunction] = []) async throws -> Sandbox {
        try await guest.sandbox(hostFunctions) {
            $0.tracer = tracer
            // Exits are counted.
            $0.polling = .never
        }
    }

    /// The finished spans of that name, in the order in which they ended.
    private func spans(_ name: String) -> [FinishedInMemorySpan] {
        tracer.finishedSpans.filter { $0.operationName == name }
    }

    private func span(_ name: String, sourceLocation: SourceLocation = #_sourceLocation) throws -> FinishedInMemorySpan
    {
        #expect(spans(name).count == 1, sourceLocation: sourceLocation)
        return try #require(spans(name).first, sourceLocation: sourceLocation)
    }

    private func attribute(_ name: String, _ span: FinishedInMemorySpan) -> String? {
        switch span.attributes.get("microvm." + name) {
        case .string(let text): text
        case .int64(let number): "\(number)"
        default: nil
        }
    }

    private func expectChild(
        _ child: String,
        of parent: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let (child, parent) = (
            try span(child, sourceLocation: sourceLocation), try span(parent, sourceLocation: sourceLocation)
        )
        #expect(child.parentSpanID == parent.spanID, sourceLocation: sourceLocation)
        #expect(child.traceID == parent.traceID, sourceLocation: sourceLocation)
    }

    @Test func `a guest call is a child of the caller's span, and has its name and its outcome`() async throws {
        let sandbox = try await sandbox(.arithmetic)
        let sum: Int = try await tracer.withSpan("request") { _ in try await sandbox.call("add", 2, 3) }
        #expect(sum == 5)
        try expectChild("guest call add", of: "request")
        let call = try span("guest call add")
        #expect(attribute("function", call) == "add" && attribute("module", call) == "arithmetic.so")
        #expect(attribute("sandbox", call)?.hasPrefix("arithmetic.so#") == true && attribute("call", call) != nil)
        #expect(attribute("outcome", call) == "returned" && attribute("exits", call) == "1")
        #expect(call.kind == .internal && call.status == nil && call.errors.isEmpty && tracer.activeSpans.isEmpty)
    }

    @Test func `without a caller's span a call is the root of its own trace`() async throws {
        let sandbox = try await sandbox(.arithmetic)
        let add = try sandbox.function("add", as: ((Int, Int) -> Int).self)
        for _ in 0..<2 { #expect(try await add(2, 3) == 5) }
        let call = try sandbox.start("add", 2, 3, returning: Int.self)
        #expect(try await call.result == 5)
        let spans = spans("guest call add")
        #expect(spans.count == 3 && spans.allSatisfy { $0.parentSpanID == nil } && Set(spans.map(\.traceID)).count == 3)
    }

    @Test func `spans that a synchronous host function makes lie below its own`() async throws {
        let tick = HostFunction("host_tick") { () in tracer.withSpan("query") { _ in } }
        let sandbox = try await sandbox(.hostCalls, hostFunctions(tick))
        try await sandbox.call("call_tick")
        try expectChild("host call host_tick", of: "guest call call_tick")
        try expectChild("query", of: "host call host_tick")
        #expect(tracer.finishedSpans.map(\.operationName) == ["query", "host call host_tick", "guest call call_tick"])
        #expect(try attribute("function", span("host call host_tick")) == "host_tick")
    }

    @Test func `spans that an asynchronous host function and its tasks make lie below its own`() async throws {
        let tick = HostFunction("host_tick") { () async -> Void in
            await tracer.withSpan("query") { _ in await Task.yield() }
            await withTaskGroup { group in
                for name in ["left", "right"] { group.addTask { tracer.withSpan(name) { _ in } } }
            }
        }
        let sandbox = try await sandbox(.hostCalls, hostFunctions(tick))
        try await sandbox.call("call_tick")
        for name in ["query", "left", "right"] { try expectChild(name, of: "host call host_tick") }
        try expectChild("host call host_tick", of: "guest call call_tick")
        #expect(tracer.activeSpans.isEmpty && tracer.finishedSpans.last?.operationName == "guest call call_tick")
    }

    @Test(arguments: [false, true])
    func `nested calls lie below what the host function was doing`(_ isAsynchronous: Bool) async throws {
        let descend =
            isAsynchronous
            ? HostFunction("host_descend") { (context: HostCallContext, _: Int64) async throws -> Int64 in
                try await tracer.withSpan("work") { _ in try await context.call("call_tick") }
                return 0
            }
            : HostFunction("host_descend") { (context: HostCallContext, _: Int64) throws -> Int64 in
                try tracer.withSpan("work") { _ in try context.call("call_tick") }
                return 0
            }
        let tick = HostFunction("host_tick") { () in tracer.withSpan("query") { _ in } }
        let sandbox = try await sandbox(.hostCalls, hostFunctions(descend, tick))
        #expect(try await sandbox.call("descend", 1 as Int64) == 1 as Int64)
        let order = [
            "query", "host call host_tick", "guest call call_tick", "work", "host call host_descend",
            "guest call descend",
        ]
        #expect(tracer.finishedSpans.map(\.operationName) == order && tracer.activeSpans.isEmpty)
        for (child, parent) in zip(order, order.dropFirst()) { try expectChild(child, of: parent) }
    }

    @Test func `host calls that follow each other are siblings`() async throws {
        let sandbox = try await sandbox(.hostCalls, hostFunctions())
        #expect(try await sandbox.call("add_in_a_loop", 3 as Int64) == 3 as Int64)
        let call = try span("guest call add_in_a_loop")
        let children = spans("host call host_add")
        #expect(children.count == 3 && children.allSatisfy { $0.parentSpanID == call.spanID })
        #expect(attribute("host_calls", call) == "3")
    }

    @Test func `a fault ends all spans, and is recorded in those of the guest`() async throws {
        let sandbox = try await sandbox(
            .logging,
            [
                HostFunction("host_event") { (context: HostCallContext, _: Int64) throws -> Void in
                    try context.call("trap")
                }
            ]
        )
        await #expect(throws: SandboxError.self) { try await sandbox.call("event_then_twice", 1 as Int64) as Int64 }
        #expect(tracer.activeSpans.isEmpty)
        let names = ["guest call trap", "host call host_event", "guest call event_then_twice"]
        #expect(tracer.finishedSpans.map(\.operationName) == names)
        for name in names {
            let span = try span(name)
            #expect(span.status?.code == .error && span.errors.count == 1)
            #expect((span.errors.first?.error as? SandboxError)?.fault?.kind == .invalidInstruction)
        }
        let outer = try span("guest call event_then_twice")
        #expect(attribute("outcome", outer) == "faulted" && attribute("fault", outer) == "invalidInstruction")
    }

    @Test func `a kill ends all spans of a call that waits in a host function`() async throws {
        let waits = Flag()
        let tick = HostFunction("host_tick") { () async throws -> Void in
            try await tracer.withSpan("query") { _ in
                waits.set()
                try await Task.sleep(for: .seconds(1000))
            }
        }
        let sandbox = try await sandbox(.hostCalls, hostFunctions(tick))
        let call = try sandbox.start("call_tick")
        await waitUntil { waits.isSet }
        #expect(sandbox.interruptHandle.kill() == .pending)
        await #expect(throws: SandboxError.self) { try await call.result }
        let names = ["query", "host call host_tick", "guest call call_tick"]
        #expect(tracer.finishedSpans.map(\.operationName) == names && tracer.activeSpans.isEmpty)
        for name in names { #expect(try span(name).errors.count == 1) }
        #expect(try attribute("outcome", span("guest call call_tick")) == "killed")
    }

    @Test func `limits and cancellation end spans as errors`() async throws {
        let spinning = try await sandbox(.spin)
        await #expect(throws: SandboxError.self) { try await spinning.call("spin", timeLimit: .milliseconds(5)) }
        #expect(try attribute("outcome", span("guest call spin")) == "time_limit")
        #expect(try span("guest call spin").status?.message == "time_limit")
        let cancelled = try await sandbox(.echo)
        let task = Task {
            await waitUntil { Task.isCancelled }
            await #expect(throws: SandboxError.self) { try await cancelled.call("add_to_static", 5) }
        }
        task.cancel()
        await task.value
        #expect(try attribute("outcome", span("guest call add_to_static")) == "task_cancelled")
        #expect(tracer.activeSpans.isEmpty)
    }

    @Test func `what a host function throws is recorded in its span and the call's`() async throws {
        let tick = HostFunction("host_tick") { () throws -> Void in throw OwnError() }
        let sandbox = try await sandbox(.hostCalls, hostFunctions(tick))
        await #expect(throws: OwnError.self) { try await sandbox.call("call_tick") }
        for name in ["host call host_tick", "guest call call_tick"] {
            let span = try span(name)
            #expect(span.errors.first?.error is OwnError && span.status?.code == .error)
        }
        #expect(try attribute("outcome", span("guest call call_tick")) == "failed")
    }

    @Test func `a failed nested call that its host function lives with fails the call all the same`() async throws {
        let sandbox = try await sandbox(
            .logging,
            [
                HostFunction("host_event") { (context: HostCallContext, _: Int64) in try? context.call("trap") }
            ]
        )
        await #expect(throws: SandboxError.self) { try await sandbox.call("event_then_twice", 1 as Int64) as Int64 }
        #expect(try span("host call host_event").errors.isEmpty)
        #expect(try span("guest call trap").errors.count == 1)
        #expect(try attribute("outcome", span("guest call event_then_twice")) == "faulted")
    }

    @Test func `values that cannot be passed fail a span, and calls that are refused have none`() async throws {
        let sandbox = try await Guest.echo.sandbox {
            $0.tracer = tracer
            $0.argumentArenaSize = 4096
        }
        let text = String(repeating: "x", count: 10_000)
        await #expect(throws: SandboxError.self) { _ = try await sandbox.call("byte_length", text) as Int }
        #expect(try attribute("outcome", span("guest call byte_length")) == "failed")
        await sandbox.close()
        await #expect(throws: SandboxError.self) { _ = try await sandbox.call("add_to_static", 5) as Int }
        #expect(tracer.finishedSpans.count == 1 && tracer.activeSpans.isEmpty)
    }

    @Test func `initialisers are a call`() async throws {
        _ = try await sandbox(.initializers, hostFunctions())
        #expect(try attribute("outcome", span("guest call initializers")) == "returned")
        await #expect(throws: SandboxError.self) { _ = try await sandbox(.faultInInitializer) }
        #expect(spans("guest call initializers").map { attribute("outcome", $0) } == ["returned", "faulted"])
    }

    @Test func `without a tracer the context still reaches nested calls of asynchronous host functions`() async throws {
        let contexts = Recorder<String?>()
        let descend = HostFunction("host_descend") { (context: HostCallContext, _: Int64) async throws -> Int64 in
            try await tracer.withSpan("work") { span in
                try await context.call("call_tick")
                contexts.append(span.spanID)
            }
            return 0
        }
        let tick = HostFunction("host_tick") { () in
            contexts.append(ServiceContext.current?.inMemorySpanContext?.spanID)
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(descend, tick))
        #expect(try await sandbox.call("descend", 1 as Int64) == 1 as Int64)
        #expect(tracer.finishedSpans.map(\.operationName) == ["work"])
        #expect(contexts.count == 2 && contexts.all[0] == contexts.all[1] && contexts.all[0] != nil)
    }

    #if Logging
    @Test func `what a guest logs belongs to its call's span`() async throws {
        let log = LogRecorder()
        let provider = Logger.MetadataProvider {
            ServiceContext.current?.inMemorySpanContext.map { ["span": "\($0.spanID)"] } ?? [:]
        }
        let sandbox = try await Guest.logging.sandbox([HostFunction("host_event") { (_: Int64) in }]) {
            $0.tracer = tracer
            $0.logger = log.logger(.info, provider: provider)
        }
        try await sandbox.call("log_line", 2 as Int32, "hello")
        let call = try span("guest call log_line")
        #expect(log.guests.map { $0["span"] } == [call.spanID])
        await #expect(throws: SandboxError.self) { try await sandbox.call("trap") }
        let fault = try span("guest call trap")
        #expect(log.lines("The guest faulted").map { $0["span"] } == [fault.spanID])
    }
    #endif
}
#endif
