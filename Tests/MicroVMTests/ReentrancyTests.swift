import Glibc
import Testing

@testable import MicroVM

/// A host function that calls the sandbox that waits for it is told so at once, and close() does not wait for itself.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct ReentrancyTests {
    /// All the ways to wait for a sandbox.
    private static let ways: [(name: String, call: @Sendable (Sandbox) async throws -> Void)] = [
        ("call", { let _: Int = try await $0.call("call_add", 1, 2) }),
        ("call without result", { try await $0.call("call_tick") }),
        ("call with arguments", { let _: Int = try await $0.call("call_add", arguments: [1, 2]) }),
        ("call with arguments without result", { try await $0.call("call_tick", arguments: []) }),
        ("function", { _ = try await $0.function("call_add", as: ((Int, Int) -> Int).self)(1, 2) }),
        ("run", { try await $0.run { _ in } }),
        (
            "result",
            {
                let call: GuestCall<Int> = try $0.start("call_add", 1, 2)
                _ = try await call.result
            }
        ),
        ("state", { _ = try await $0.pullFullState() }),
    ]

    /// The codes of all the ways, as found by a host function.
    private static func codes(_ sandbox: Sandbox?) async -> [SandboxError.Code?] {
        guard let sandbox else { return [] }
        var codes: [SandboxError.Code?] = []
        for way in ways { codes.append(await CallEnd { try await way.call(sandbox) }.code) }
        return codes
    }

    private static let refused = Array(repeating: SandboxError.Code.reentrantCall, count: ways.count)

    @Test func `an asynchronous host function cannot wait for its own sandbox`() async throws {
        let own = Shared<Sandbox>(nil)
        let codes = Recorder<[SandboxError.Code?]>()
        let tick = HostFunction("host_tick") { () async -> Void in
            codes.append(await Self.codes(own.value))
            // Nor can the tasks it starts, as long as they are not detached.
            codes.append(await Task { await Self.codes(own.value) }.value)
            await withTaskGroup { group in
                group.addTask { codes.append(await Self.codes(own.value)) }
            }
            own.value = nil
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(tick))
        own.value = sandbox
        try await sandbox.call("call_tick")
        #expect(codes.all == [Self.refused, Self.refused, Self.refused])
        // Nothing has happened to it.
        #expect(try await sandbox.call("call_add", 40, 2) == 42)
    }

    @Test func `a synchronous host function cannot wait for its own sandbox by way of a task`() async throws {
        let own = Shared<Sandbox>(nil)
        let codes = Recorder<[SandboxError.Code?]>()
        let tick = HostFunction("host_tick") { () in
            let done = Flag()
            Task {
                codes.append(await Self.codes(own.value))
                done.set()
            }
            done.block()
            own.value = nil
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(tick))
        own.value = sandbox
        try await sandbox.call("call_tick")
        #expect(codes.all == [Self.refused])
        #expect(try await sandbox.call("call_add", 40, 2) == 42)
    }

    @Test func `a chain of two sandboxes is seen through`() async throws {
        let first = Shared<Sandbox>(nil)
        let codes = Recorder<[SandboxError.Code?]>()
        let inner = HostFunction("host_tick") { () async -> Void in codes.append(await Self.codes(first.value)) }
        let second = try await Guest.hostCalls.sandbox(hostFunctions(inner))
        let outer = HostFunction("host_tick") { () async throws -> Void in
            // Another sandbox may be waited for, and calls back into the first one may not.
            try await second.call("call_tick")
            first.value = nil
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(outer))
        first.value = sandbox
        try await sandbox.call("call_tick")
        #expect(codes.all == [Self.refused])
        // Each for itself may be called again.
        #expect(try await sandbox.call("call_add", 40, 2) == 42)
        #expect(try await second.call("call_add", 40, 2) == 42)
    }

    @Test func `a call that a host function starts and does not await has its turn afterwards`() async throws {
        let own = Shared<Sandbox>(nil)
        let started = Shared<GuestCall<Int>>(nil)
        let tick = HostFunction("host_tick") { () in
            started.value = try own.value?.start("call_add", 40, 2)
            own.value = nil
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(tick))
        own.value = sandbox
        try await sandbox.call("call_tick")
        #expect(try await #require(started.value).result == 42)
        started.value = nil
    }

    @Test func `the other sandbox's call ends with the call that waits for it`() async throws {
        let second = try await Guest.spin.sandbox()
        let word = try await SharedWord(of: second)
        let inner = Shared<CallEnd>(nil)
        let outer = HostFunction("host_tick") { () async throws -> Void in
            do { try await second.call("spin_and_say_so", word.address) } catch {
                inner.value = .threw(error)
                throw error
            }
        }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(outer))
        let call = try sandbox.start("call_tick")
        await waitUntil { word.value == 1 }
        #expect(call.killSwitch.answer() == .success(.pending))
        let end = await CallEnd(call)
        #expect(end.code == .killed && inner.value?.code == .taskCancelled)
        #expect((end.sandboxError?.underlyingError as? SandboxError)?.code == .taskCancelled)
        #expect(await isPoisoned(second))
    }

    @Test(arguments: [false, true])
    func `a sandbox that is closed by its own host function closes after the call`(_ isAsynchronous: Bool) async throws
    {
        let own = Shared<Sandbox>(nil)
        let ticked = Counter()
        let tick =
            isAsynchronous
            ? HostFunction("host_tick") { () async -> Void in
                await own.value?.close()
                ticked.next()
                own.value = nil
            }
            : HostFunction("host_tick") { () in
                let done = Flag()
                Task {
                    await own.value?.close()
                    done.set()
                }
                done.block()
                ticked.next()
                own.value = nil
            }
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(tick))
        own.value = sandbox
        try await sandbox.call("call_tick")
        #expect(ticked.value == 1)
        await waitUntil { sandbox.interruptHandle.isDropped }
        #expect(await CallEnd { try await sandbox.call("call_tick") }.code == .closed)
    }
}
