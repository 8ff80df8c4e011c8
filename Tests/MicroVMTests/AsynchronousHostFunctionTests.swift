import Glibc
import Testing

@testable import MicroVM

/// Host functions that are awaited, and those that sleep: the end of their call reaches them.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct AsynchronousHostFunctionTests {
    enum Local { @TaskLocal static var name = "none" }

    /// Who ends a call that waits in a host function.
    enum Ender: CaseIterable {
        case kill, killSwitch, deadline, cancellation

        var code: SandboxError.Code {
            switch self {
            case .kill, .killSwitch: .killed
            case .deadline: .timeLimitExceeded
            case .cancellation: .taskCancelled
            }
        }
    }

    /// Calls `call_tick`, and ends the call as soon as the host function has said that it waits. Where the limit passes
    /// before, the same again with a longer one.
    private func end(_ ender: Ender, while waits: Flag, _ tick: HostFunction) async throws -> CallEnd {
        var limit = Duration.milliseconds(Surroundings.isEmulated ? 500 : 20)
        while true {
            let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(tick))
            let call = try sandbox.start("call_tick", timeLimit: ender == .deadline ? limit : nil)
            let task = Task { await CallEnd(call) }
            let isOver = Flag()
            Task {
                _ = await task.value
                isOver.set()
            }
            await waitUntil { waits.isSet || isOver.isSet }
            switch ender {
            case .kill: #expect(sandbox.interruptHandle.kill() == .pending)
            case .killSwitch: #expect(call.killSwitch.answer() == .success(.pending))
            case .cancellation: task.cancel()
            case .deadline: break
            }
            let end = await task.value
            if waits.isSet {
                #expect(await isPoisoned(sandbox, "call_tick"))
                return end
            }
            limit *= 2
        }
    }

    @Test func `an asynchronous host function has the caller's task-local values and priority`() async throws {
        let names = Recorder<String>()
        let priorities = Recorder<TaskPriority>()
        let tick = HostFunction("host_tick") { () async -> Void in
            names.append(Local.name)
            await Task.yield()
            names.append(Local.name)
            priorities.append(Task.basePriority ?? .background)
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(tick))
        try await Local.$name.withValue("called") { try await sandbox.call("call_tick") }
        let call = try Local.$name.withValue("started") { try sandbox.start("call_tick") }
        try await call.result
        #expect(names.all == ["called", "called", "started", "started"])
        try await Task(priority: .utility) { try await sandbox.call("call_tick") }.value
        #expect(priorities.all.last == .utility)
    }

    @Test(arguments: Ender.allCases)
    func `an asynchronous host function is cancelled when the call shall end`(_ ender: Ender) async throws {
        let waits = Flag()
        let cancelled = Counter()
        let tick = HostFunction("host_tick") { (context: HostCallContext) async throws -> Void in
            waits.set()
            do {
                try await Task.sleep(for: .seconds(100_000))
            } catch {
                #expect(Task.isCancelled && context.isCancelled)
                #expect(throws: CancellationError.self) { try context.checkCancellation() }
                cancelled.next()
                throw error
            }
        }
        let end = try await end(ender, while: waits, tick)
        #expect(end.code == ender.code && end.sandboxError?.underlyingError is CancellationError)
        #expect(end.sandboxError?.interruption?.hostFunction == "host_tick")
        #expect(cancelled.value == 1)
    }

    @Test(arguments: Ender.allCases)
    func `a host function that sleeps is woken when the call shall end`(_ ender: Ender) async throws {
        let waits = Flag()
        let woken = Counter()
        let tick = HostFunction("host_tick") { (context: HostCallContext) throws -> Void in
            try context.checkCancellation()
            waits.set()
            do {
                try context.sleep(for: .seconds(100_000))
            } catch {
                #expect(error is CancellationError && context.isCancelled)
                woken.next()
                // There is no sleep any more.
                #expect(throws: CancellationError.self) { try context.sleep(for: .seconds(100_000)) }
                throw error
            }
        }
        let end = try await end(ender, while: waits, tick)
        #expect(end.code == ender.code && end.sandboxError?.underlyingError is CancellationError)
        #expect(woken.value == 1)
    }

    @Test func `a sleep that nobody disturbs lasts as long as it shall`() async throws {
        let tick = HostFunction("host_tick") { (context: HostCallContext) throws -> Void in
            let begin = MonotonicTime.now
            try context.sleep(for: .milliseconds(3))
            #expect(begin.duration(to: .now) >= .milliseconds(3))
            try context.sleep(for: .zero)
            try context.sleep(for: .seconds(-1))
            #expect(!context.isCancelled)
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(tick))
        for _ in 0..<3 { try await sandbox.call("call_tick") }
    }

    @Test(arguments: Ender.allCases)
    func `an asynchronous host function that ignores its cancellation is awaited`(_ ender: Ender) async throws {
        let waits = Flag()
        let isCancelled = Flag()
        let ended = Flag()
        let tick = HostFunction("host_tick") { (context: HostCallContext) async -> Void in
            waits.set()
            await waitUntil { context.isCancelled && Task.isCancelled }
            isCancelled.set()
            // Not a call that would throw because of the cancellation.
            await withCheckedContinuation { continuation in
                startThread {
                    usleep(1000)
                    ended.set()
                    continuation.resume()
                }
            }
        }
        let end = try await end(ender, while: waits, tick)
        #expect(end.code == ender.code && end.sandboxError?.underlyingError == nil)
        #expect(isCancelled.isSet && ended.isSet)
    }

    @Test(arguments: Ender.allCases)
    func `a nested call from an asynchronous host function ends before the guest when the call shall end`(
        _ ender: Ender
    )
        async throws
    {
        let waits = Flag()
        let codes = Recorder<SandboxError.Code?>()
        let tick = HostFunction("host_tick") { (context: HostCallContext) async throws -> Void in
            waits.set()
            await waitUntil { context.isCancelled }
            let end = await CallEnd { let _: Int = try await context.call("descend", 0) }
            codes.append(end.code)
        }
        let end = try await end(ender, while: waits, tick)
        #expect(end.code == ender.code && codes.all == [ender.code])
    }
}
