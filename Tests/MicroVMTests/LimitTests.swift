import SystemCallCounter
import Testing

@testable import MicroVM

/// Limits on CPU time and by the clock, side by side, and what a call has cost.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct LimitTests {
    private static func sandbox(
        _ replacements: HostFunction...,
        configure: (inout SandboxConfiguration) -> Void = { _ in }
    ) async throws -> Sandbox {
        try await Guest.interruption.sandbox(
            replacements + interruptionFunctions().filter { given in !replacements.contains { $0.name == given.name } },
            configure: configure
        )
    }

    /// CPU time enough to get into the guest and to a host call, which others cannot take away.
    private static let enoughToBegin: Duration = Surroundings.isEmulated ? .seconds(1) : .milliseconds(50)

    private func error(_ body: () async throws -> Void) async -> SandboxError? {
        await #expect(throws: SandboxError.self) { try await body() }
    }

    // MARK: - CPU time

    @Test func `a spinning guest ends when its CPU time is used up`() async throws {
        let sandbox = try await Self.sandbox()
        let error = await error { try await sandbox.call("spin", cpuTimeLimit: .milliseconds(30)) }
        #expect(error?.code == .cpuTimeLimitExceeded && error?.interruption?.symbol?.name == "spin")
        let statistics = try #require(error?.statistics)
        #expect(try #require(statistics.cpuTime) >= .milliseconds(30))
        #expect(statistics.duration >= .milliseconds(30) && statistics.exits == 1)
        await expectPoisoned(sandbox)
    }

    @Test(arguments: [Duration.zero, .seconds(-1)])
    func `a call without any CPU time ends before the guest has run`(_ limit: Duration) async throws {
        let sandbox = try await Self.sandbox()
        let error = await error { try await sandbox.call("spin", cpuTimeLimit: limit) }
        #expect(error?.code == .cpuTimeLimitExceeded && error?.statistics?.exits == 0)
        #expect(try await sandbox.call("answer") == 42)
    }

    @Test(arguments: [
        HostFunction("host_wait") { (number: UInt64) async throws -> Void in
            try await Task.sleep(for: .milliseconds(300))
        },
        HostFunction("host_wait") { (context: HostCallContext, _: UInt64) throws -> Void in
            try context.sleep(for: .milliseconds(300))
        },
    ])
    func `a host function that sleeps uses up no CPU time`(_ function: HostFunction) async throws {
        let sandbox = try await Self.sandbox(function)
        let call = try sandbox.start("waits", UInt64(1), 3, cpuTimeLimit: .milliseconds(600), returning: Int.self)
        #expect(try await call.result == 3)
        let statistics = try #require(await call.statistics)
        #expect(statistics.duration >= .milliseconds(900))
        #expect(try #require(statistics.cpuTime) < .milliseconds(600))
    }

    @Test func `a host function that computes uses up CPU time, and the call ends after it`() async throws {
        let ended = Flag()
        let sandbox = try await Self.sandbox(
            HostFunction("host_note") { (context: HostCallContext, _: UInt64) -> Int64 in
                while !context.isCancelled {}
                ended.set()
                return 0
            }
        )
        let error = await error {
            _ = try await sandbox.call("notes", UInt64(1), 2, cpuTimeLimit: Self.enoughToBegin, returning: Int.self)
        }
        #expect(error?.code == .cpuTimeLimitExceeded && ended.isSet && error?.statistics?.hostCalls == 1)
        #expect(error?.interruption?.hostFunction == "host_note")
    }

    @Test func `nested calls share the budget of the call they are in`() async throws {
        let sandbox = try await Self.sandbox(
            HostFunction("host_nest") { (context: HostCallContext, _: UInt64, _: Int64) throws -> Int64 in
                try context.call("spin")
                return 0
            }
        )
        let error = await error {
            _ = try await sandbox.call("descend", UInt64(1), 2, cpuTimeLimit: Self.enoughToBegin, returning: Int.self)
        }
        #expect(error?.code == .cpuTimeLimitExceeded && error?.interruption?.callDepth == 1)
        #expect(error?.statistics?.nestedCalls == 1 && error?.interruption?.symbol?.name == "spin")
    }

    @Test func `a budget that was not used up leaves the next call alone`() async throws {
        let sandbox = try await Self.sandbox()
        for _ in 0..<Surroundings.scaled(100) {
            #expect(try await sandbox.call("iterate", 1000, cpuTimeLimit: .seconds(30)) == 1000)
        }
        #expect(try await sandbox.call("iterate", 50_000_000) == 50_000_000)
    }

    // MARK: - Whose limit it is

    @Test func `the configuration's limits are those of calls that name none`() async throws {
        for isCPUTime in [false, true] {
            let sandbox = try await Self.sandbox {
                if isCPUTime { $0.cpuTimeLimit = .milliseconds(20) } else { $0.timeLimit = .milliseconds(20) }
            }
            let error = await error { try await sandbox.call("spin") }
            #expect(error?.code == (isCPUTime ? .cpuTimeLimitExceeded : .timeLimitExceeded))
        }
    }

    @Test func `a call's own limits come before the configuration's, longer or shorter`() async throws {
        let sandbox = try await Self.sandbox {
            $0.timeLimit = .zero
            $0.cpuTimeLimit = .zero
        }
        let none = await error { _ = try await sandbox.call("answer", returning: Int.self) }
        #expect(none?.code == .timeLimitExceeded)
        let own = await error { _ = try await sandbox.call("answer", timeLimit: .seconds(60), returning: Int.self) }
        #expect(own?.code == .cpuTimeLimitExceeded)
        #expect(try await sandbox.call("answer", timeLimit: .seconds(60), cpuTimeLimit: .seconds(60)) == 42)
        let function = try sandbox.function("answer", as: (() -> Int).self)
        #expect(try await function(timeLimit: .seconds(60), cpuTimeLimit: .seconds(60)) == 42)
        let shorter = try await Self.sandbox { $0.timeLimit = .seconds(1000) }
        let error = await error { try await shorter.call("spin", timeLimit: .milliseconds(10)) }
        #expect(error?.code == .timeLimitExceeded)
    }

    @Test func `of two limits the one that passes first ends the call`() async throws {
        let spinning = try await Self.sandbox()
        let first = await error {
            try await spinning.call("spin", timeLimit: .seconds(1000), cpuTimeLimit: .milliseconds(20))
        }
        #expect(first?.code == .cpuTimeLimitExceeded)
        let entered = Flag()
        let sleeping = try await Self.sandbox(
            HostFunction("host_wait") { (context: HostCallContext, _: UInt64) throws -> Void in
                entered.set()
                try context.sleep(for: .seconds(1000))
            }
        )
        let second = await error {
            try await sleeping.call("wait", UInt64(1), timeLimit: .milliseconds(20), cpuTimeLimit: .seconds(1000))
        }
        #expect(second?.code == .timeLimitExceeded)
        #expect(second?.interruption?.hostFunction == (entered.isSet ? "host_wait" : nil))
    }

    // MARK: - Initialisers

    @Test func `initialisers have limits of their own, or those of calls`() async throws {
        func code(_ configure: (inout SandboxConfiguration) -> Void) async -> SandboxError.Code? {
            await error { _ = try await Guest.spinInInitializer.sandbox(configure: configure) }?.code
        }
        #expect(await code { $0.initializerCPUTimeLimit = .milliseconds(20) } == .cpuTimeLimitExceeded)
        #expect(await code { $0.initializerTimeLimit = .milliseconds(20) } == .timeLimitExceeded)
        #expect(await code { $0.cpuTimeLimit = .milliseconds(20) } == .cpuTimeLimitExceeded)
        #expect(await code { $0.timeLimit = .milliseconds(20) } == .timeLimitExceeded)
        // Their own come first.
        let sandbox = try await Guest.initializers.sandbox {
            $0.timeLimit = .zero
            $0.cpuTimeLimit = .zero
            $0.initializerTimeLimit = .seconds(60)
            $0.initializerCPUTimeLimit = .seconds(60)
        }
        #expect(try await sandbox.call("twice", 21, timeLimit: .seconds(60), cpuTimeLimit: .seconds(60)) == 42)
    }

    // MARK: - Statistics

    @Test func `a call's statistics count exits, host calls and nested calls exactly`() async throws {
        let sandbox = try await Self.sandbox()
        for (name, arguments, hostCalls, nestedCalls) in [
            ("answer", [], 0, 0), ("notes", [UInt64(1), 0], 0, 0), ("notes", [UInt64(1), 7], 7, 0),
            ("waits", [UInt64(1), 4], 4, 0), ("descend", [UInt64(1), 0], 0, 0), ("descend", [UInt64(1), 1], 1, 1),
            ("descend", [UInt64(1), 6], 6, 6),
        ] as [(String, [any GuestValue], UInt64, UInt64)] {
            let call = try sandbox.start(name, arguments: arguments, returning: Int.self)
            _ = try await call.result
            let statistics = try #require(await call.statistics)
            #expect(statistics.hostCalls == hostCalls && statistics.nestedCalls == nestedCalls)
            // Each host call, each return of a nested call, and the return of the call itself.
            #expect(statistics.exits == hostCalls + nestedCalls + 1)
            #expect(statistics.debugInterrupts == 0 && statistics.stoppedDuration == .zero)
            // How it compares with the duration is the clocks' affair, which in an emulated machine do not agree.
            #expect(try #require(statistics.cpuTime) > .zero)
        }
    }

    @Test func `the statistics of a call that never began are none, and those of one that was killed are there`()
        async throws
    {
        let guest = try await CountingGuest()
        let waiting = try guest.sandbox.start("answer", returning: Int.self)
        try waiting.killSwitch.terminate()
        await onThread { _ = guest.handle.kill() }
        let error = await guest.error()
        let statistics = await guest.call.statistics
        #expect(error?.statistics?.exits == 1 && statistics?.exits == 1)
        _ = await self.error { _ = try await waiting.result }
        #expect(await waiting.statistics?.exits ?? 0 == 0)
    }

    @Test func `imports that the library provides are host calls like others`() async throws {
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions())
        let call = try sandbox.start("clock_moves_on", returning: Bool.self)
        #expect(try await call.result)
        #expect(await call.statistics?.hostCalls == 2)
        #expect(await call.statistics?.exits == 3)
    }

    @Test func `CPU time is measured where somebody wants to know it`() async throws {
        let plain = try await Self.sandbox()
        #expect(try await plain.call("answer") == 42)
        #expect(try await plain.pullFullState().statistics.cpuTime == nil)
        #expect(try await plain.call("answer", cpuTimeLimit: .seconds(60)) == 42)
        #expect(try #require(await plain.pullFullState().statistics.cpuTime) > .zero)
        let measuring = try await Self.sandbox { $0.measuresCPUTime = true }
        #expect(try await measuring.call("answer") == 42)
        #expect(try #require(await measuring.pullFullState().statistics.cpuTime) > .zero)
        for (sandbox, isMeasured) in [(plain, false), (measuring, true)] {
            let error = await error { try await sandbox.call("spin", timeLimit: .milliseconds(5)) }
            #expect((error?.statistics?.cpuTime != nil) == isMeasured)
        }
    }

    // MARK: - System calls

    @Test func `a limit costs one setting of its timer at the beginning of a call and one at its end`() async throws {
        let sandbox = try await Self.sandbox()
        let limit = Duration.seconds(1000)
        let settings = try await sandbox.run { sandbox in
            var settings: [UInt64] = []
            for (timeLimit, cpuTimeLimit) in [(nil, nil), (limit, nil), (nil, limit), (limit, limit), (nil, nil)] {
                let before = timer_settings_of_thread()
                for _ in 0..<10 {
                    _ = try await sandbox.call(
                        "notes",
                        UInt64(1),
                        20,
                        timeLimit: timeLimit,
                        cpuTimeLimit: cpuTimeLimit,
                        returning: Int.self
                    )
                }
                settings.append(timer_settings_of_thread() - before)
            }
            return settings
        }
        #expect(settings == [0, 20, 20, 40, 0])
    }
}
