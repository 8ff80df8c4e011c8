#if Server
import FoundationEssentials
import HTTPTypes
import Hummingbird
import MicroVM
import MicroVMSupervisor
import NIOCore

/// Server-sent events: answers that go on for as long as there is something to say and somebody who listens.
enum EventStream {
    /// How often something is said when there is nothing to say, so that it is noticed when nobody listens any more.
    static let heartbeat = Duration.seconds(15)
    private static let comment = ByteBuffer(string: ": nothing new\n\n")

    static func response(
        _ body: @escaping @concurrent @Sendable (inout any ResponseBodyWriter) async throws -> Void
    ) -> Response {
        Response(
            status: .ok,
            headers: [.contentType: "text/event-stream", .cacheControl: "no-store"],
            body: ResponseBody { writer in
                // The head is on its way before the first event.
                try await writer.write(ByteBuffer(string: ": begins\n\n"))
                try await body(&writer)
                try await writer.finish(nil)
            }
        )
    }

    static func event(_ name: String, number: UInt64? = nil, _ value: some Encodable) throws -> ByteBuffer {
        var buffer = ByteBuffer()
        if let number { buffer.writeString("id: \(number)\n") }
        buffer.writeString("event: \(name)\ndata: ")
        buffer.writeBytes(try JSONEncoder.ofAnswers.encode(value))
        buffer.writeString("\n\n")
        return buffer
    }

    /// All events of a supervisor from now on.
    static func events(of supervisor: Supervisor, on eventLoop: any EventLoop) -> Response {
        let events = supervisor.events()
        return response { writer in
            while true {
                let iterator = events.makeAsyncIterator()
                let next = await waiting(on: eventLoop) {
                    var iterator = iterator
                    return await iterator.next()
                }
                switch next {
                case .value(let event):
                    try await writer.write(
                        Self.event(event.kind.name, number: event.number, API.Event(event))
                    )
                case .over: return
                case .nothing: try await writer.write(comment)
                }
            }
        }
    }

    /// What a call writes, from a place on, until its end.
    static func output(_ output: CallOutput, from offset: UInt64, on eventLoop: any EventLoop) -> Response {
        response { writer in
            var offset = offset
            while true {
                let (pieces, mayGoOn) = output.pieces(from: offset)
                for piece in pieces {
                    offset = piece.offset + UInt64(piece.bytes.count)
                    try await writer.write(event("output", number: offset, API.Output(piece)))
                }
                if pieces.isEmpty {
                    guard mayGoOn else { break }
                    let place = offset
                    let next = await waiting(on: eventLoop) { () -> Bool? in
                        await output.wait(beyond: place)
                        return true
                    }
                    if case .nothing = next {
                        try await writer.write(comment)
                    }
                }
            }
            try await writer.write(event("end", [String: String]()))
        }
    }

    private enum Waited<Value: Sendable>: Sendable {
        case value(Value)
        /// There will be none any more.
        case over
        /// There was none for some time.
        case nothing
    }

    /// Waits for a value, but not for long. What comes at the last moment is not lost.
    private static func waiting<Value: Sendable>(
        on eventLoop: any EventLoop,
        _ body: @escaping @Sendable () async -> Value?
    ) async -> Waited<Value> {
        await withTaskGroup(of: Waited<Value>.self) { group in
            group.addTask {
                guard let value = await body() else { return .over }
                return .value(value)
            }
            group.addTask {
                await eventLoop.sleep(for: heartbeat)
                return .nothing
            }
            guard let first = await group.next() else { return .over }
            group.cancelAll()
            guard case .nothing = first, case .value(let value)? = await group.next() else { return first }
            return .value(value)
        }
    }
}

extension API.Output {
    init(_ piece: CallOutput.Piece) {
        self.init(
            offset: piece.offset,
            stream: piece.stream == .standardOutput ? "standardOutput" : "standardError",
            base64: Data(piece.bytes).base64EncodedString()
        )
    }
}
#endif
