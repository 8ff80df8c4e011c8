import Glibc
import Synchronization
import Testing

@testable import MicroVM

/// Kills at any moment: each call ends as it must, and everything adds up.
@Suite(.requiresKVM, .timeLimit(.minutes(1))) struct InterruptStressTests {
    /// What became of one sandbox's calls.
    private struct Account {
        var completed = 0
        var killed = 0
        var outcomes: [LinuxInterruptHandle.KillOutcome: Int] = [:]
    }

    @Test func `kills at random moments end the call they were meant for, or none`() async throws {
        let accounts = try await withThrowingTaskGroup(of: Account.self) { group in
            for seed in 0..<8 { group.addTask { try await Self.callsWithRandomKills(seed) } }
            return try await group.reduce(into: []) { $0.append($1) }
        }
        #expect(accounts.allSatisfy { $0.completed + $0.killed == 40 })
        let killed = accounts.reduce(0) { $0 + $1.killed }
        let effective = accounts.reduce(0) { $0 + ($1.outcomes[.signalled] ?? 0) + ($1.outcomes[.pending] ?? 0) }
        // No call ends as killed without a kill that found it; some kills come as their call returns by itself.
        #expect(killed <= effective)
        // A test of nothing if it were none.
        #expect(killed > 0)
    }

    private static func callsWithRandomKills(_ seed: Int) async throws -> Account {
        var account = Account()
        var generator = SystemRandomNumberGenerator()
        var sandbox = try await Guest.spin.sandbox()
        for step in 0..<40 {
            let handle = sandbox.interruptHandle
            let microseconds = UInt32.random(in: 0...600, using: &generator)
            let killer = Task.detached {
                await onThread {
                    usleep(microseconds)
                    return handle.kill()
                }
            }
            do {
                // Every other call outlasts its kill, the rest are a race.
                let turns = step.isMultiple(of: 2) ? 1_000_000_000 : 300_000
                #expect(try await sandbox.call("iterate", turns) == turns)
                account.completed += 1
                account.outcomes[await killer.value, default: 0] += 1
                // Begun after the kill had returned: never hit.
                #expect(try await sandbox.call("iterate", 1000) == 1000)
            } catch let error as SandboxError {
                #expect(error.code == .killed)
                account.killed += 1
                let outcome = await killer.value
                #expect(outcome == .signalled || outcome == .pending)
                account.outcomes[outcome, default: 0] += 1
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
        var ended = 0
        for _ in 0..<200 {
            do {
                _ = try await victim.call("iterate", 1000, returning: Int.self)
            } catch let error as SandboxError {
                #expect(error.code == .killed || error.code == .poisoned)
                ended += 1
            }
            #expect(try await bystander.call("iterate", 1000) == 1000)
        }
        stop.set()
        for killer in killers { await killer.value }
        #expect(bystander.interruptHandle.spuriousKicks == 0)
        _ = ended
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
