#if Server
import ArgumentParser
import MicroVM
import MicroVMServer
import SystemPackage

/// `microvm upload`.
struct UploadCommand: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "upload",
        abstract: "Give a server a module.",
        discussion: """
            The server checks it, runs its initialisers, and keeps it, also when it is started anew.

            EXAMPLES
              microvm upload plugin.so                           its calls are those of plugin
              microvm upload --name parser --pool 2...16 parser-1.4.so
              microvm upload --replace plugin.so                 calls of the old one go on
            """
    )

    @Argument(help: "The module, an ELF shared object.", completion: .file(extensions: ["so"]))
    var path: String

    @Option(help: "What it is called on the server; the file's name without .so unless given.")
    var name: String?

    @Flag(help: "Take the place of a module with that name.")
    var replace = false

    @Option(
        help: ArgumentHelp(
            "How many sandboxes are kept ready, and how many calls may run at the same time.",
            valueName: "minimum...maximum"
        )
    )
    var pool: String?

    @Option(
        help: ArgumentHelp("The memory of each guest.", valueName: "size"),
        transform: ByteCount.init(parsing:)
    )
    var memory: ByteCount?

    @Option(
        help: ArgumentHelp("How long each call may run.", valueName: "time"),
        transform: TimeSpan.init(parsing:)
    )
    var timeLimit: TimeSpan?

    @Option(
        help: ArgumentHelp("How much CPU time each call may use.", valueName: "time"),
        transform: TimeSpan.init(parsing:)
    )
    var cpuLimit: TimeSpan?

    @Option(
        help: ArgumentHelp("How much CPU time all its calls may use in a minute.", valueName: "time"),
        transform: TimeSpan.init(parsing:)
    )
    var cpuPerMinute: TimeSpan?

    @Option(
        help: ArgumentHelp("How many bytes of output each call may write.", valueName: "size"),
        transform: ByteCount.init(parsing:)
    )
    var outputLimit: ByteCount?

    @OptionGroup var options: ClientOptions

    func validate() throws { _ = try poolSize() }

    private func poolSize() throws -> (Int, Int)? {
        guard let pool else { return nil }
        let parts = pool.split(separator: ".", omittingEmptySubsequences: true).map { Int($0) }
        guard pool.contains("...") || parts.count == 1, let first = parts.first ?? nil, let last = parts.last ?? nil,
            parts.count <= 2, first >= 0, last >= max(1, first)
        else { throw ValidationError("“\(pool.printable)” is no size of a pool; write 2...16.") }
        return (parts.count == 1 ? 0 : first, last)
    }

    func run(_ client: APIClient) async throws {
        let bytes = try ArgumentBytes(reading: [.file(path)], limit: 1 << 30).values
        var name = name ?? FilePath(path).lastComponent?.string ?? ""
        if self.name == nil, name.hasSuffix(".so") { name.removeLast(3) }
        var query = Query()
        query.add("replace", replace ? "true" : nil)
        if let (minimum, maximum) = try poolSize() {
            query.add("poolMinimum", "\(minimum)")
            query.add("poolMaximum", "\(maximum)")
        }
        query.add("memoryBytes", memory.map { "\($0.bytes)" })
        query.add("timeMicroseconds", timeLimit.map { "\($0.microseconds)" })
        query.add("cpuTimeMicroseconds", cpuLimit.map { "\($0.microseconds)" })
        query.add("cpuTimePerMinuteMicroseconds", cpuPerMinute.map { "\($0.microseconds)" })
        query.add("outputBytes", outputLimit.map { "\($0.bytes)" })
        let answer = try await client.request(
            "PUT",
            "/v1/modules/\(Query.escaped(name))\(query.text)",
            body: bytes.first as? [UInt8],
            contentType: "application/octet-stream"
        )
        try write(answer, as: API.Module.self) { "\($0.name.printable)\n" }
    }
}

/// `microvm modules`.
struct ModulesCommand: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "modules",
        abstract: "Show the modules of a server, or change them.",
        discussion: """
            EXAMPLES
              microvm modules
              microvm modules --resize 0...8 plugin
              microvm modules --remove plugin
            """
    )

    @Argument(help: "Only this module.")
    var module: String?

    @Flag(help: "Remove the module; its calls go on.")
    var remove = false

    @Option(help: ArgumentHelp("Another size for the module's pool.", valueName: "minimum...maximum"))
    var resize: String?

    @OptionGroup var options: ClientOptions

    func validate() throws {
        if remove || resize != nil, module == nil { throw ValidationError("Which module? Write its name.") }
        if remove, resize != nil { throw ValidationError("Either --remove or --resize.") }
    }

    func run(_ client: APIClient) async throws {
        guard let module else {
            let answer = try await client.request("GET", "/v1/modules")
            return try write(answer, as: API.Modules.self) { Self.table($0.modules) }
        }
        let path = "/v1/modules/\(Query.escaped(module))"
        if remove { return try await client.request("DELETE", path).check() }
        if let resize {
            let bounds = resize.split(separator: ".", omittingEmptySubsequences: true).map { Int($0) }
            guard resize.contains("..."), bounds.count == 2, let minimum = bounds[0], let maximum = bounds[1] else {
                throw CommandFailure(.usage, "invalidRequest", "“\(resize.printable)” is no size; write 2...16.")
            }
            let size = API.PoolSize(minimum: minimum, maximum: maximum)
            let answer = try await client.request("PATCH", path, json: size)
            return try write(answer, as: API.Module.self) { Self.table([$0]) }
        }
        let answer = try await client.request("GET", path)
        try write(answer, as: API.Module.self) { module in
            Self.table([module]) + "functions\n" + module.functions.map { "  \($0.printable)\n" }.joined()
        }
    }

    private static func table(_ modules: [API.Module]) -> String {
        guard !modules.isEmpty else { return "No modules. Upload one with microvm upload.\n" }
        var rows = [["MODULE", "MEMORY", "POOL", "SANDBOXES", "RUNNING", "QUEUED", "RETURNED", "OTHERWISE"]]
        for module in modules {
            let totals = module.totals
            rows.append([
                module.name.printable, CallText.bytes(module.memoryBytes),
                "\(module.pool.minimum)...\(module.pool.maximum)", "\(module.pool.sandboxes)", "\(module.running)",
                "\(module.queued)", "\(totals.returned)",
                "\(totals.faulted + totals.killed + totals.limited + totals.failed)",
            ])
        }
        return TextTable.lines(rows).joined(separator: "\n") + "\n"
    }
}
#endif
