import Glibc
import SystemPackage
import Testing

@testable import MicroVM

/// What a sandbox takes it gives back, however it ends. Each test has a process of its own, because it counts what the
/// process has.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct ResourceTests {
    /// Expects many more rounds to leave no more than the first ones have: more than the mappings that are let pass.
    private static func expectNoGrowth(_ round: @Sendable () async throws -> Void) async throws {
        for _ in 0..<5 { try await round() }
        // The threads of those rounds have ended when no further one of them does.
        try await Task.sleep(for: .milliseconds(200))
        let before = Resources()
        for _ in 0..<(Surroundings.isEmulated ? 65 : 100) { try await round() }
        let after = await Resources.settled { $0.isWithin(before) }
        #expect(after.isWithin(before), "\(before) have become \(after)")
    }

    @Test func `closing gives everything back`() async {
        await #expect(processExitsWith: .success) {
            try await Self.expectNoGrowth {
                let sandbox = try await Guest.arithmetic.sandbox()
                #expect(try await sandbox.call("add", 2, 3, timeLimit: .seconds(60)) == 5)
                await sandbox.close()
            }
        }
    }

    @Test func `dropping gives everything back`() async {
        await #expect(processExitsWith: .success) {
            try await Self.expectNoGrowth {
                let sandbox = try await Guest.arithmetic.sandbox()
                let add = try sandbox.function("add", as: ((Int, Int) -> Int).self)
                #expect(try await add(2, 3, timeLimit: .seconds(60)) == 5)
            }
        }
    }

    @Test func `a sandbox that was killed or has faulted gives everything back`() async {
        await #expect(processExitsWith: .success) {
            try await Self.expectNoGrowth {
                let guest = try await SpinningGuest()
                await onThread { _ = guest.handle.kill() }
                #expect(await guest.call.value?.code == .killed)
                let sandbox = try await Guest.faults.sandbox()
                await #expect(throws: SandboxError.self) { try await sandbox.call("read_null") }
            }
        }
    }

    @Test func `a sandbox that could not be made leaves nothing`() async {
        await #expect(processExitsWith: .success) {
            try await Self.expectNoGrowth {
                await #expect(throws: SandboxError.self) { try await Guest.missingImport.sandbox() }
                await #expect(throws: SandboxError.self) {
                    try await Guest.arithmetic.sandbox { $0.memoryLimit = 4096 }
                }
                await #expect(throws: SandboxError.self) { try await Guest.faultInInitializer.sandbox() }
                await #expect(throws: SandboxError.self) {
                    try await Guest.spinInInitializer.sandbox { $0.initializerTimeLimit = .microseconds(100) }
                }
            }
        }
    }

    @Test func `a sandbox that finds no descriptors says so and leaves nothing`() async {
        await #expect(processExitsWith: .success) {
            // Whatever is opened once in a process is open.
            try await Self.expectNoGrowth { _ = try await Guest.arithmetic.sandbox() }
            var limit = rlimit()
            let kind = __rlimit_resource_t(UInt32(RLIMIT_NOFILE.rawValue))
            // The structures outlive the calls.
            unsafe getrlimit(kind, &limit)
            limit.rlim_cur = 64
            unsafe setrlimit(kind, &limit)
            for free in 0..<4 {
                var taken: [Int32] = []
                while case let descriptor = dup(0), descriptor >= 0 { taken.append(descriptor) }
                for _ in 0..<free { if let descriptor = taken.popLast() { close(descriptor) } }
                let error: SandboxError?
                do {
                    let sandbox = try await Guest.arithmetic.sandbox()
                    #expect(try await sandbox.call("add", 2, 3) == 5)
                    await sandbox.close()
                    error = nil
                } catch let failure as SandboxError {
                    error = failure
                }
                if let error {
                    #expect(error.code == .systemCallFailed && error.underlyingError as? Errno == .tooManyOpenFiles)
                }
                // A virtual machine and its virtual CPU take one each.
                #expect((error == nil) == (free >= 2))
                // All that were free are free again.
                var again: [Int32] = []
                while case let descriptor = dup(0), descriptor >= 0 { again.append(descriptor) }
                #expect(again.count == free)
                for descriptor in taken + again { close(descriptor) }
            }
            #expect(try await Guest.arithmetic.sandbox().call("add", 2, 3) == 5)
        }
    }

    @Test func `memory costs nothing until it is touched`() async {
        await #expect(processExitsWith: .success) {
            func residentMebibytes() -> Int { Resources().residentKibibytes / 1024 }
            _ = try await Guest.memory.sandbox().call("read_pages", UInt64(1), returning: UInt64.self)
            let before = residentMebibytes()
            var sandboxes: [Sandbox] = []
            for _ in 0..<8 {
                let sandbox = try await Guest.memory.sandbox {
                    $0.memoryLimit = 1 << 30
                    $0.stackSize = 64 << 20
                    $0.argumentArenaSize = 64 << 20
                }
                #expect(try await sandbox.call("read_pages", UInt64(1), returning: UInt64.self) == 0)
                sandboxes.append(sandbox)
            }
            #expect(residentMebibytes() - before < 32)
            _ = try await sandboxes[0].call("touch_pages", UInt64(10_000), returning: UInt64.self)
            #expect(residentMebibytes() - before >= 39)
            await sandboxes[0].close()
            #expect(residentMebibytes() - before < 32)
        }
    }

    @Test func `a hundred sandboxes live side by side`() async throws {
        var sandboxes: [Sandbox] = []
        for _ in 0..<100 { sandboxes.append(try await Guest.echo.sandbox()) }
        for (number, sandbox) in sandboxes.enumerated() {
            #expect(try await sandbox.call("add_to_static", number) == 10 + number)
        }
        for (number, sandbox) in sandboxes.enumerated() { #expect(try await sandbox.call("get_static") == 10 + number) }
    }
}
