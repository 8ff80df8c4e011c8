import MicroVM
import Synchronization
import SystemPackage
import Testing

@testable import MicroVMSupervisor

/// A module of guest-images.
func guestModule(_ name: String) throws -> GuestModule {
    try GuestModule(contentsOf: FilePath("\(GuestImages.directory)/\(name).so"))
}

extension Trait where Self == ConditionTrait {
    /// The test runs guests: without a usable KVM device it is skipped, and says why.
    static var requiresKVM: Self {
        .enabled(if: reasonKVMIsMissing == nil, "\(reasonKVMIsMissing ?? "")")
    }
}

/// Why no guest can run here, or nil where one can.
private let reasonKVMIsMissing: String? = {
    do throws(SandboxError) {
        _ = try HostSupport()
        return nil
    } catch {
        return "This test needs a KVM that runs sandboxes. \(error.message)"
    }
}()

extension Supervisor {
    /// A supervisor with the guests `spin`, `echo`, `hello` and `faults`.
    static func forTests(
        pool: ClosedRange<Int> = 0...4,
        configure: (inout SupervisorConfiguration) -> Void = { _ in },
        module: (inout ModuleSettings) -> Void = { _ in }
    ) async throws -> Supervisor {
        var configuration = SupervisorConfiguration()
        configuration.watchInterval = .milliseconds(5)
        configure(&configuration)
        let supervisor = Supervisor(configuration: configuration)
        var settings = ModuleSettings()
        settings.pool = pool
        settings.sandbox.memoryLimit = 16 << 20
        module(&settings)
        for name in ["spin", "echo", "hello", "faults"] {
            try await supervisor.register(guestModule(name), as: name, settings: settings)
        }
        return supervisor
    }

    /// A call that spins for ever, once it is in the guest.
    func startSpinning(
        _ labels: [String: String] = [:],
        limits: CallLimits = CallLimits(),
        priority: Int = 0
    ) async throws -> CallID {
        let id = try start(
            CallRequest(
                module: "spin",
                function: "spin",
                returns: .void,
                limits: limits,
                labels: labels,
                priority: priority
            )
        )
        try await wait(until: id, is: .running)
        return id
    }

    var hasRetiredModules: Bool { !retired.isEmpty }

    func wait(until id: CallID, is state: CallStatus.State) async throws {
        while try status(of: id).state != state { try await Task.sleep(for: .milliseconds(1)) }
    }

    /// A call that answers 42.
    @discardableResult
    func startAnswering(_ labels: [String: String] = [:], priority: Int = 0) throws -> CallID {
        try start(CallRequest(module: "spin", function: "answer", labels: labels, priority: priority))
    }
}

extension CallStatus {
    var value: CallValue? {
        if case .returned(let value) = outcome { value } else { nil }
    }

    var killer: CallKiller? {
        if case .killed(let killer, _) = outcome { killer } else { nil }
    }

    var limit: CallLimit? {
        if case .limited(let limit, _) = outcome { limit } else { nil }
    }
}

/// Waits until something is so. Only the test's own time limit ends it.
func waitUntil(_ condition: () async throws -> Bool) async rethrows {
    while try await !condition() { try? await Task.sleep(for: .milliseconds(1)) }
}

func hasCode(_ code: SupervisorError.Code) -> (any Error) -> Bool {
    { ($0 as? SupervisorError)?.code == code }
}
