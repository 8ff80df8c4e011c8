#if Server
import HTTPTypes
import Hummingbird
import MicroVM
import MicroVMSupervisor

extension API {
    /// Why a request was refused or has failed: a status, a code for programs and a sentence for people.
    package struct Failure: Error, Codable, Sendable, Hashable {
        private struct Body: Codable {
            var status: Int
            var code: String
            var message: String
        }

        package var status: Int
        package var code: String
        package var message: String
        /// Whether the rest of the request is not worth reading.
        var closesConnection = false

        init(_ status: HTTPResponse.Status, _ code: String, _ message: String, closesConnection: Bool = false) {
            self.status = status.code
            self.code = code
            self.message = message
            self.closesConnection = closesConnection
        }

        private enum Key: String, CodingKey { case error }

        package init(from decoder: any Decoder) throws {
            let body = try decoder.container(keyedBy: Key.self).decode(Body.self, forKey: .error)
            status = body.status
            code = body.code
            message = body.message
        }

        package func encode(to encoder: any Encoder) throws {
            var container = encoder.container(keyedBy: Key.self)
            try container.encode(Body(status: status, code: code, message: message), forKey: .error)
        }

        static func valueType(named name: String?) throws(Failure) -> CallValueType {
            guard let name else { return .i64 }
            guard let type = CallValueType(rawValue: name) else {
                let names = CallValueType.allCases.map(\.rawValue).joined(separator: ", ")
                throw Failure(
                    .badRequest,
                    "invalidRequest",
                    "“\(name.printable)” is not a type; there are \(names)."
                )
            }
            return type
        }
    }
}

extension API.Failure {
    /// What an error is to a client. Errors that say something of the machine alone say no more than that.
    init(_ error: any Error) {
        switch error {
        case let failure as API.Failure: self = failure
        case let error as SupervisorError:
            self.init(Self.status(of: error.code), error.code.rawValue, error.message.printable)
        case let error as SandboxError:
            self.init(Self.status(of: error.code), error.code.description, error.message.printable)
        case let error as DecodingError: self.init(.badRequest, "invalidRequest", Self.message(error))
        case let error as HTTPError where error.status == .notFound:
            self.init(.notFound, "unknownResource", "There is nothing here, or not with this method.")
        case let error as HTTPError:
            self.init(error.status, "refused", error.body?.printable ?? "The request was refused.")
        default: self.init(.internalServerError, "failed", "It has failed: \(type(of: error)).")
        }
    }

    private static func status(of code: SupervisorError.Code) -> HTTPResponse.Status {
        switch code {
        case .unknownModule, .unknownCall, .unknownSnapshot: .notFound
        case .moduleExists, .callFinished, .callNotRunning: .conflict
        case .unknownFunction, .limitTooSmall: .unprocessableContent
        case .invalidRequest: .badRequest
        case .tooManySnapshots, .queueFull: .tooManyRequests
        case .shuttingDown: .serviceUnavailable
        }
    }

    private static func status(of code: SandboxError.Code) -> HTTPResponse.Status {
        switch code {
        case .invalidModule, .missingImports, .unknownExport, .invalidConfiguration, .argumentTooLarge,
            .invalidArgument, .timeLimitExceeded, .cpuTimeLimitExceeded, .guestFault, .incompatibleSnapshot:
            .unprocessableContent
        case .busy, .poisoned, .closed: .conflict
        case .kvmUnavailable, .poolShutDown, .poolExhausted: .serviceUnavailable
        default: .internalServerError
        }
    }

    private static func message(_ error: DecodingError) -> String {
        func place(_ context: DecodingError.Context, _ last: (any CodingKey)? = nil) -> String {
            let path = (context.codingPath + (last.map { [$0] } ?? []))
                .map { key in key.intValue.map(String.init) ?? key.stringValue.printable }
            return path.isEmpty ? "The body" : path.joined(separator: ".")
        }
        switch error {
        case .keyNotFound(let key, let context): return "\(place(context, key)) is missing."
        case .valueNotFound(_, let context): return "\(place(context)) must not be null."
        case .typeMismatch(_, let context): return "\(place(context)) is of another type than it should be."
        case .dataCorrupted(let context):
            // What the decoder itself says of text that is no JSON is no sentence.
            guard !context.codingPath.isEmpty || context.underlyingError == nil else {
                return "The body is not valid JSON in UTF-8."
            }
            return context.codingPath.isEmpty
                ? context.debugDescription : "\(place(context)): \(context.debugDescription)"
        @unknown default: return "The body is not as it should be."
        }
    }
}
#endif
