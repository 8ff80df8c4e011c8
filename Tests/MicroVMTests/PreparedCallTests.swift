import Testing

@testable import MicroVM

/// Calls that have a name before they begin, and run in the task that has them run.
@Suite(.requiresKVM, .timeLimit(.minutes(2))) struct PreparedCallTests {
    private enum Local { @TaskLocal static var name = "none" }

    @Test func `a prepared call runs where it is made, once, and says what it has cost`() async throws {
        let names = Shared<String>(nil)
        let sandbox = try await Guest.interruption.sandbox(
            interruptionFunctions(
                HostFunction("host_note") { (number: UInt64) -> Int64 in
                    names.value = Local.name
                    return Int64(number)
                }
            )
        )
        let call = try sandbox.prepareCall("note", 7 as UInt64, returning: Int64.self)
        #expect(!call.killSwitch.hasBegun && call.statistics == nil)
        #expect(try await Local.$name.withValue("caller") { try await call.run() } == 7)
        #expect(names.value == "caller")
        #expect(call.statistics?.hostCalls == 1 && call.statistics?.cpuTime != nil)
        #expect(call.killSwitch.answer() == .failure(.invalid))
        names.value = "nobody"
        await #expect(throws: SandboxError.self) { try await call.run() }
        #expect(names.value == "nobody")
        #expect(try await sandbox.call("answer") == 42)
    }

    @Test func `every kind of call can be prepared`() async throws {
        let sandbox = try await Guest.interruption.sandbox(interruptionFunctions())
        #expect(try await sandbox.prepareCall("answer", arguments: [], returning: Int.self).run() == 42)
        try await sandbox.prepareCall("answer").run()
        try await sandbox.prepareCall("answer", arguments: []).run()
        let descend = try sandbox.function("descend", as: ((UInt64, Int64) -> Int64).self)
        let called = try await descend(1, 3)
        #expect(try await descend.prepareCall(1, 3).run() == called)
        #expect(throws: SandboxError.self) { try sandbox.prepareCall("nothing_of_that_name") }
        let limited = try sandbox.prepareCall("iterate", Int.max, timeLimit: .milliseconds(5), returning: Int.self)
        let ended = await #expect(throws: SandboxError.self) { try await limited.run() }
        #expect(ended?.code == .timeLimitExceeded)
    }

    @Test func `one that is ended before it is made runs no guest code`() async throws {
        let notes = Counter()
        let sandbox = try await Guest.interruption.sandbox(
            interruptionFunctions(
                HostFunction("host_note") { (number: UInt64) -> Int64 in
                    notes.next()
                    return Int64(number)
                }
            )
        )
        let call = try sandbox.prepareCall("note", 7 as UInt64, returning: Int64.self)
        #expect(call.killSwitch.answer() == .success(.cancelled))
        #expect(call.killSwitch.answer() == .failure(.notTerminable))
        let ended = await #expect(throws: SandboxError.self) { try await call.run() }
        #expect(ended?.code == .killed && notes.value == 0 && call.statistics?.exits == 0)
        #expect(call.killSwitch.answer() == .failure(.invalid))
        // Nothing has happened to the sandbox.
        #expect(try await sandbox.call("note", 7 as UInt64) == 7)
        // One that is never made is harmless, too.
        _ = try sandbox.prepareCall("answer").killSwitch.terminate()
        #expect(try await sandbox.call("answer") == 42)
    }

    @Test func `one that is under way is ended by its switch, or by its task's cancellation`() async throws {
        for isCancelled in [false, true] {
            let sandbox = try await Guest.spin.sandbox()
            let word = try await SharedWord(of: sandbox)
            word.value = 0
            let call = try sandbox.prepareCall("spin_and_say_so", word.address)
            let task = Task { try await call.run() }
            await waitUntil { word.value == 1 }
            if isCancelled {
                task.cancel()
            } else {
                #expect(await onThread { call.killSwitch.answer() } == .success(.signalled))
            }
            let ended = await #expect(throws: SandboxError.self) { try await task.value }
            #expect(ended?.code == (isCancelled ? .taskCancelled : .killed))
            #expect(call.statistics?.exits ?? 0 > 0 && call.killSwitch.answer() == .failure(.invalid))
            #expect(await isPoisoned(sandbox))
        }
    }

    @Test func `one that the sandbox's own host function would wait for can be made afterwards`() async throws {
        let sandbox = Shared<Sandbox>(nil)
        let call = Shared<PreparedCall<Int>>(nil)
        let codes = Shared<SandboxError.Code>(nil)
        sandbox.value = try await Guest.interruption.sandbox(
            interruptionFunctions(
                HostFunction("host_wait") { (_: UInt64) async throws -> Void in
                    do {
                        _ = try await call.block().run()
                    } catch let error as SandboxError {
                        codes.value = error.code
                    }
                }
            )
        )
        let made = try #require(sandbox.value)
        call.value = try made.prepareCall("answer")
        try await made.call("waits", 1 as UInt64, 1)
        #expect(codes.value == .reentrantCall)
        #expect(try await call.block().run() == 42)
    }

    @Test func `the rest of a call can be prepared`() async throws {
        let sandbox = try await Guest.state.sandbox()
        let word = try await SharedWord(of: sandbox)
        let call = try sandbox.start("hold_and_sum", word.address, 1000 as UInt64, returning: UInt64.self)
        await waitUntil { word.value == 1 }
        let snapshot = try await sandbox.snapshot()
        word.value = 2
        #expect(try await call.result == 17_500)

        let goingOn = try await Sandbox(from: snapshot)
        try await SharedWord(of: goingOn).value = 2
        let rest: PreparedCall<UInt64> = goingOn.prepareResuming()
        #expect(try await rest.run() == 17_500)
        #expect(rest.statistics?.exits ?? 0 > 0)

        let held = try await Sandbox(from: snapshot)
        let killed = held.prepareResuming()
        #expect(killed.killSwitch.answer() == .success(.cancelled))
        let ended = await #expect(throws: SandboxError.self) { try await killed.run() }
        #expect(ended?.code == .killed)
    }
}
