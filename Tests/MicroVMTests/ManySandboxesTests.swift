import Testing

@testable import MicroVM

/// As many sandboxes of one module at once as a busy service has.
@Suite(.requiresKVM, .timeLimit(.minutes(10))) struct ManySandboxesTests {
    @Test func `a thousand sandboxes are alive at once, and each is its own`() async throws {
        let count = Surroundings.scaled(1_000)
        let first = try await Guest.state.sandbox()
        try await first.call("set_state", 3 as UInt64)
        let snapshot = try await first.snapshot()
        let before = Resources()
        var sandboxes: [Sandbox] = []
        for index in 0..<count {
            let sandbox = try await Sandbox(from: snapshot)
            try await sandbox.call("set_state", UInt64(index % 1000))
            sandboxes.append(sandbox)
        }
        let during = Resources()
        for (index, sandbox) in sandboxes.enumerated() {
            let value = UInt64(index % 1000)
            let state = (0..<5).reduce(0 as UInt64) { sum, _ in sum * 1000 + value }
            #expect(try await sandbox.call("get_state") == state)
            try await sandbox.restore(to: snapshot)
            #expect(try await sandbox.call("get_state") == 3_003_003_003_003 as UInt64)
        }
        let each = (during.residentKibibytes - before.residentKibibytes) / count
        // That of the sanitizer, and of tables that grow for everybody, is not the library's.
        if !Surroundings.isSanitized, count >= 100 { #expect(each <= 150, "\(each) KiB resident each") }
        #expect(during.sandboxThreads == before.sandboxThreads + count)
        sandboxes.removeAll()
        let after = await Resources.settled { $0.sandboxThreads == before.sandboxThreads }
        #expect(after.sandboxThreads == before.sandboxThreads)
        #expect(after.descriptors <= before.descriptors + 2 && after.mappings <= before.mappings + 60)
    }
}
