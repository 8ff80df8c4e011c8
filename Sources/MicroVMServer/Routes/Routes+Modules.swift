#if Server
import HTTPTypes
import Hummingbird
import MicroVM
import MicroVMSupervisor

extension Routes {
    func addModules(_ version: RouterGroup<ServerContext>) {
        version.get("modules") { request, _ in
            try request.allowOnly()
            return Response.json(API.Modules(modules: await supervisor.moduleList().map(API.Module.init)))
        }
        version.get("modules/:module") { request, context in
            try request.allowOnly()
            return Response.json(API.Module(try await supervisor.status(ofModule: context.moduleName())))
        }
        version.put("modules/:module") { request, context in try await upload(request, context) }
        version.patch("modules/:module") { request, context in
            let size = try await request.json(API.PoolSize.self, configuration, context)
            try checkPool(size.minimum, size.maximum)
            let name = context.moduleName()
            let status = try await supervisor.resizePool(of: name, to: size.minimum...size.maximum)
            try await store.setPool(of: name, to: status.pool)
            return Response.json(API.Module(status))
        }
        version.delete("modules/:module") { request, context in
            try request.allowOnly("kill")
            let name = context.moduleName()
            try await supervisor.unregister(name, killing: try request.flag("kill"))
            try await store.removeModule(name)
            return Response(status: .noContent)
        }
    }

    private func checkPool(_ minimum: Int, _ maximum: Int) throws(API.Failure) {
        guard minimum >= 0, maximum >= max(1, minimum), maximum <= configuration.maximumPoolSize else {
            throw API.Failure(
                .badRequest,
                "invalidRequest",
                "A pool has a minimum from 0 on, and a maximum from that and 1 to \(configuration.maximumPoolSize)."
            )
        }
    }

    /// Registers a module, and keeps it when it has turned out to be one.
    private func upload(_ request: Request, _ context: ServerContext) async throws -> Response {
        let name = context.moduleName()
        guard Supervisor.isModuleName(name) else {
            throw API.Failure(
                .badRequest,
                "invalidRequest",
                "A module's name has 1 to 64 letters, digits, dots, underscores and hyphens of ASCII, and does not "
                    + "begin with a dot."
            )
        }
        try request.allowOnly(
            "replace",
            "poolMinimum",
            "poolMaximum",
            "memoryBytes",
            "stackBytes",
            "timeMicroseconds",
            "cpuTimeMicroseconds",
            "outputBytes",
            "cpuTimePerMinuteMicroseconds",
            "outputBytesPerMinute"
        )
        let replaces = try request.flag("replace")
        var options = API.ModuleOptions()
        options.poolMinimum = try request.integer("poolMinimum", in: 0...configuration.maximumPoolSize)
        options.poolMaximum = try request.integer("poolMaximum", in: 1...configuration.maximumPoolSize)
        options.memoryBytes = try request.integer("memoryBytes", in: 1...configuration.maximumGuestMemory)
        options.stackBytes = try request.integer("stackBytes", in: 4096...configuration.maximumGuestMemory)
        options.timeMicroseconds = try request.microseconds("timeMicroseconds")?.microseconds
        options.cpuTimeMicroseconds = try request.microseconds("cpuTimeMicroseconds")?.microseconds
        options.outputBytes = try request.integer("outputBytes", in: 0...UInt64.max)
        options.cpuTimePerMinuteMicroseconds = try request.microseconds("cpuTimePerMinuteMicroseconds")?.microseconds
        options.outputBytesPerMinute = try request.integer("outputBytesPerMinute", in: 0...UInt64.max)
        let pool = poolSize(options)
        try checkPool(pool.minimum, pool.maximum)
        if !replaces, (try? await supervisor.status(ofModule: name)) != nil {
            throw API.Failure(
                .conflict,
                "moduleExists",
                "There is a module named \(name) already; replace=true replaces it."
            )
        }
        let bytes = try await request.bytes(
            upTo: configuration.maximumModuleSize,
            within: configuration.bodyTime,
            context
        )
        let module = Store.StoredModule(name: name, bytes: bytes, options: options)
        let status = try await EventLoopExecutor.leaving { try await register(module, replacing: replaces) }
        do {
            try await store.save(Store.StoredModule(name: name, bytes: bytes, options: options))
        } catch {
            try? await supervisor.unregister(name)
            throw API.Failure(HTTPResponse.Status(code: 507), "notStored", "The module cannot be stored.")
        }
        return Response.json(API.Module(status), status: .created, headers: [.location: "/v1/modules/\(name)"])
    }

    private func poolSize(_ options: API.ModuleOptions) -> (minimum: Int, maximum: Int) {
        let minimum = options.poolMinimum ?? 0
        return (minimum, options.poolMaximum ?? max(minimum, configuration.poolSize))
    }

    /// Makes a module of bytes, which may be any.
    @discardableResult
    func register(_ stored: Store.StoredModule, replacing: Bool) async throws -> ModuleStatus {
        let module = try GuestModule(stored.bytes, name: stored.name)
        let options = stored.options
        let pool = poolSize(options)
        var settings = ModuleSettings()
        settings.pool = pool.minimum...max(pool.minimum, pool.maximum)
        settings.sandbox.memoryLimit = options.memoryBytes ?? configuration.guestMemory
        if let stack = options.stackBytes { settings.sandbox.stackSize = stack }
        settings.sandbox.niceness = configuration.niceness
        settings.sandbox.initializerTimeLimit = configuration.initializerTime
        settings.sandbox.coreDumps = coreDumps.map { CoreDumpPolicy(directory: $0) }
        settings.callLimits = configuration.callLimits.bounded(
            by: CallLimits(
                time: options.timeMicroseconds.flatMap { Duration(microseconds: $0) },
                cpuTime: options.cpuTimeMicroseconds.flatMap { Duration(microseconds: $0) },
                output: options.outputBytes
            )
        )
        settings.limits.cpuTimePerMinute = options.cpuTimePerMinuteMicroseconds.flatMap { Duration(microseconds: $0) }
        settings.limits.outputPerMinute = options.outputBytesPerMinute
        return try await supervisor.register(module, as: stored.name, settings: settings, replacing: replacing)
    }
}
#endif
