#if Server
import Glibc
import Hummingbird
import HummingbirdCore
import Logging
package import MicroVMSupervisor
import NIOCore
import NIOPosix
import ServiceLifecycle
import Synchronization
import SystemPackage

/// A supervisor that is used by HTTP.
///
/// What it keeps on the disk, and its socket, only one server can have at a time; one that was killed leaves nothing
/// that keeps the next one from beginning.
package final class SupervisorServer: Sendable {
    /// What became of a server that has begun.
    package struct Summary: Sendable {
        /// How many calls were under way when the server before this one ended without a word.
        package var lostCalls: Int
        /// The modules that were there before, and cannot be used any more: their names, and why.
        package var refusedModules: [(name: String, reason: String)]
        /// The port it listens at, where it is TCP.
        package var port: Int?
    }

    /// What runs the calls.
    package let supervisor: Supervisor
    private let configuration: ServerConfiguration
    private let store: Store
    private let locks: [ServerLock]
    private let coreDumps: FilePath?
    /// Where connections are served: one for all, because the supervisor is one for all.
    private let eventLoop = MultiThreadedEventLoopGroup.singleton.next()
    private let executor: EventLoopExecutor
    private let hasListened = Mutex(false)

    /// Opens what is kept on the disk. Nothing is reachable before ``run(whenListening:)``.
    ///
    /// - Throws: ``ServerError``, where another server is at work or something cannot be made; what SQLite throws.
    package init(_ configuration: ServerConfiguration) throws {
        var locks: [ServerLock] = []
        if case .tcp = configuration.address, (configuration.token ?? "").utf8.count < 16 {
            throw ServerError("A server on TCP needs a token of at least 16 bytes, so that not everybody may use it.")
        }
        if let directory = configuration.directory {
            try ServerDirectory.make(directory)
            locks.append(try ServerLock(directory.appending("lock"), of: "the directory \(directory)"))
            let dumps = directory.appending("core-dumps")
            try ServerDirectory.make(dumps)
            coreDumps = dumps
        } else {
            coreDumps = nil
        }
        if case .socket(let path) = configuration.address {
            // As long as `sockaddr_un` allows.
            guard path.string.utf8.count < 108, SocketWorkshop.path(for: path).string.utf8.count < 108 else {
                throw ServerError("The path \(path) is too long for a socket, to which the system gives 107 bytes.")
            }
            locks.append(try ServerLock(FilePath(path.string + ".lock"), of: "the socket \(path)"))
        }
        executor = EventLoopExecutor(eventLoop)
        self.locks = locks
        self.configuration = configuration
        store = try Store(directory: configuration.directory, recordedCalls: configuration.recordedCalls)
        var settings = configuration.supervisor
        settings.firstCall = store.nextCall
        settings.recorder = store
        settings.taskExecutor = executor
        supervisor = Supervisor(configuration: settings)
    }

    /// Serves until it is told to end, or the task is cancelled. Once: another one may have its place afterwards.
    ///
    /// - Parameters:
    ///   - end: ends, by returning, when the server is to shut down: calls are drained, then killed.
    ///   - whenListening: called when clients can connect.
    /// - Returns: what the shutdown has found and done.
    /// - Throws: ``ServerError`` where it cannot listen.
    package func run(
        until end: @escaping @Sendable () async -> Void,
        whenListening: @escaping @Sendable (Summary) async -> Void = { _ in }
    ) async throws -> ShutdownReport {
        // The last of all, when the socket is gone; not when the last one forgets this server, whenever that may be.
        defer { for lock in locks { lock.release() } }
        let routes = Routes(supervisor: supervisor, store: store, configuration: configuration, coreDumps: coreDumps)
        var refused: [(name: String, reason: String)] = []
        for module in try store.modules() {
            do {
                try await routes.register(module, replacing: false)
            } catch {
                refused.append((module.name, API.Failure(error).message))
            }
        }
        let summary = Summary(lostCalls: store.lostCalls, refusedModules: refused)
        let (failures, failure) = AsyncStream.makeStream(of: ServerError.self)
        let services = try makeServices(routes, summary, failure, whenListening)
        let writing = Task { [store] in await store.run() }
        let (supervisor, store) = (supervisor, store)
        defer {
            // What was there instead, so that it could not listen, is somebody else's.
            if case .socket(let path) = configuration.address, hasListened.withLock({ $0 }) {
                unsafe _ = unlink(path.string)
            }
        }
        let result = await Self.result {
            try await withThrowingTaskGroup(of: ShutdownReport?.self) { group in
                group.addTask(executorPreference: executor) {
                    try await services.run()
                    return nil
                }
                group.addTask {
                    for await error in failures { throw error }
                    return nil
                }
                group.addTask {
                    await end()
                    let report = await supervisor.shutDown()
                    // What was asked before is answered, and then nobody listens any more.
                    await services.triggerGracefulShutdown()
                    return report
                }
                var report: ShutdownReport?
                while let ended = try await group.next() {
                    // The services end last but for the wait for failures, unless they have failed.
                    if let ended { report = ended } else { group.cancelAll() }
                }
                return report ?? ShutdownReport(calls: 0, killed: [])
            }
        }
        if case .failure = result { await supervisor.shutDown(drainTime: .zero) }
        store.end()
        await writing.value
        return try result.get()
    }

    private static func result<Value>(_ body: () async throws -> Value) async -> Result<Value, any Error> {
        do { return .success(try await body()) } catch { return .failure(error) }
    }

    private func makeServices(
        _ routes: Routes,
        _ summary: Summary,
        _ failure: AsyncStream<ServerError>.Continuation,
        _ whenListening: @escaping @Sendable (Summary) async -> Void
    ) throws -> ServiceGroup {
        let address = configuration.address
        let bindAddress: BindAddress
        var workshop: SocketWorkshop?
        switch address {
        case .socket(let path):
            let made = try SocketWorkshop(path)
            bindAddress = .unixDomainSocket(path: made.socket.string)
            workshop = made
        case .tcp(let host, let port): bindAddress = .hostname(host, port: port)
        }
        let logger = configuration.logger ?? Logger(label: "microvm") { _ in SwiftLogNoOpLogHandler() }
        let application = Application(
            router: routes.router(),
            server: .http1(
                configuration: HTTP1Channel.Configuration(
                    idleTimeout: .nanoseconds(Int64(configuration.idleTime.microseconds * 1000))
                )
            ),
            configuration: ApplicationConfiguration(
                address: bindAddress,
                availableConnectionsDelegate: MaximumAvailableConnections(configuration.maximumConnections)
            ),
            onServerRunning: { [workshop] channel in
                var summary = summary
                summary.port = channel.localAddress?.port
                do throws(ServerError) {
                    try workshop?.complete()
                } catch {
                    failure.yield(error)
                    return
                }
                self.hasListened.withLock { $0 = true }
                await whenListening(summary)
            },
            eventLoopGroupProvider: .shared(eventLoop),
            logger: logger
        )
        var services = ServiceGroupConfiguration(services: [application], logger: logger)
        // Whoever does not read its answer is not waited for.
        services.maximumGracefulShutdownDuration = .seconds(3)
        return ServiceGroup(configuration: services)
    }
}
#endif
