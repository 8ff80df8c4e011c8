#if Server
import HTTPTypes
import Hummingbird
import MicroVM
import MicroVMSupervisor

extension Routes {
    func addCalls(_ version: RouterGroup<ServerContext>) {
        version.post("calls") { request, context in
            try request.allowOnly("waitMicroseconds")
            let time = try request.microseconds("waitMicroseconds")
            let start = try await request.json(API.Start.self, configuration, context)
            let id = try await supervisor.start(try start.request())
            return try await created(id, waiting: time, context)
        }
        version.post("modules/:module/functions/:function") { request, context in
            try await callWithBytes(request, context)
        }
        version.get("calls") { request, _ in try await list(request) }
        version.get("calls/:id") { request, context in
            try request.allowOnly("sample")
            let id = try context.callID()
            if try request.flag("sample") { await supervisor.sample() }
            return Response.json(try await call(id))
        }
        version.get("calls/:id/wait") { request, context in
            try request.allowOnly("timeMicroseconds")
            let id = try context.callID()
            let time = try request.microseconds("timeMicroseconds") ?? .seconds(30)
            guard let status = try? await wait(for: id, time, context) else { return Response.json(try await call(id)) }
            return Response.json(API.Call(status))
        }
        version.get("calls/:id/result") { _, context in try await result(context.callID()) }
        version.get("history") { request, _ in
            try request.allowOnly("before", "module", "limit")
            let before = try request.integer("before", in: 0...UInt64.max)
            let limit = try request.integer("limit", in: 1...1000) ?? 100
            let module = request.text("module")
            let calls = try await EventLoopExecutor.leaving {
                try await store.history(before: before, module: module, limit: limit)
            }
            return Response.json(API.Calls(calls: calls))
        }
    }

    /// A call, also one that only the records know of.
    func call(_ id: CallID) async throws -> API.Call {
        do throws(SupervisorError) {
            return API.Call(try await supervisor.status(of: id))
        } catch {
            if let call = try await store.call(id) { return call }
            throw error
        }
    }

    private func created(_ id: CallID, waiting time: Duration?, _ context: ServerContext) async throws -> Response {
        let status =
            if let time { try await wait(for: id, time, context) } else { try await supervisor.status(of: id) }
        return Response.json(API.Call(status), status: .created, headers: [.location: "/v1/calls/\(id)"])
    }

    /// Waits for the end of a call, but no longer than for some time.
    private func wait(for id: CallID, _ time: Duration, _ context: ServerContext) async throws -> CallStatus {
        // Who is cancelled is told how the call is now.
        try await context.channel.eventLoop.cancelling(after: min(time, .seconds(3600))) { [supervisor] in
            try await supervisor.wait(for: id)
        }
    }

    private func list(_ request: Request) async throws -> Response {
        try request.allowOnly("state", "module", "label", "sample", "finished")
        if try request.flag("sample") { await supervisor.sample() }
        var calls = await supervisor.list()
        if let count = try request.integer("finished", in: 0...1000) {
            calls += await supervisor.finished(limit: count).reversed()
        }
        if let name = request.text("state") {
            guard let state = CallStatus.State(rawValue: name) else {
                let names = CallStatus.State.allCases.map(\.rawValue).joined(separator: ", ")
                throw API.Failure(.badRequest, "invalidRequest", "state is one of \(names).")
            }
            calls = calls.filter { $0.state == state }
        }
        if let module = request.text("module") { calls = calls.filter { $0.module == module } }
        if let label = request.text("label") {
            let parts = label.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            calls = calls.filter { call in
                guard let value = call.labels[String(parts[0])] else { return false }
                return parts.count == 1 || value == parts[1]
            }
        }
        let now = WallTime.now
        return Response.json(API.Calls(calls: calls.map { API.Call($0, isWhole: false, now: now) }))
    }

    /// A call whose only argument is the body, and whose result is the answer's, if it is waited for.
    private func callWithBytes(_ request: Request, _ context: ServerContext) async throws -> Response {
        try request.allowOnly(
            "returns",
            "waitMicroseconds",
            "priority",
            "timeMicroseconds",
            "cpuTimeMicroseconds",
            "outputBytes",
            "queueTimeMicroseconds",
            "label.NAME",
            prefix: "label."
        )
        var labels: [String: String] = [:]
        for (key, value) in request.uri.queryParameters where key.hasPrefix("label.") {
            labels[String(key.dropFirst(6))] = String(value)
        }
        let returns = try API.Failure.valueType(named: request.text("returns") ?? "bytes")
        let limits = CallLimits(
            time: try request.microseconds("timeMicroseconds"),
            cpuTime: try request.microseconds("cpuTimeMicroseconds"),
            output: try request.integer("outputBytes", in: 0...UInt64.max),
            queueTime: try request.microseconds("queueTimeMicroseconds")
        )
        let priority = try request.integer("priority", in: Int.min...Int.max) ?? 0
        let time = try request.microseconds("waitMicroseconds")
        let bytes = try await request.bytes(
            upTo: configuration.maximumBodySize,
            within: configuration.bodyTime,
            context
        )
        let id = try await supervisor.start(
            CallRequest(
                module: context.moduleName(),
                function: context.parameters.get("function") ?? "",
                arguments: [.bytes(bytes)],
                returns: returns,
                limits: limits,
                labels: labels,
                priority: priority
            )
        )
        guard let time else { return try await created(id, waiting: nil, context) }
        _ = try await wait(for: id, time, context)
        return try await result(id)
    }

    /// What the function has returned: bytes and text as they are, everything else as JSON.
    private func result(_ id: CallID) async throws -> Response {
        let call = try await call(id)
        let location: HTTPFields = [.contentLocation: "/v1/calls/\(id)"]
        guard let outcome = call.outcome else {
            throw API.Failure(.conflict, "callNotFinished", "The call \(id) is not over.")
        }
        switch outcome.kind {
        case "returned":
            guard let result = outcome.result else {
                throw API.Failure(.gone, "resultForgotten", "The result of the call \(id) is not kept any more.")
            }
            switch result.value {
            case .bytes(let bytes): return Response.bytes(bytes, headers: location)
            case .string(let text): return Response.bytes(Array(text.utf8), headers: location)
            default: return Response.json(result, headers: location)
            }
        case "faulted":
            let place = outcome.place?.symbol.map { " in \($0.demangledName.printable)" } ?? ""
            let kind = outcome.fault?.kind ?? "fault"
            throw API.Failure(.unprocessableContent, "guestFault", "The call \(id) has faulted\(place): \(kind).")
        case "limited":
            let limit = outcome.limit ?? "limit"
            throw API.Failure(.unprocessableContent, "limitExceeded", "The call \(id) has reached its limit: \(limit).")
        case "killed": throw API.Failure(.conflict, "killed", "The call \(id) was killed.")
        case "lost": throw API.Failure(.gone, "lost", "The server ended while the call \(id) was under way.")
        default:
            throw API.Failure(
                .unprocessableContent,
                outcome.error?.code ?? "failed",
                outcome.error?.message ?? "The call \(id) has failed."
            )
        }
    }
}
#endif
