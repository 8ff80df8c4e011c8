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
        #expect(await onThread { guest.handle.interrupt(.taskCancelled) } == .signalled)
        guest.handle.kill()
        #expect(await guest.call.value?.code == .taskCancelled)
    }
}
