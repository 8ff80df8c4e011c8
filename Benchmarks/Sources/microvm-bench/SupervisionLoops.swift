import MicroVM
import MicroVMSupervisor
import SystemPackage

/// The benchmark of what a supervisor adds to a request.
struct SupervisionLoops: Sendable {
    private let module: GuestModule

    init(modulePath: String) throws {
        module = try GuestModule(contentsOf: FilePath(modulePath))
    }

    /// A call that a supervisor lets its caller run, and tells of.
    ///
    /// - Parameter isWatched: whether somebody reads the events.
    func supervised(isWatched: Bool) -> Sampler {
        requests(isWatched: isWatched) { supervisor, request in try await supervisor.call(request) }
    }

    /// A call that a supervisor runs in a task of its own: its start, and the wait for its end.
    func submitted() -> Sampler {
        requests(isWatched: true) { supervisor, request in
            try await supervisor.wait(for: supervisor.start(request))
        }
    }

    private func requests(
        isWatched: Bool,
        _ call: @escaping @Sendable (Supervisor, CallRequest) async throws -> CallStatus
    ) -> Sampler {
        { count in
            let supervisor = Supervisor()
            var settings = ModuleSettings()
            settings.hostFunctions = [.hostAdd]
            settings.sandbox = .withoutPolling
            settings.pool = 2...2
            try await supervisor.register(module, as: "workload", settings: settings)
            let events = supervisor.events()
            let reader = isWatched ? Task { for await _ in events {} } : nil
            let request = CallRequest(
                module: "workload",
                function: "add",
                arguments: [.u64(2), .u64(3)],
                returns: .u64
            )
            let times = try await requestTimes(count) {
                guard case .returned(.u64(5))? = try await call(supervisor, request).outcome else {
                    throw Errno.protocolError
                }
            }
            await supervisor.shutDown()
            await reader?.value
            return times
        }
    }

    /// The same call without one: a sandbox that a pool lends, and a call that is started in it, so that it could be
    /// ended by itself.
    func started(count: Int) async throws -> [UInt64] {
        let pool = try await SandboxPool(
            module,
            hostFunctions: [.hostAdd],
            configuration: .withoutPolling,
            size: 2...2
        )
        let times = try await requestTimes(count) {
            let sum = try await pool.withSandbox {
                try await $0.start("add", UInt64(2), UInt64(3), returning: UInt64.self).result
            }
            guard sum == 5 else { throw Errno.protocolError }
        }
        await pool.shutDown()
        return times
    }
}
