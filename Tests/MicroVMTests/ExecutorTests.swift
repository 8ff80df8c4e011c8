import Glibc
import Testing

@testable import MicroVM

/// Everything isolated to a sandbox runs on one thread of its own.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct ExecutorTests {
    private static func thread() -> UInt { UInt(pthread_self()) }

    @Test func `a sandbox has one thread, and nobody else has it`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        let other = try await Guest.arithmetic.sandbox()
        let thread = try await sandbox.run { _ in Self.thread() }
        #expect(try await other.run { _ in Self.thread() } != thread)
        for _ in 0..<20 {
            let again = try await sandbox.run { sandbox in
                let before = Self.thread()
                let sum: Int = try await sandbox.call("add", 1, 2)
                await Task.yield()
                let result: Double = try await sandbox.call("add_f64", 1.0, Double(sum))
                return before == Self.thread() && result == 4 ? before : 0
            }
            #expect(again == thread)
        }
    }

    @Test func `host functions run there too`() async throws {
        let threads = Recorder<UInt>()
        let sandbox = try await Guest.hostCalls.sandbox(
            hostFunctions(HostFunction("host_tick") { () in threads.append(Self.thread()) })
        )
        try await sandbox.call("tick_in_a_loop", 5)
        let thread = try await sandbox.run { _ in Self.thread() }
        #expect(threads.all == Array(repeating: thread, count: 5))
    }

    @Test func `isolation can be assumed in a host function`() async throws {
        let sandboxes = Shared<Sandbox>(nil)
        let checks = Recorder<Bool>()
        let sandbox = try await Guest.hostCalls.sandbox(
            hostFunctions(
                HostFunction("host_tick") { () in
                    sandboxes.value?.assumeIsolated { checks.append((try? $0.memory) != nil) }
                }
            )
        )
        sandboxes.value = sandbox
        try await sandbox.call("call_tick")
        sandboxes.value = nil
        #expect(checks.all == [true])
        try await sandbox.run { $0.assertIsolated() }
    }

    @Test func `elsewhere it cannot`() async throws {
        await #expect(processExitsWith: .failure) {
            let sandbox = try await Guest.arithmetic.sandbox()
            func assume() { sandbox.assumeIsolated { _ = try? $0.memory } }
            assume()
        }
    }

    @Test func `guests that run do not take the cooperative pool's threads`() async throws {
        // More than the pool has threads: all of them spin at once, and Swift code goes on.
        let count = Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))) + 2
        var guests: [SpinningGuest] = []
        for _ in 0..<count { guests.append(try await SpinningGuest()) }
        let sums = await withTaskGroup(of: Int.self) { group in
            for number in 0..<count * 2 { group.addTask { number } }
            return await group.reduce(0, +)
        }
        #expect(sums == (0..<count * 2).reduce(0, +))
        for guest in guests {
            #expect(await onThread { guest.handle.kill() } == .signalled)
            #expect(await guest.call.value?.code == .killed)
        }
    }

    @Test func `calls from many tasks take turns`() async throws {
        let sandbox = try await Guest.echo.sandbox()
        await withTaskGroup(of: Void.self) { group in
            for _ in 0..<100 {
                group.addTask {
                    await #expect(throws: Never.self) {
                        _ = try await sandbox.call("add_to_static", 1, returning: Int.self)
                    }
                }
            }
        }
        #expect(try await sandbox.call("get_static") == 110)
    }
}
