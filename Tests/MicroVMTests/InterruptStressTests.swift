import Glibc
import Synchronization
import Testing

@testable import MicroVM

/// Kills at any moment: each call ends as it must, and everything adds up.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct InterruptStressTests {
    /// What became of one sandbox's calls.
    private struct Account {
        var completed = 0
        var killed = 0
        /// Kills that found a call under way.
        var effective = 0
    }

    private static let rounds = 40
    /// Every so many rounds the guest would never end by itself.
    private static let endless = 4

    @Test func `kills at random moments end the call they were meant for, or none`() async throws {
        let accounts = try await withThrowingTaskGroup(of: Account.self) { group in
            for _ in 0..<8 { group.addTask { try await Self.callsWithRandomKills() } }
            return try await group.reduce(into: []) { $0.append($1) }
        }
        for account in accounts {
            #expect(account.completed + account.killed == Self.rounds)
            // No call ends as killed without a kill that found it; some kills come as their call returns by itself.
            #expect(account.killed <= account.effective)
            #expect(account.killed >= Self.rounds / Self.endless)
        }
    }

    private static func callsWithRandomKills() async throws -> Account {
        var account = Account()
        var sandbox = try await Guest.spin.sandbox()
        for round in 0..<rounds {
            let handle = sandbox.interruptHandle
            let isEndless = round % endless == 0
            let microseconds = UInt32.random(in: 0...600)
            let killer = Task.detached {
                await onThread {
                    usleep(microseconds)
                    while true {
                        let outcome = handle.kill()
                        if !isEndless || outcome != .notRunning { return outcome }
                    }
                }
            }
            do {
                #expect(try await sandbox.call("iterate", isEndless ? .max : 300_000) == 300_000)
                account.completed += 1
                account.effective += await killer.value == .notRunning ? 0 : 1
                // Begun after the kill had returned: never hit.
                #expect(try await sandbox.call("iterate", 1000) == 1000)
            } catch let error as SandboxError {
                #expect(error.code == .killed)
                account.killed += 1
                let outcome = await killer.value
                #expect(outcome == .signalled || outcome == .pending)
                account.effective += 1
                sandbox = try await Guest.spin.sandbox()
            }
        }
        return account
    }

    @Test func `a guest that spins as soon as the host call has returned is always killed`() async throws {
        for _ in 0..<60 {
            let begun = Flag()
            let sandbox = try await Guest.spin.sandbox {
                $0.output = .handler { _, _ in begun.set() }
            }
            let call = Task { await #expect(throws: SandboxError.self) { try await sandbox.call("spin_with_output") } }
            let outcome = await onThread {
                while !begun.isSet { sched_yield() }
                return sandbox.interruptHandle.kill()
            }
            #expect(outcome == .signalled || outcome == .pending)
            #expect(await call.value?.code == .killed)
        }
    }

    @Test func `kills without pause never hit calls of another sandbox, nor hang`() async throws {
        let victim = try await Guest.spin.sandbox()
        let bystander = try await Guest.spin.sandbox()
        let stop = Flag()
        let killers = (0..<2).map { _ in
            Task.detached { await onThread { while !stop.isSet { victim.interruptHandle.kill() } } }
        }
        for _ in 0..<200 {
            do {
                _ = try await victim.call("iterate", 1000, returning: Int.self)
            } catch let error as SandboxError {
                #expect(error.code == .killed || error.code == .poisoned)
            }
            #expect(try await bystander.call("iterate", 1000) == 1000)
        }
        stop.set()
        for killer in killers { await killer.value }
        #expect(bystander.interruptHandle.spuriousKicks == 0)
    }

    @Test func `many sandboxes spin and are killed at once`() async throws {
        try await withThrowingTaskGroup(of: SandboxError.Code?.self) { group in
            for _ in 0..<32 {
                group.addTask {
                    let guest = try await SpinningGuest()
                    await onThread { _ = guest.handle.kill() }
                    return await guest.call.value?.code
                }
            }
            for try await code in group { #expect(code == .killed) }
        }
    }
}
