#if Server
import Glibc
import HTTPTypes
import Hummingbird
import NIOCore

/// Makes an answer of every error, with a status, a code and a sentence, and sees to what every answer has in common.
struct FailureMiddleware: RouterMiddleware {
    typealias Context = ServerContext

    func handle(
        _ request: Request,
        context: ServerContext,
        next: @concurrent (Request, ServerContext) async throws -> Response
    ) async throws -> Response {
        var response: Response
        do {
            response = try await next(request, context)
        } catch {
            let failure = API.Failure(error)
            response = Response.json(failure, status: HTTPResponse.Status(code: failure.status))
            if failure.status == 401 { response.headers[.wwwAuthenticate] = "Bearer" }
            if failure.status == 429 { response.headers[.retryAfter] = "1" }
            if failure.closesConnection {
                response.headers[.connection] = "close"
                let channel = context.channel
                // The client gets some time to read the answer before it cannot write any more.
                channel.eventLoop.scheduleTask(in: .milliseconds(500)) { channel.close(promise: nil) }
            }
        }
        if response.headers[.cacheControl] == nil { response.headers[.cacheControl] = "no-store" }
        response.headers[.xContentTypeOptions] = "nosniff"
        return response
    }
}

/// Keeps pages of other sites in somebody's browser from talking to the server, which would not tell them from their
/// user: by their origin, and by the name under which they have reached it.
struct OriginMiddleware: RouterMiddleware {
    typealias Context = ServerContext

    func handle(
        _ request: Request,
        context: ServerContext,
        next: @concurrent (Request, ServerContext) async throws -> Response
    ) async throws -> Response {
        let host = request.head.authority ?? ""
        guard Self.isHarmless(host) else {
            throw API.Failure(
                .misdirectedRequest,
                "unknownHost",
                "The server answers to localhost and to addresses, and not to the name in this request."
            )
        }
        if let origin = request.headers[.origin], origin != "http://\(host)", origin != "https://\(host)" {
            throw API.Failure(.forbidden, "crossOrigin", "Pages of other sites may not use this server.")
        }
        return try await next(request, context)
    }

    /// Whether a host is none that somebody else can let point here.
    private static func isHarmless(_ authority: String) -> Bool {
        var host = authority[...]
        if host.hasPrefix("[") {
            guard let end = host.firstIndex(of: "]") else { return false }
            host = host[host.index(after: host.startIndex)..<end]
            var address = in6_addr()
            // The structure outlives the call.
            return unsafe inet_pton(AF_INET6, String(host), &address) == 1
        }
        if let colon = host.lastIndex(of: ":") { host = host[..<colon] }
        if host.isEmpty || host.lowercased() == "localhost" { return true }
        var address = in_addr()
        // Likewise.
        return unsafe inet_pton(AF_INET, String(host), &address) == 1
    }
}

/// Turns away who does not have the token. Whether the server is well, and the page itself, may be seen by all.
struct TokenMiddleware: RouterMiddleware {
    typealias Context = ServerContext

    let token: [UInt8]

    init(token: String) { self.token = Array(token.utf8) }

    func handle(
        _ request: Request,
        context: ServerContext,
        next: @concurrent (Request, ServerContext) async throws -> Response
    ) async throws -> Response {
        let isOpen = request.uri.path == "/" || request.uri.path.hasPrefix("/health/")
        guard isOpen || isAllowed(request.headers[.authorization]) else {
            throw API.Failure(
                .unauthorized,
                "unauthorized",
                "This server wants its token: Authorization: Bearer TOKEN.",
                closesConnection: true
            )
        }
        return try await next(request, context)
    }

    private func isAllowed(_ header: String?) -> Bool {
        guard let header, header.lowercased().hasPrefix("bearer ") else { return false }
        return Self.isEqual(Array(header.utf8.dropFirst(7)), token)
    }

    /// Takes as long for every text of one length, so that nobody finds the token out byte by byte.
    static func isEqual(_ text: [UInt8], _ token: [UInt8]) -> Bool {
        var difference = text.count ^ token.count
        for index in text.indices {
            difference |= Int(text[index] ^ (token.isEmpty ? 0xff : token[index % token.count]))
        }
        return difference == 0 && !token.isEmpty
    }
}
#endif
