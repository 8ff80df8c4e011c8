import Testing

@testable import MicroVM

/// Who waits for a sandbox of a pool, who gets it, and how a pool ends.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct SandboxPoolWaitingTests {
    /// Starts callers that stand in the line in the order of their numbers.
    private static func line(_ pool: SandboxPool, _ served: Recorder<Int>, count: Int) async -> [Task<CallEnd, Never>] {
        var callers: [Task<CallEnd, Never>] = []
        let before = pool.statistics.waiting
        for number in 0..<count {
            callers.append(
                Task {
                    await CallEnd {
                        try await pool.withSandbox { sandbox in
                            served.append(number)
                            try await expectCount(1, sandbox)
                        }
                    }
                }
            )
            await waitUntil { pool.statistics.waiting == before + number + 1 }
        }
        return callers
    }

    @Test(arguments: [1, 3])
    func `those who wait are served in their order`(_ size: Int) async throws {
        let pool = try await SandboxPool(Guest.state.module(), size: size...size)
        for _ in 0..<3 {
            var borrowers: [Borrower] = []
            for _ in 0..<size { borrowers.append(await Borrower(of: pool)) }
            let served = Recorder<Int>()
            let callers = await Self.line(pool, served, count: 30)
            await borrowers[0].finish()
            // With more sandboxes than one, the others stay lent, so that one after the other is served.
            for caller in callers { #expect(await caller.value.hasReturned) }
            for borrower in borrowers { await borrower.finish() }
            #expect(served.all == Array(0..<30))
        }
        #expect(await pool.settled().loans == 3 * (30 + size))
    }

    @Test func `no more wait than may`() async throws {
        let pool = try await SandboxPool(Guest.state.module(), size: 1...1, maximumWaiters: 2)
        let borrower = await Borrower(of: pool)
        let served = Recorder<Int>()
        let callers = await Self.line(pool, served, count: 2)
        for _ in 0..<5 {
            let error = await #expect(throws: SandboxError.self) { try await pool.withSandbox { _ in } }
            #expect(error?.code == .poolExhausted)
        }
        #expect(pool.statistics.refusals == 5 && pool.statistics.waiting == 2)
        await borrower.finish()
        for caller in callers { #expect(await caller.value.hasReturned) }
        try await pool.withSandbox { _ in }
        #expect(served.all == [0, 1])

        let impatient = try await SandboxPool(Guest.state.module(), size: 0...1, maximumWaiters: 0)
        try await impatient.withSandbox { _ in
            let error = await #expect(throws: SandboxError.self) { try await impatient.withSandbox { _ in } }
            #expect(error?.code == .poolExhausted)
        }
    }

    @Test func `nobody waits longer than the limit`() async throws {
        let pool = try await SandboxPool(Guest.state.module(), size: 1...1, waitingTimeLimit: .milliseconds(5))
        let borrower = await Borrower(of: pool)
        for _ in 0..<5 {
            let error = await #expect(throws: SandboxError.self) {
                try await pool.withSandbox { _ in Issue.record("lent all the same") }
            }
            #expect(error?.code == .poolExhausted)
        }
        #expect(pool.statistics.waiting == 0 && pool.statistics.refusals == 5)
        await borrower.finish()
        _ = await pool.settled()
        try await pool.withSandbox { _ in }
    }

    @Test func `a cancelled caller leaves the line at once`() async throws {
        let pool = try await SandboxPool(Guest.state.module(), size: 1...1)
        let borrower = await Borrower(of: pool)
        let served = Recorder<Int>()
        let callers = await Self.line(pool, served, count: 10)
        for number in [0, 4, 5, 9] {
            callers[number].cancel()
            // The borrower has its sandbox still.
            #expect(await callers[number].value.code == .taskCancelled)
        }
        #expect(pool.statistics.waiting == 6)
        // One that was cancelled before it came to wait is no different.
        let mayGo = Flag()
        let late = Task {
            await waitUntil { mayGo.isSet }
            _ = try await pool.withSandbox { _ in Issue.record("lent all the same") }
        }
        late.cancel()
        mayGo.set()
        let error = await #expect(throws: SandboxError.self) { try await late.value }
        #expect(error?.code == .taskCancelled)
        await borrower.finish()
        for number in [1, 2, 3, 6, 7, 8] { #expect(await callers[number].value.hasReturned) }
        #expect(served.all == [1, 2, 3, 6, 7, 8])
        #expect(await pool.settled().refusals == 0)
    }

    // MARK: - The end

    @Test func `a shutdown waits for what is lent and refuses the rest`() async throws {
        let pool = try await SandboxPool(Guest.state.module(), size: 2...2)
        let borrowers = [await Borrower(of: pool), await Borrower(of: pool)]
        let served = Recorder<Int>()
        let callers = await Self.line(pool, served, count: 5)
        let isOver = Flag()
        let shutDown = Task {
            await pool.shutDown()
            isOver.set()
        }
        for caller in callers { #expect(await caller.value.code == .poolShutDown) }
        let error = await #expect(throws: SandboxError.self) { try await pool.withSandbox { _ in } }
        #expect(error?.code == .poolShutDown)
        #expect(!isOver.isSet && pool.statistics.inUse == 2)
        #expect(await borrowers[0].finish() == nil)
        await waitUntil { pool.statistics.sandboxes == 1 }
        #expect(!isOver.isSet)
        #expect(await borrowers[1].finish() == nil)
        await shutDown.value
        await pool.shutDown()
        await pool.shutDownNow()
        #expect(pool.statistics.sandboxes == 0 && served.all.isEmpty)
    }

    @Test(arguments: [false, true])
    func `a hard shutdown kills what is lent`(_ byCancellation: Bool) async throws {
        let pool = try await SandboxPool(Guest.spin.module(), size: 3...3)
        let words = Recorder<SharedWord>()
        var borrowers: [Task<[SandboxError.Code?], Never>] = []
        for _ in 0..<2 {
            borrowers.append(
                Task {
                    var codes: [SandboxError.Code?] = []
                    try? await pool.withSandbox { sandbox in
                        let word = try await SharedWord(of: sandbox)
                        words.append(word)
                        codes.append(await CallEnd { try await sandbox.call("spin_and_say_so", word.address) }.code)
                        codes.append(await CallEnd { let _: Int = try await sandbox.call("answer") }.code)
                    }
                    return codes
                }
            )
        }
        await waitUntil { words.count == 2 && words.all.allSatisfy { $0.value == 1 } }
        if byCancellation {
            let shutDown = Task { await pool.shutDown() }
            await waitUntil { pool.statistics.idle == 0 }
            shutDown.cancel()
            await shutDown.value
        } else {
            await pool.shutDownNow()
        }
        #expect(pool.statistics.sandboxes == 0 && pool.statistics.inUse == 0)
        for borrower in borrowers { #expect(await borrower.value == [.killed, .closed]) }
    }
}
