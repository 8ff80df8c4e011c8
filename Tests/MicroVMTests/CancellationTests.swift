import Glibc
import Testing

@testable import MicroVM

/// Cancelling the Swift task that awaits a call ends the call, and no other one.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct CancellationTests {
    @Test func `cancelling the calling task ends a spinning guest`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let word = try await SharedWord(of: sandbox)
        let call = Task {
            await #expect(throws: SandboxError.self) { try await sandbox.call("spin_and_say_so", word.address) }
        }
        await waitUntil { word.value == 1 }
        call.cancel()
        let error = await call.value
        #expect(error?.code == .taskCancelled && error?.interruption?.symbol?.name == "spin_and_say_so")
        await expectPoisoned(sandbox)
    }

    @Test func `a task that is cancelled already does not reach the guest`() async throws {
        let sandbox = try await Guest.echo.sandbox()
        let task = Task {
            await waitUntil { Task.isCancelled }
            return await #expect(throws: SandboxError.self) { try await sandbox.call("add_to_static", 5) }
        }
        task.cancel()
        #expect(await task.value?.code == .taskCancelled)
        // Nothing has been left half done.
        #expect(try await sandbox.call("get_static") == 10)
    }

    @Test func `cancelling a task whose call waits its turn leaves the call under way alone`() async throws {
        let guest = try await SpinningGuest()
        let sandbox = guest.sandbox
        let waiting = Task { await #expect(throws: SandboxError.self) { try await sandbox.call("answer") } }
        waiting.cancel()
        // Still running, and still to be killed by name.
        #expect(await onThread { guest.handle.kill() } == .signalled)
        #expect(await guest.call.value?.code == .killed)
        let code = await waiting.value?.code
        #expect(code == .poisoned || code == .taskCancelled)
    }

    @Test func `cancellation during a host call takes effect after it`() async throws {
        let entered = Flag()
        let cancelled = Flag()
        let sandbox = try await Guest.hostCalls.sandbox(
            hostFunctions(
                HostFunction("host_tick") { () in
                    entered.set()
                    while !cancelled.isSet { sched_yield() }
                }
            )
        )
        let call = Task { await #expect(throws: SandboxError.self) { try await sandbox.call("tick_in_a_loop", 100) } }
        await waitUntil { entered.isSet }
        call.cancel()
        cancelled.set()
        let error = await call.value
        #expect(error?.code == .taskCancelled && error?.interruption?.hostFunction == "host_tick")
    }

    @Test func `a task group that gives up takes its guest calls with it`() async throws {
        struct Lost: Error {}
        let sandboxes = [try await Guest.spin.sandbox(), try await Guest.spin.sandbox()]
        await #expect(throws: Lost.self) {
            try await withThrowingTaskGroup(of: Void.self) { group in
                for sandbox in sandboxes { group.addTask { try await sandbox.call("spin") } }
                group.addTask { throw Lost() }
                try await group.next()
            }
        }
    }

    @Test func `calls of a task are over before it is cancelled`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        for _ in 0..<100 {
            let done = Flag()
            let task = Task { () -> Int in
                let result: Int = try await sandbox.call("answer")
                done.set()
                return result
            }
            await waitUntil { done.isSet }
            task.cancel()
            #expect(try await task.value == 42)
            #expect(try await sandbox.call("answer") == 42)
        }
    }

    @Test func `the reason of the one who came first stays`() async throws {
        let guest = try await SpinningGuest()
        #expect(await onThread { guest.handle.cancelForTask() } == .signalled)
        guest.handle.kill()
        #expect(await guest.call.value?.code == .taskCancelled)
    }

    // MARK: - Code on the sandbox's own thread

    @Test func `cancelling a task on the sandbox's own thread ends its call`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let word = try await SharedWord(of: sandbox)
        let task = Task {
            try await sandbox.run { sandbox in
                let error = await #expect(throws: SandboxError.self) {
                    try await sandbox.call("spin_and_say_so", word.address)
                }
                #expect(Task.isCancelled)
                return error
            }
        }
        await waitUntil { word.value == 1 }
        task.cancel()
        #expect(try await task.value?.code == .taskCancelled)
        await expectPoisoned(sandbox)
    }

    @Test(arguments: [false, true])
    func `a task on the sandbox's own thread that is cancelled between two calls makes no more`(
        isSuspended: Bool
    ) async throws {
        let sandbox = try await Guest.echo.sandbox()
        let canBeCancelled = Flag()
        let isCancelled = Flag()
        let task = Task {
            try await sandbox.run { sandbox in
                let add = try sandbox.function("add_to_static", as: ((Int) -> Void).self)
                try await add(1)
                if isSuspended { await Task.yield() }
                canBeCancelled.set()
                while !isCancelled.isSet { sched_yield() }
                let error = await #expect(throws: SandboxError.self) { try await add(1) }
                return error?.code
            }
        }
        await waitUntil { canBeCancelled.isSet }
        task.cancel()
        isCancelled.set()
        #expect(try await task.value == .taskCancelled)
        #expect(try await sandbox.call("get_static") == 11)
    }

    @Test func `tasks that take turns on the sandbox's own thread are cancelled each for itself`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let word = try await SharedWord(of: sandbox)
        let hasBegun = Flag()
        let mayEnd = Flag()
        // Begun first, and suspended: its scope is not the last one any more.
        let bystander = Task {
            try await sandbox.run { sandbox in
                hasBegun.set()
                await waitUntil { mayEnd.isSet }
                return await #expect(throws: SandboxError.self) { try await sandbox.call("answer") }?.code
            }
        }
        await waitUntil { hasBegun.isSet }
        let spinning = Task {
            try await sandbox.run { sandbox in
                // The other one's cancellation reaches a task that is in no call, and not this one's call.
                await #expect(throws: SandboxError.self) { try await sandbox.call("spin_and_say_so", word.address) }?
                    .code
            }
        }
        await waitUntil { word.value == 1 }
        bystander.cancel()
        #expect(await onThread { sandbox.interruptHandle.kill() } == .signalled)
        #expect(try await spinning.value == .killed)
        mayEnd.set()
        let code = try await bystander.value
        #expect(code == .poisoned || code == .taskCancelled)
    }

    @Test func `a task that begins inside another one on the sandbox's own thread is cancelled for itself`()
        async throws
    {
        let sandbox = try await Guest.echo.sandbox()
        try await sandbox.run { sandbox in
            try await sandbox.call("add_to_static", 1)
            let inner = Task.immediate {
                unsafe withUnsafeCurrentTask { unsafe $0?.cancel() }
                _ = sandbox.module
                return await #expect(throws: SandboxError.self) { try await sandbox.call("add_to_static", 1) }?.code
            }
            try await sandbox.call("add_to_static", 1)
            #expect(await inner.value == .taskCancelled)
            try await sandbox.call("add_to_static", 1)
        }
        #expect(try await sandbox.call("get_static") == 13)
    }

    @Test func `calls on the sandbox's own thread end before their task's cancellation or by it`() async throws {
        let sandbox = try await Guest.echo.sandbox()
        let snapshot = try await sandbox.snapshot()
        for round in 0..<Surroundings.scaled(200) {
            let made = Locked(0)
            let task = Task {
                try await sandbox.run { sandbox in
                    while true {
                        try await sandbox.call("add_to_static", 1)
                        made.withLock { $0 += 1 }
                    }
                }
            }
            if round % 2 == 0 { await waitUntil { made.withLock { $0 } > round % 7 } }
            task.cancel()
            let error = await #expect(throws: SandboxError.self) { try await task.value }
            #expect(error?.code == .taskCancelled)
            try await sandbox.restore(to: snapshot)
            #expect(try await sandbox.call("get_static") == 10)
        }
    }
}
