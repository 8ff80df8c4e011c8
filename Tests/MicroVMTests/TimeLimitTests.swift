import Glibc
import Testing

@testable import MicroVM

/// A call ends when its time is over, wherever it is then, and no other call does.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct TimeLimitTests {
    private func error(_ body: () async throws -> Void) async -> SandboxError? {
        await #expect(throws: SandboxError.self) { try await body() }
    }

    @Test func `a spinning guest is ended when its time is over`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let error = await error { try await sandbox.call("spin", timeLimit: .milliseconds(20)) }
        #expect(error?.code == .timeLimitExceeded)
        #expect(error?.interruption?.symbol?.name == "spin" && error?.interruption?.hostFunction == nil)
        #expect(try #require(error?.interruption).duration >= .milliseconds(20))
        await expectPoisoned(sandbox)
    }

    @Test func `a limit ends a guest that makes host calls all the time`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        let error = await error { try await sandbox.call("spin_with_host_calls", timeLimit: .milliseconds(20)) }
        #expect(error?.code == .timeLimitExceeded && error?.interruption?.symbol?.name == "spin_with_host_calls")
    }

    @Test func `a slow host function is left to its end, and then the call is over`() async throws {
        // On a busy machine a limit may pass before the guest has got to its host call: then again with a longer one.
        var limit = Duration.milliseconds(20)
        while true {
            let ended = Flag()
            let sandbox = try await Guest.hostCalls.sandbox(
                hostFunctions(
                    HostFunction("host_tick") { [limit] () in
                        let begin = MonotonicTime.now
                        while begin.duration(to: .now) < limit { usleep(1000) }
                        ended.set()
                    }
                )
            )
            let error = await error { try await sandbox.call("tick_in_a_loop", 1000, timeLimit: limit) }
            #expect(error?.code == .timeLimitExceeded)
            if ended.isSet {
                #expect(error?.interruption?.hostFunction == "host_tick")
                await expectPoisoned(sandbox, "call_tick")
                return
            }
            limit *= 2
        }
    }

    @Test(arguments: [
        Duration.zero, .nanoseconds(-1), .seconds(-5), Duration(secondsComponent: .min, attosecondsComponent: 0),
    ])
    func `a call without any time ends before the guest has run`(_ limit: Duration) async throws {
        let sandbox = try await Guest.echo.sandbox()
        let error = await error { try await sandbox.call("add_to_static", 5, timeLimit: limit) }
        #expect(error?.code == .timeLimitExceeded && error?.interruption?.symbol?.name == "add_to_static")
        // Nothing has been left half done.
        #expect(try await sandbox.call("get_static") == 10)
    }

    @Test(arguments: [
        Duration.seconds(1000), .seconds(1 << 40), .seconds(Int64.max),
        Duration(secondsComponent: .max, attosecondsComponent: 999_999_999_999_999_999),
    ])
    func `a limit can be as long as one likes`(_ limit: Duration) async throws {
        let sandbox = try await Guest.spin.sandbox()
        for _ in 0..<3 { #expect(try await sandbox.call("answer", timeLimit: limit) == 42) }
    }

    @Test func `a limit that was not reached leaves the next call alone`() async throws {
        let sandbox = try await Guest.spin.sandbox()
        var ended = 0
        for _ in 0..<200 {
            #expect(try await sandbox.call("iterate", 1000, timeLimit: .seconds(30)) == 1000)
            // Many timers go off about when their call returns; that ends this call or none.
            do {
                _ = try await sandbox.call("iterate", 1, timeLimit: .microseconds(60), returning: Int.self)
            } catch let error as SandboxError {
                #expect(error.code == .timeLimitExceeded)
                ended += 1
                break
            }
        }
        if ended == 0 { #expect(try await sandbox.call("iterate", 50_000_000) == 50_000_000) }
    }

    @Test func `a call without limit is never hit by the limit of the one before`() async throws {
        // The limits are short enough that some calls meet theirs: in a new sandbox each time.
        for round in 0..<60 {
            let sandbox = try await Guest.spin.sandbox()
            do {
                for _ in 0..<20 {
                    let limit = Duration.microseconds(20 + 5 * round)
                    _ = try await sandbox.call("answer", timeLimit: limit, returning: Int.self)
                    #expect(try await sandbox.call("iterate", 20_000) == 20_000)
                }
            } catch let error as SandboxError {
                #expect(error.code == .timeLimitExceeded || error.code == .poisoned)
            }
        }
    }

    @Test func `host calls within the limit are not disturbed`() async throws {
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions())
        for _ in 0..<5 {
            #expect(try await sandbox.call("add_in_a_loop", 500, timeLimit: .seconds(30)) == 124_750)
        }
    }

    @Test func `kill and limit together end the call once, for one of the reasons`() async throws {
        var codes: Set<SandboxError.Code> = []
        for round in 0..<20 {
            let guest = try await SpinningGuest(in: Guest.spin.sandbox(), timeLimit: .milliseconds(30 + round % 3))
            await onThread { _ = guest.handle.kill() }
            if let code = await guest.call.value?.code { codes.insert(code) }
            await guest.sandbox.close()
        }
        #expect(codes.isSubset(of: [.killed, .timeLimitExceeded]))
    }
}
