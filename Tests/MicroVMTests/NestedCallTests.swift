import Testing

@testable import MicroVM

/// Guest calls made from inside host calls.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct NestedCallTests {
    /// The guest's `descend` calls `host_descend`, which calls `descend` again; it returns the depth.
    private static let descend = HostFunction("host_descend") { (context: HostCallContext, depth: Int) -> Int in
        try context.call("descend", depth)
    }

    private static let descendAsynchronously = HostFunction("host_descend") {
        (context: HostCallContext, depth: Int) async throws -> Int in
        await Task.yield()
        return try await context.call("descend", depth)
    }

    @Test(arguments: [descend, descendAsynchronously])
    func `a host function calls back into the guest`(function: HostFunction) async throws {
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(function))
        for depth in 0...16 {
            let result: Int = try await sandbox.call("descend", depth)
            #expect(result == depth)
        }
    }

    @Test(arguments: [descend, descendAsynchronously])
    func `deeper than the configuration allows is an error`(function: HostFunction) async throws {
        let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(function))
        let error = await #expect(throws: SandboxError.self) {
            let _: Int = try await sandbox.call("descend", 17)
        }
        #expect(error?.code == .callTooDeep)
    }
}
