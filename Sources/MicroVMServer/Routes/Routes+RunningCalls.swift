#if Server
import Glibc
import HTTPTypes
import Hummingbird
import MicroVM
import MicroVMSupervisor
import NIOCore
import Synchronization
import SystemPackage

extension Routes {
    func addRunningCalls(_ version: RouterGroup<ServerContext>) {
        version.post("calls/:id/kill") { _, context in
            let id = try context.callID()
            try await supervisor.kill(id)
            return Response.json(API.Call(try await supervisor.status(of: id)))
        }
        version.post("calls/:id/stop") { _, context in
            let id = try context.callID()
            try await supervisor.stop(id)
            return Response.json(API.Call(try await supervisor.status(of: id)))
        }
        version.post("calls/:id/continue") { _, context in
            let id = try context.callID()
            try await supervisor.resume(id)
            return Response.json(API.Call(try await supervisor.status(of: id)))
        }
        version.get("calls/:id/inspection") { _, context in
            let id = try context.callID()
            let state = try await supervisor.inspect(id)
            return Response.json(
                API.Inspection(
                    call: API.Call(try await supervisor.status(of: id)),
                    place: API.Place(state),
                    statistics: API.Statistics(state.statistics),
                    memoryBytes: state.ownMemory
                )
            )
        }
        version.post("calls/:id/fork") { request, context in
            let id = try context.callID()
            let fork = try await supervisor.fork(id, labels: try await labels(request, context))
            return Response.json(
                API.Call(try await supervisor.status(of: fork)),
                status: .created,
                headers: [.location: "/v1/calls/\(fork)"]
            )
        }
        version.get("calls/:id/output") { request, context in
            try request.allowOnly("from", "stream")
            let output = try await supervisor.output(of: try context.callID())
            let offset = try request.integer("from", in: 0...UInt64.max) ?? 0
            let stream: SandboxConfiguration.OutputStream?
            switch request.text("stream") {
            case nil: stream = nil
            case "standardOutput"?: stream = .standardOutput
            case "standardError"?: stream = .standardError
            default:
                throw API.Failure(.badRequest, "invalidRequest", "stream is standardOutput or standardError.")
            }
            let pieces = output.pieces(from: offset).pieces.filter { stream == nil || $0.stream == stream }
            return Response.bytes(pieces.flatMap(\.bytes))
        }
        version.get("calls/:id/output/events") { request, context in
            try request.allowOnly("from")
            let output = try await supervisor.output(of: try context.callID())
            return EventStream.output(
                output,
                from: try request.integer("from", in: 0...UInt64.max) ?? 0,
                on: context.channel.eventLoop
            )
        }
        version.get("calls/:id/core-dump") { _, context in try await coreDump(try context.callID()) }
        addSnapshots(version)
    }

    private func addSnapshots(_ version: RouterGroup<ServerContext>) {
        version.post("calls/:id/snapshot") { _, context in
            let snapshot = try await supervisor.snapshot(try context.callID())
            return Response.json(
                API.Snapshot(snapshot),
                status: .created,
                headers: [.location: "/v1/snapshots/\(snapshot.id)"]
            )
        }
        version.get("snapshots") { _, _ in
            Response.json(API.Snapshots(snapshots: await supervisor.snapshotList().map(API.Snapshot.init)))
        }
        version.delete("snapshots/:id") { _, context in
            try await supervisor.removeSnapshot(SnapshotID(rawValue: context.number("id", "unknownSnapshot")))
            return Response(status: .noContent)
        }
        version.post("snapshots/:id/start") { request, context in
            let id = SnapshotID(rawValue: try context.number("id", "unknownSnapshot"))
            let call = try await supervisor.start(from: id, labels: try await labels(request, context))
            return Response.json(
                API.Call(try await supervisor.status(of: call)),
                status: .created,
                headers: [.location: "/v1/calls/\(call)"]
            )
        }
    }

    /// The labels in a body, where there is one.
    private func labels(_ request: Request, _ context: ServerContext) async throws -> [String: String]? {
        try await request.jsonIfAny(API.Fork.self, configuration, context)?.labels
    }

    // MARK: - Core dumps

    private static let dumpNumber = Atomic<UInt64>(0)

    /// That of a call's end, or of a running call now.
    private func coreDump(_ id: CallID) async throws -> Response {
        guard let coreDumps else {
            throw API.Failure(
                .notFound,
                "noCoreDump",
                "This server keeps no core dumps: it was started without a directory."
            )
        }
        if let path = try await supervisor.status(of: id).coreDump { return try Self.file(path, isTemporary: false) }
        // A name of its own; the order does not matter.
        let number = Self.dumpNumber.wrappingAdd(1, ordering: .relaxed).newValue
        let path = coreDumps.appending("request-\(getpid())-\(number).tmp")
        do {
            try await supervisor.coreDump(of: id, to: path)
        } catch let error as SupervisorError where error.code == .callFinished {
            throw API.Failure(.notFound, "noCoreDump", "There is no core dump of the call \(id), which is over.")
        }
        return try Self.file(path, isTemporary: true)
    }

    /// A file's bytes, piece by piece. A temporary one is gone when the answer is.
    private static func file(_ path: FilePath, isTemporary: Bool) throws -> Response {
        let descriptor: SystemPackage.FileDescriptor
        let size: Int64
        do {
            descriptor = try SystemPackage.FileDescriptor.open(path, .readOnly, options: .closeOnExec)
            size = try descriptor.seek(offset: 0, from: .end)
        } catch {
            throw API.Failure(.notFound, "noCoreDump", "The core dump is not there any more.")
        }
        // The open file is all that is needed from here on.
        if isTemporary { unsafe _ = unlink(path.string) }
        let file = OpenFile(descriptor)
        return Response(
            status: .ok,
            headers: [
                .contentType: "application/octet-stream",
                .contentDisposition: "attachment; filename=\"microvm.core\"",
            ],
            body: ResponseBody(contentLength: Int(size)) { writer in
                var offset: Int64 = 0
                while offset < size {
                    let count = Int(min(256 << 10, size - offset))
                    let bytes = try file.read(count, at: offset)
                    // Shorter than it was: the connection ends in the middle.
                    if bytes.isEmpty { throw API.Failure(.internalServerError, "failed", "The file was cut.") }
                    offset += Int64(bytes.count)
                    try await writer.write(ByteBuffer(bytes: bytes))
                }
                try await writer.finish(nil)
            }
        )
    }
}

/// A file that is closed when nobody reads it any more.
private final class OpenFile: Sendable {
    private let descriptor: SystemPackage.FileDescriptor

    init(_ descriptor: SystemPackage.FileDescriptor) { self.descriptor = descriptor }

    deinit { try? descriptor.close() }

    func read(_ count: Int, at offset: Int64) throws -> [UInt8] {
        unsafe try [UInt8](unsafeUninitializedCapacity: count) { buffer, read in
            // The buffer is what the read is bounded by, and `read` what it has written.
            read = unsafe try descriptor.read(
                fromAbsoluteOffset: offset,
                into: UnsafeMutableRawBufferPointer(buffer)
            )
        }
    }
}
#endif
