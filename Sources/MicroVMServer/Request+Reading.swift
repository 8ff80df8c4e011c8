#if Server
import FoundationEssentials
import HTTPTypes
import Hummingbird
import HummingbirdCore
import MicroVM
import MicroVMSupervisor
import NIOCore

extension Request {
    /// The whole body, if it is not too long and does not take too long.
    func bytes(upTo limit: Int, within time: Duration, _ context: ServerContext) async throws -> [UInt8] {
        @Sendable func tooLarge() -> API.Failure {
            API.Failure(
                .contentTooLarge,
                "bodyTooLarge",
                "The body has more than \(limit) bytes.",
                closesConnection: true
            )
        }
        if let length = headers[.contentLength].flatMap({ Int($0) }), length > limit { throw tooLarge() }
        let body = body
        return try await context.channel.eventLoop.cancelling(after: time) {
            var bytes: [UInt8] = []
            do {
                for try await piece in body {
                    if bytes.count + piece.readableBytes > limit { throw tooLarge() }
                    bytes += piece.readableBytesView
                }
                try Task.checkCancellation()
            } catch is CancellationError {
                throw API.Failure(
                    .requestTimeout,
                    "bodyTooSlow",
                    "The body did not come within \(time).",
                    closesConnection: true
                )
            }
            return bytes
        }
    }

    /// The body's JSON.
    func json<Value: Decodable>(
        _ type: Value.Type,
        _ configuration: ServerConfiguration,
        _ context: ServerContext
    ) async throws -> Value {
        let bytes = try await bytes(upTo: configuration.maximumBodySize, within: configuration.bodyTime, context)
        return try JSONDecoder().decode(type, from: Data(bytes))
    }

    /// The body's JSON, or nil where the body is empty, which clients announce in more than one way.
    func jsonIfAny<Value: Decodable>(
        _ type: Value.Type,
        _ configuration: ServerConfiguration,
        _ context: ServerContext
    ) async throws -> Value? {
        let bytes = try await bytes(upTo: configuration.maximumBodySize, within: configuration.bodyTime, context)
        return bytes.isEmpty ? nil : try JSONDecoder().decode(type, from: Data(bytes))
    }

    // MARK: - The query

    /// A parameter's text.
    func text(_ name: String) -> String? { uri.queryParameters[Substring(name)].map(String.init) }

    /// Refuses parameters that mean nothing here.
    func allowOnly(_ names: String..., prefix: String? = nil) throws(API.Failure) {
        for (key, _) in uri.queryParameters {
            let name = String(key)
            if names.contains(name) || prefix.map(name.hasPrefix) == true { continue }
            let known = names.isEmpty ? "there are none" : "there are \(names.joined(separator: ", "))"
            throw API.Failure(
                .badRequest,
                "invalidRequest",
                "“\(name.printable)” is no parameter here; \(known)."
            )
        }
    }

    func integer<Integer: FixedWidthInteger>(
        _ name: String,
        in range: ClosedRange<Integer>
    ) throws(API.Failure) -> Integer? {
        guard let text = text(name) else { return nil }
        guard let value = Integer(text), range.contains(value) else {
            throw API.Failure(
                .badRequest,
                "invalidRequest",
                "\(name) is a whole number from \(range.lowerBound) to \(range.upperBound)."
            )
        }
        return value
    }

    func microseconds(_ name: String) throws(API.Failure) -> Duration? {
        guard let text = text(name) else { return nil }
        guard let value = Double(text), let duration = Duration(microseconds: value) else {
            throw API.Failure(.badRequest, "invalidRequest", "\(name) is a number of microseconds, more than 0.")
        }
        return duration
    }

    func flag(_ name: String) throws(API.Failure) -> Bool {
        switch text(name) {
        case nil, "false"?: return false
        case "true"?: return true
        default: throw API.Failure(.badRequest, "invalidRequest", "\(name) is true or false.")
        }
    }
}

extension ServerContext {
    /// The number in the path.
    func number(_ name: String, _ code: String) throws(API.Failure) -> UInt64 {
        guard let text = parameters.get(name), let number = UInt64(text), text.first != "+" else {
            throw API.Failure(.notFound, code, "There is nothing with that number.")
        }
        return number
    }

    func callID() throws(API.Failure) -> CallID { CallID(rawValue: try number("id", "unknownCall")) }

    func moduleName() -> String { parameters.get("module") ?? "" }
}

extension Response {
    /// An answer in JSON.
    static func json(
        _ value: some Encodable,
        status: HTTPResponse.Status = .ok,
        headers: HTTPFields = HTTPFields()
    ) -> Response {
        var headers = headers
        headers[.contentType] = "application/json"
        // Numbers that JSON does not have are written as text before they come here.
        guard let data = try? JSONEncoder.ofAnswers.encode(value) else {
            let failure = API.Failure(.internalServerError, "failed", "The answer cannot be written as JSON.")
            return Response(
                status: .internalServerError,
                headers: headers,
                body: ResponseBody(byteBuffer: ByteBuffer(string: failure.message))
            )
        }
        return Response(status: status, headers: headers, body: ResponseBody(byteBuffer: ByteBuffer(bytes: data)))
    }

    /// An answer in JSON that writes itself.
    static func json(
        _ value: some JSONWritable,
        status: HTTPResponse.Status = .ok,
        headers: HTTPFields = HTTPFields()
    ) -> Response {
        var headers = headers
        headers[.contentType] = "application/json"
        return Response(status: status, headers: headers, body: ResponseBody(byteBuffer: ByteBuffer(bytes: value.json)))
    }

    /// Bytes as they are, which no browser is to take for anything else.
    static func bytes(_ bytes: [UInt8], headers: HTTPFields = HTTPFields()) -> Response {
        var headers = headers
        headers[.contentType] = "application/octet-stream"
        return Response(status: .ok, headers: headers, body: ResponseBody(byteBuffer: ByteBuffer(bytes: bytes)))
    }

    static func text(_ text: String, type: String) -> Response {
        Response(
            status: .ok,
            headers: [.contentType: type],
            body: ResponseBody(byteBuffer: ByteBuffer(string: text))
        )
    }
}
#endif
