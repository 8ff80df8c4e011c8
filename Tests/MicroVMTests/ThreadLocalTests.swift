import Testing

@testable import MicroVM

/// Thread-local variables, and what lies beside them.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct ThreadLocalTests {
    @Test func `thread-local variables of both models have their values`() async throws {
        let sandbox = try await Guest.threadLocal.sandbox()
        #expect(try await sandbox.call("get_dynamic_initialized") == 7)
        #expect(try await sandbox.call("get_dynamic_zero") == 0)
        #expect(try await sandbox.call("get_direct_initialized") == 11)
        #expect(try await sandbox.call("get_direct_zero") == 0)
        #expect(try await sandbox.call("misalignment", returning: UInt64.self) == 0)
    }

    @Test func `they keep what is written, each its own, in each sandbox`() async throws {
        let sandbox = try await Guest.threadLocal.sandbox()
        let other = try await Guest.threadLocal.sandbox()
        #expect(try await sandbox.call("add_to_all", 10) == 7 + 11 + 40)
        #expect(try await sandbox.call("add_to_all", 1) == 7 + 11 + 44)
        #expect(try await sandbox.call("get_dynamic_initialized") == 18)
        #expect(try await sandbox.call("get_direct_zero") == 11)
        #expect(try await other.call("get_dynamic_initialized") == 7)
    }

    @Test func `the thread pointer points to itself`() async throws {
        #expect(try await Guest.threadLocal.sandbox().call("self_pointer_is_right", returning: Bool.self))
    }

    @Test func `every sandbox has a canary of its own, which ends strings`() async throws {
        var canaries: Set<UInt64> = []
        for _ in 0..<8 {
            let sandbox = try await Guest.threadLocal.sandbox()
            let canary: UInt64 = try await sandbox.call("canary")
            #expect(canary != 0 && canary & 0xff == 0)
            #expect(try await sandbox.call("canary") == canary)
            canaries.insert(canary)
        }
        #expect(canaries.count == 8)
    }
}
