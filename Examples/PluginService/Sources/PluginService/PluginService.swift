import Hummingbird
import Logging
import Metrics
import MicroVM
import NIOCore
import ServiceLifecycle
import SystemPackage

/// What a request needs of its connection: to know when the client goes.
struct PluginContext: RequestContext {
    var coreContext: CoreRequestContextStorage
    let channel: any Channel

    init(source: ApplicationRequestContextSource) {
        coreContext = .init(source: source)
        channel = source.channel
    }
}

/// An HTTP server that runs native code of strangers, each request in a sandbox that is as new.
struct PluginService: Sendable {
    let plugins: [String: Plugin]
    let inflate: Plugin
    let limits: ServiceLimits
    let metrics: MetricsPage

    /// - Parameters:
    ///   - inflate: the module that decompresses, with the function `gunzip`.
    ///   - plugins: modules by name, each with a function `handle` that takes and returns bytes.
    init(inflate: FilePath, plugins: [String: FilePath], limits: ServiceLimits, metrics: MetricsPage) async throws {
        self.limits = limits
        self.metrics = metrics
        self.inflate = try await Plugin(name: "inflate", path: inflate, function: "gunzip", limits: limits)
        var loaded: [String: Plugin] = [:]
        for (name, path) in plugins {
            loaded[name] = try await Plugin(name: name, path: path, function: "handle", limits: limits)
        }
        self.plugins = loaded
    }

    /// The server. Its services end in the opposite order: first it stops accepting, then the pools end.
    func application(
        hostname: String,
        port: Int,
        logger: Logger,
        onServerRunning: @escaping @Sendable (any Channel) async -> Void = { _ in }
    ) -> some ApplicationProtocol {
        Application(
            router: router,
            server: .http1(configuration: .init(additionalChannelHandlers: [DisconnectHandler()])),
            configuration: ApplicationConfiguration(
                address: .hostname(hostname, port: port),
                serverName: "plugin-service"
            ),
            services: [inflate.pool] + plugins.values.map(\.pool),
            onServerRunning: onServerRunning,
            logger: logger
        )
    }

    private var router: Router<PluginContext> {
        let router = Router(context: PluginContext.self)
        router.get("/metrics") { _, _ in metrics.text }
        router.post("/inflate") { request, context in await respond(request, context, inflate) }
        router.post("/plugin/{name}") { request, context in
            guard let plugin = context.parameters.get("name").flatMap({ plugins[$0] }) else {
                return Self.failure(.notFound, "unknownPlugin", "There is no plugin of this name.")
            }
            return await respond(request, context, plugin)
        }
        return router
    }

    private func respond(_ request: Request, _ context: PluginContext, _ plugin: Plugin) async -> Response {
        let body: ByteBuffer
        do {
            body = try await request.body.collect(upTo: limits.bodyLimit)
        } catch is NIOTooManyBytesError {
            let message = "A request has at most \(limits.bodyLimit) bytes."
            return Self.failure(.contentTooLarge, "bodyTooLarge", message)
        } catch {
            return Self.failure(.badRequest, "badRequest", "The body has not come to its end.")
        }
        do {
            let answer = try await withCancellationOnDisconnect(of: context.channel) {
                try await plugin.serve(Array(body.readableBytesView))
            }
            return Response(
                status: .ok,
                headers: [.contentType: "application/octet-stream"],
                body: ResponseBody(byteBuffer: ByteBuffer(bytes: answer))
            )
        } catch let error as SandboxError {
            let status = Self.status(of: error)
            if status.code >= 500, status != .gatewayTimeout, status != .serviceUnavailable {
                context.logger.error("A sandbox failed", metadata: ["error": "\(error)"])
            }
            return Self.failure(status, "\(error.code)", error.message)
        } catch {
            context.logger.error("A request failed", metadata: ["error": "\(error)"])
            return Self.failure(.internalServerError, "internal", "The request failed.")
        }
    }

    /// What went wrong in the words of HTTP.
    private static func status(of error: SandboxError) -> HTTPResponse.Status {
        switch error.code {
        // The guest has not coped with the request.
        case .guestFault, .invalidResult, .invalidPointer: .unprocessableContent
        case .argumentTooLarge: .contentTooLarge
        case .timeLimitExceeded, .cpuTimeLimitExceeded: .gatewayTimeout
        // Nobody reads the answer to a request whose client has gone.
        case .poolExhausted, .poolShutDown, .killed, .closed, .taskCancelled: .serviceUnavailable
        default: .internalServerError
        }
    }

    /// An answer that says what went wrong: a code for programs and a sentence for people, one line each.
    private static func failure(_ status: HTTPResponse.Status, _ code: String, _ message: String) -> Response {
        Counter(label: "plugin_service.failures", dimensions: [("code", code)]).increment()
        return Response(
            status: status,
            headers: [.contentType: "text/plain; charset=utf-8"],
            body: ResponseBody(byteBuffer: ByteBuffer(string: "\(code)\n\(message)\n"))
        )
    }
}
