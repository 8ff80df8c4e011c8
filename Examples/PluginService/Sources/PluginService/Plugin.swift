import MicroVM
import SystemPackage

/// A module that serves no requests.
struct PluginError: Error, CustomStringConvertible {
    let path: FilePath
    let function: String

    var description: String { "\(path) exports no function named \(function)." }
}

/// A module and the function of it that serves requests.
struct Plugin: Sendable {
    let pool: SandboxPool
    let function: String

    init(name: String, path: FilePath, function: String, limits: ServiceLimits) async throws {
        let module = try GuestModule(contentsOf: path)
        guard module.export(named: function)?.kind == .function else {
            throw PluginError(path: path, function: function)
        }
        var configuration = SandboxConfiguration()
        configuration.memoryLimit = limits.memoryLimit
        configuration.timeLimit = limits.timeLimit
        configuration.metrics = SandboxMetrics(dimensions: [("pool", name)])
        pool = try await SandboxPool(
            module,
            configuration: configuration,
            size: limits.sandboxes,
            maximumWaiters: limits.maximumWaiters,
            waitingTimeLimit: limits.waitingTimeLimit,
            name: name
        )
        self.function = function
    }

    func serve(_ request: [UInt8]) async throws -> [UInt8] {
        try await pool.withSandbox { sandbox in try await sandbox.call(function, request) }
    }
}
