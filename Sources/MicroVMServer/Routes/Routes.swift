#if Server
import HTTPTypes
import Hummingbird
import MicroVM
import MicroVMSupervisor
import NIOCore
import SupervisorPage
import SystemPackage

/// What the server answers to.
struct Routes: Sendable {
    let supervisor: Supervisor
    let store: Store
    let configuration: ServerConfiguration
    /// Where core dumps are written; nowhere unless set.
    let coreDumps: FilePath?
    let started = WallTime.now

    func router() -> Router<ServerContext> {
        let router = Router(context: ServerContext.self)
        router.add(middleware: FailureMiddleware())
        router.add(middleware: OriginMiddleware())
        if let token = configuration.token { router.add(middleware: TokenMiddleware(token: token)) }
        router.get("/") { _, _ in Self.page }
        router.get("/health/live") { _, _ in Response.json(API.Health(status: "live")) }
        router.get("/health/ready") { _, _ in try await ready() }
        router.get("/metrics") { _, _ in
            Response.text(
                PrometheusText(await supervisor.statistics, modules: await supervisor.moduleList()).text,
                type: "text/plain; version=0.0.4; charset=utf-8"
            )
        }
        let version = router.group("/v1")
        version.get("overview") { _, _ in Response.json(await overview()) }
        version.get("events") { _, context in
            EventStream.events(of: supervisor, on: context.channel.eventLoop)
        }
        addModules(version)
        addCalls(version)
        addRunningCalls(version)
        return router
    }

    private func ready() async throws -> Response {
        guard await !supervisor.statistics.isShuttingDown else {
            throw API.Failure(.serviceUnavailable, "shuttingDown", "The server shuts down.")
        }
        return Response.json(API.Health(status: "ready"))
    }

    private func overview() async -> API.Overview {
        let statistics = await supervisor.statistics
        let modules = await supervisor.moduleList()
        let durations = await supervisor.finished(limit: 1000).compactMap { $0.statistics?.duration.microseconds }
            .sorted()
        func percentile(_ part: Double) -> Double {
            durations[min(durations.count - 1, Int(part * Double(durations.count)))]
        }
        return API.Overview(
            started: started.text,
            now: WallTime.now.text,
            running: statistics.running,
            queued: statistics.queued,
            stopped: statistics.stopped,
            throttled: statistics.throttled,
            memoryBytes: statistics.memory,
            cpuTimeInMinuteMicroseconds: statistics.cpuTimeInMinute.microseconds,
            outputBytesInMinute: statistics.outputInMinute,
            poolSandboxes: modules.reduce(0) { $0 + $1.poolStatistics.sandboxes },
            poolInUse: modules.reduce(0) { $0 + $1.poolStatistics.inUse },
            poolMaximum: modules.reduce(0) { $0 + $1.pool.upperBound },
            totals: API.Totals(statistics.totals),
            latency: durations.isEmpty
                ? nil
                : API.Overview.Latency(
                    calls: durations.count,
                    p50Microseconds: percentile(0.5),
                    p90Microseconds: percentile(0.9),
                    p99Microseconds: percentile(0.99)
                ),
            isShuttingDown: statistics.isShuttingDown
        )
    }

    /// The page around the places where its scripts' and styles' secret of the day stands.
    private static let pageParts: [Substring] = {
        // Constant, and as long as it says.
        let bytes = unsafe UnsafeBufferPointer(start: supervisor_page_bytes(), count: supervisor_page_size())
        let text = unsafe String(decoding: bytes, as: UTF8.self)
        return text.split(separator: "{{nonce}}", omittingEmptySubsequences: false)
    }()

    /// The page, which may load nothing from anywhere but its own data, run nothing that was not in it from the
    /// beginning, and be shown inside of nothing.
    private static var page: Response {
        let nonce = String(UInt64.random(in: 0...(.max)), radix: 36) + String(UInt64.random(in: 0...(.max)), radix: 36)
        return Response(
            status: .ok,
            headers: [
                .contentType: "text/html; charset=utf-8",
                .contentSecurityPolicy: """
                default-src 'none'; script-src 'nonce-\(nonce)'; style-src 'nonce-\(nonce)'; connect-src 'self'; \
                img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'
                """,
                .referrerPolicy: "no-referrer",
            ],
            body: ResponseBody(byteBuffer: ByteBuffer(string: pageParts.joined(separator: nonce)))
        )
    }
}

extension HTTPField.Name {
    // Well-formed, as names of fields have to be.
    fileprivate static let referrerPolicy = HTTPField.Name("Referrer-Policy")!
}
#endif
