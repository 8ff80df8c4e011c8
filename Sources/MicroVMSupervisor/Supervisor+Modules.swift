public import MicroVM

extension Supervisor {
    /// Registers a module under a name, and makes the sandboxes that are to be ready.
    ///
    /// - Parameters:
    ///   - module: the module.
    ///   - name: what it is called: 1 to 64 letters, digits, `.`, `_` and `-` of ASCII, not beginning with a `.`.
    ///   - settings: how its calls are run.
    ///   - replacing: whether it may take the place of another module. That one's calls go on.
    /// - Throws: ``SupervisorError``: `.invalidRequest`, `.moduleExists`, `.shuttingDown`; `SandboxError`, as when a
    ///   pool is made; and what the settings' `prepare` has thrown.
    @discardableResult
    public func register(
        _ module: GuestModule,
        as name: String,
        settings: ModuleSettings = ModuleSettings(),
        replacing: Bool = false
    ) async throws -> ModuleStatus {
        guard Self.isModuleName(name) else {
            throw SupervisorError(
                .invalidRequest,
                "A module's name has 1 to 64 letters, digits, dots, underscores and hyphens of ASCII, and does not "
                    + "begin with a dot."
            )
        }
        guard phase == .open else {
            throw SupervisorError(.shuttingDown, "The supervisor shuts down and accepts no more modules.")
        }
        guard replacing || modules[name] == nil, registrations.insert(name).inserted else {
            throw SupervisorError(.moduleExists, "There is a module named \(name) already.")
        }
        defer { registrations.remove(name) }
        let pool = try await Self.makePool(module, name, settings)
        guard phase == .open else {
            await pool.shutDown()
            throw SupervisorError(.shuttingDown, "The supervisor shuts down and accepts no more modules.")
        }
        let registered = RegisteredModule(name: name, module: module, settings: settings, pool: pool)
        if let former = modules.updateValue(registered, forKey: name) { retire(former) }
        hub.publish(.moduleRegistered, module: name)
        return registered.status
    }

    /// Whether a module may be called that.
    public static func isModuleName(_ name: String) -> Bool {
        (1...64).contains(name.utf8.count) && name.first != "."
            && name.utf8.allSatisfy { byte in
                switch UInt8(byte) {
                case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                    UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "_"), UInt8(ascii: "-"):
                    true
                default: false
                }
            }
    }

    /// Off the actor, because it takes its time.
    @concurrent
    private static func makePool(
        _ module: GuestModule,
        _ name: String,
        _ settings: ModuleSettings
    ) async throws -> SandboxPool {
        var configuration = settings.sandbox
        let further = configuration.output
        configuration.output = .handler { stream, bytes in
            CallOutput.current?.append(stream, bytes)
            if case .handler(let handler) = further { handler(stream, bytes) }
        }
        return try await SandboxPool(
            module,
            hostFunctions: settings.hostFunctions,
            configuration: configuration,
            size: settings.pool,
            name: name,
            prepare: { try await settings.prepare($0) }
        )
    }

    /// Removes a module: no more calls of it are accepted. Those that wait or run go on, or are ended.
    ///
    /// - Parameters:
    ///   - name: the module's.
    ///   - killing: whether its calls are ended.
    /// - Throws: ``SupervisorError/Code/unknownModule``.
    public func unregister(_ name: String, killing: Bool = false) throws(SupervisorError) {
        guard let module = modules.removeValue(forKey: name) else { throw Self.unknownModule(name) }
        for (id, snapshot) in snapshots where snapshot.module === module { snapshots[id] = nil }
        hub.publish(.moduleRemoved, module: name)
        if killing {
            let switches = calls.values.filter { $0.module === module }.sorted { $0.id < $1.id }
                .compactMap { prepareToEnd($0, .killed(.removal)) }
            // Elsewhere: each may have to wait until its guest has left.
            Task.detached { for killSwitch in switches { _ = try? killSwitch.terminate() } }
        }
        retire(module)
    }

    /// A module has lost its name. Its pool goes when its calls have.
    private func retire(_ module: RegisteredModule) {
        module.isRetired = true
        retired.append(module)
        closeRetired(module)
    }

    func closeRetired(_ module: RegisteredModule) {
        guard module.isRetired, module.running == 0, module.queued == 0,
            let index = retired.firstIndex(where: { $0 === module })
        else { return }
        retired.remove(at: index)
        let pool = module.pool
        Task.detached { await pool.shutDown() }
    }

    /// All registered modules, by name.
    public func moduleList() -> [ModuleStatus] { modules.values.map(\.status).sorted { $0.name < $1.name } }

    /// What is known of a module.
    ///
    /// - Throws: ``SupervisorError/Code/unknownModule``.
    public func status(ofModule name: String) throws(SupervisorError) -> ModuleStatus {
        try module(named: name).status
    }

    /// Changes how many sandboxes of a module are kept ready, and how many of its calls may run at the same time.
    ///
    /// - Throws: ``SupervisorError/Code/unknownModule``; `SandboxError`, as `SandboxPool.resize(to:)`.
    @discardableResult
    public func resizePool(of name: String, to size: ClosedRange<Int>) async throws -> ModuleStatus {
        let module = try module(named: name)
        try await Self.resize(module.pool, to: size)
        hub.publish(.poolResized(minimum: size.lowerBound, maximum: size.upperBound), module: name)
        startCalls()
        return module.status
    }

    /// Off the actor, because sandboxes may have to be made.
    @concurrent
    private static func resize(_ pool: SandboxPool, to size: ClosedRange<Int>) async throws {
        try await pool.resize(to: size)
    }
}
