#if Server
import FoundationEssentials
import NIOCore
import NIOHTTP1
import NIOPosix
import SystemPackage

/// Talks to a server: one connection for each request.
package struct APIClient: Sendable {
    /// Where the server is, and how to get in.
    package var address: ServerConfiguration.Address
    package var token: String?
    /// The bytes that an answer may have that is read as a whole.
    package var maximumAnswerSize = 256 << 20

    /// A client of the server at an address.
    package init(_ address: ServerConfiguration.Address, token: String? = nil) {
        self.address = address
        self.token = token
    }

    /// What a server has answered.
    package struct Answer: Sendable {
        package var status: Int
        package var headers: [String: String]
        package var body: [UInt8]

        /// The body as JSON, if the request has not failed.
        ///
        /// - Throws: ``ClientError``, with what the server says.
        package func json<Value: Decodable>(_ type: Value.Type = Value.self) throws(ClientError) -> Value {
            try check()
            do {
                return try JSONDecoder().decode(type, from: Data(body))
            } catch {
                throw ClientError("notUnderstood", "What answers there is no server of this version.")
            }
        }

        /// - Throws: ``ClientError``, where the request has failed.
        package func check() throws(ClientError) {
            if (200..<300).contains(status) { return }
            if let failure = try? JSONDecoder().decode(API.Failure.self, from: Data(body)) {
                throw ClientError(failure.code, failure.message, status: status)
            }
            throw ClientError("refused", "The server has refused the request with status \(status).", status: status)
        }
    }

    private typealias Connection = NIOAsyncChannel<HTTPClientResponsePart, HTTPClientRequestPart>

    /// Makes a request, and reads the whole answer.
    ///
    /// - Parameters:
    ///   - method: such as `GET`.
    ///   - path: with the query, as it goes over the wire.
    ///   - body: what goes with it.
    ///   - contentType: what the body is.
    /// - Throws: ``ClientError`` where there is no server, or the connection breaks.
    package func request(
        _ method: String,
        _ path: String,
        body: [UInt8]? = nil,
        contentType: String = API.mediaType
    ) async throws(ClientError) -> Answer {
        var answer = Answer(status: 0, headers: [:], body: [])
        try await perform(method, path, body: body, contentType: contentType) { part throws(ClientError) in
            switch part {
            case .head(let head):
                answer.status = Int(head.status.code)
                for (name, value) in head.headers { answer.headers[name.lowercased()] = value }
            case .body(let buffer):
                guard answer.body.count + buffer.readableBytes <= maximumAnswerSize else {
                    throw ClientError("answerTooLarge", "The answer is larger than \(maximumAnswerSize) bytes.")
                }
                answer.body += buffer.readableBytesView
            case .end: break
            }
            return true
        }
        return answer
    }

    /// Makes a request with a value as JSON.
    package func request(
        _ method: String,
        _ path: String,
        json value: some Encodable
    ) async throws(ClientError) -> Answer {
        guard let body = try? JSONEncoder().encode(value) else {
            throw ClientError("invalidRequest", "This cannot be written as JSON.")
        }
        return try await request(method, path, body: Array(body))
    }

    /// Makes a request, and hands on what comes, piece by piece.
    ///
    /// - Parameter piece: called with each piece; ends the request by returning false.
    /// - Throws: ``ClientError`` where there is no server, the connection breaks, or the request has failed.
    package func stream(_ path: String, piece: ([UInt8]) throws(ClientError) -> Bool) async throws(ClientError) {
        var failure: Answer?
        try await perform("GET", path, body: nil, contentType: API.mediaType) { part throws(ClientError) in
            switch part {
            case .head(let head):
                if head.status.code >= 300 {
                    failure = Answer(status: Int(head.status.code), headers: [:], body: [])
                }
                return true
            case .body(let buffer):
                if failure != nil {
                    failure?.body += buffer.readableBytesView
                    return failure?.body.count ?? 0 < 1 << 20
                }
                return try piece(Array(buffer.readableBytesView))
            case .end: return false
            }
        }
        try failure?.check()
    }

    /// Makes a request for server-sent events.
    ///
    /// - Parameter event: called with each event's name and data; ends the request by returning false.
    package func events(
        _ path: String,
        event: (String, [UInt8]) throws(ClientError) -> Bool
    ) async throws(ClientError) {
        var parser = EventParser()
        try await stream(path) { piece throws(ClientError) in
            for (name, data) in parser.parse(piece) {
                guard try event(name, data) else { return false }
            }
            return true
        }
    }

    private func perform(
        _ method: String,
        _ path: String,
        body: [UInt8]?,
        contentType: String,
        part: (HTTPClientResponsePart) throws(ClientError) -> Bool
    ) async throws(ClientError) {
        let connection = try await connect()
        do {
            try await connection.executeThenClose { inbound, outbound in
                var headers = HTTPHeaders([("Host", host), ("Connection", "close")])
                if let token { headers.add(name: "Authorization", value: "Bearer \(token)") }
                if let body {
                    headers.add(name: "Content-Type", value: contentType)
                    headers.add(name: "Content-Length", value: "\(body.count)")
                }
                let head = HTTPRequestHead(
                    version: .http1_1,
                    method: HTTPMethod(rawValue: method),
                    uri: path,
                    headers: headers
                )
                do {
                    try await outbound.write(.head(head))
                    if let body, !body.isEmpty { try await outbound.write(.body(.byteBuffer(ByteBuffer(bytes: body)))) }
                    try await outbound.write(.end(nil))
                } catch {
                    // It may have answered all the same, and closed the connection because it wanted no more.
                }
                var hasAnswered = false
                for try await next in inbound {
                    hasAnswered = true
                    guard try part(next) else { return }
                    if case .end = next { return }
                }
                guard hasAnswered else { throw ClientError.brokenConnection }
            }
        } catch let error as ClientError {
            throw error
        } catch is CancellationError {
            throw ClientError("cancelled", "The request was cancelled.")
        } catch {
            throw ClientError.brokenConnection
        }
    }

    private var host: String {
        switch address {
        case .socket: "localhost"
        case .tcp(let host, let port): host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
        }
    }

    private func connect() async throws(ClientError) -> Connection {
        let bootstrap = ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .connectTimeout(.seconds(10))
        let initialize: @Sendable (any Channel) -> EventLoopFuture<Connection> = { channel in
            channel.eventLoop.makeCompletedFuture {
                try channel.pipeline.syncOperations.addHTTPClientHandlers()
                return try Connection(wrappingChannelSynchronously: channel)
            }
        }
        do {
            switch address {
            case .socket(let path):
                return try await bootstrap.connect(
                    unixDomainSocketPath: path.string,
                    channelInitializer: initialize
                )
            case .tcp(let host, let port):
                return try await bootstrap.connect(host: host, port: port, channelInitializer: initialize)
            }
        } catch {
            throw ClientError("noServer", "No server answers at \(address.text). Start one with microvm serve.")
        }
    }
}

extension ServerConfiguration.Address {
    /// As people write it.
    package var text: String {
        switch self {
        case .socket(let path): path.string
        case .tcp(let host, let port): host.contains(":") ? "http://[\(host)]:\(port)" : "http://\(host):\(port)"
        }
    }
}

/// Why a client has no answer, or one that says no.
package struct ClientError: Error, Sendable, CustomStringConvertible {
    /// The server's code, or one of the client's own.
    package var code: String
    /// A full sentence.
    package var message: String
    /// The server's status, where it has answered.
    package var status: Int?

    init(_ code: String, _ message: String, status: Int? = nil) {
        self.code = code
        self.message = message
        self.status = status
    }

    static let brokenConnection = ClientError("brokenConnection", "The server has broken the connection off.")

    /// The sentence.
    package var description: String { message }
}
#endif
