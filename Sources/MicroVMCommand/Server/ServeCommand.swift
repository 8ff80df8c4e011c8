#if Server
import ArgumentParser
import Glibc
#if Logging
import Logging
#endif
import MicroVM
import MicroVMServer
import MicroVMSupervisor
import Synchronization
import SystemPackage

/// `microvm serve`.
struct ServeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "serve",
        abstract: "Run calls for others, who can watch, hold and end them.",
        discussion: """
            Listens at a Unix socket that only its owner may use. Clients are microvm upload, start, ps, top, logs, \
            inspect-call, stop, continue, kill and wait, or anything that speaks HTTP:

              curl --unix-socket /run/microvm.sock http://localhost/v1/calls

            On TCP, which has to be asked for, clients need a token. The page for browsers is at /.

            Uploaded modules and records of calls are kept in a directory, and are there again after a restart. \
            SIGTERM and Ctrl-C let calls end for a while (--drain), kill the rest, and say which; a second one ends \
            the server at once.

            EXAMPLES
              microvm serve
              microvm serve --socket /tmp/microvm.sock --in-memory
              microvm serve --tcp 127.0.0.1:8080 --token-file token --sandboxes 64
              ssh -L 8080:/run/microvm.sock HOST       then open http://localhost:8080
            """
    )

    @Option(help: ArgumentHelp("The path of the socket.", valueName: "path"), completion: .file())
    var socket: String?

    @Option(help: ArgumentHelp("Listen on TCP instead, for those who have the token.", valueName: "host:port"))
    var tcp: String?

    @Option(
        help: ArgumentHelp("A file with the token, of at least 16 bytes; else MICROVM_TOKEN.", valueName: "file"),
        completion: .file()
    )
    var tokenFile: String?

    @Option(
        help: ArgumentHelp(
            "Where modules, records and core dumps are kept; in XDG_STATE_HOME, ~/.local/state or /var/lib.",
            valueName: "directory"
        ),
        completion: .directory
    )
    var directory: String?

    @Flag(help: "Keep nothing on the disk.")
    var inMemory = false

    @Option(help: "How many calls may run at the same time, of all modules together.")
    var sandboxes: Int?

    @Option(
        help: ArgumentHelp("How much memory the guests of running calls may own together.", valueName: "size"),
        transform: ByteCount.init(parsing:)
    )
    var memory: ByteCount?

    @Option(
        help: ArgumentHelp("How much CPU time all guests may use in a minute.", valueName: "time"),
        transform: TimeSpan.init(parsing:)
    )
    var cpuPerMinute: TimeSpan?

    @Option(
        help: ArgumentHelp("How many bytes all guests may write in a minute.", valueName: "size"),
        transform: ByteCount.init(parsing:)
    )
    var outputPerMinute: ByteCount?

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
        help: ArgumentHelp("How many bytes each call may write.", valueName: "size"),
        transform: ByteCount.init(parsing:)
    )
    var outputLimit: ByteCount?

    @Option(
        help: ArgumentHelp(
            "How much guests leave the processors to the server and to others, from 0 to 19; 10 unless given.",
            valueName: "increment"
        )
    )
    var niceness = 10

    @Option(help: "How many calls may wait; 1000 unless given.")
    var queue = 1000

    @Option(help: "The label by whose values calls take turns; tenant unless given.")
    var fairness = "tenant"

    @Option(
        help: ArgumentHelp("How large an uploaded module may be; 64MiB unless given.", valueName: "size"),
        transform: ByteCount.init(parsing:)
    )
    var moduleSize = ByteCount(64 << 20)

    @Option(
        help: ArgumentHelp("How long calls may go on at the end; 10s unless given.", valueName: "time"),
        transform: TimeSpan.init(parsing:)
    )
    var drain = TimeSpan(.seconds(10))

    @Flag(inversion: .prefixedNo, help: ArgumentHelp(CommandConfinement.help))
    var confinement = true

    func validate() throws {
        if socket != nil, tcp != nil { throw ValidationError("Either --socket or --tcp.") }
        if directory != nil, inMemory { throw ValidationError("Either --directory or --in-memory.") }
        if let tcp, ClientOptions.hostAndPort(tcp) == nil {
            throw ValidationError("“\(tcp.printable)” is no address; write 127.0.0.1:8080.")
        }
        if let sandboxes, sandboxes < 1 { throw ValidationError("--sandboxes must be at least 1.") }
        if !(0...19).contains(niceness) { throw ValidationError("--niceness must lie between 0 and 19.") }
        if queue < 0 { throw ValidationError("--queue must not be negative.") }
    }

    func run() async throws {
        do {
            try await serve(serverConfiguration())
        } catch let failure as CommandFailure {
            StandardStream.error.write("Error: \(failure.message)\n")
            throw failure.status.exitCode
        } catch let exit as ExitCode {
            throw exit
        } catch {
            StandardStream.error.write("Error: \("\(error)".printable)\n")
            throw ExitStatus.systemError.exitCode
        }
    }

    private func serve(_ configuration: ServerConfiguration) async throws {
        do throws(SandboxError) {
            // Better known now than at the first call.
            _ = try HostSupport()
        } catch {
            throw CommandFailure(error)
        }
        let server = try SupervisorServer(configuration)
        let (signals, signal) = AsyncStream.makeStream(of: Void.self)
        CommandSignals.shared.handle {
            StandardStream.error.write("Ending: no more calls are accepted.\n")
            signal.finish()
        }
        let confinementFailure = Mutex<CommandFailure?>(nil)
        let report = try await server.run(
            until: { for await _ in signals {} },
            whenListening: { [confinement] summary in
                do throws(CommandFailure) {
                    // All is open now but what the store and core dumps need of the directory; and whoever listens at a
                    // socket looks at it again at the end, to take it away.
                    if confinement {
                        try CommandConfinement(changesFiles: true, makesSandboxes: true).apply()
                    }
                } catch {
                    confinementFailure.withLock { $0 = error }
                    return signal.finish()
                }
                if summary.lostCalls > 0 {
                    let calls = summary.lostCalls == 1 ? "1 call was" : "\(summary.lostCalls) calls were"
                    StandardStream.error.write("\(calls) under way when the last server ended, and lost.\n")
                }
                for (name, reason) in summary.refusedModules {
                    StandardStream.error.write("The module \(name.printable) is left out: \(reason.printable)\n")
                }
                var address = configuration.address
                if case .tcp(let host, _) = address, let port = summary.port { address = .tcp(host: host, port: port) }
                StandardStream.error.write("Listening at \(address.text).\n")
            }
        )
        if let failure = confinementFailure.withLock({ $0 }) { throw failure }
        guard !report.killed.isEmpty else { return StandardStream.error.write("Ended; no call was killed.\n") }
        let ids = report.killed.map(\.id.description).joined(separator: ", ")
        StandardStream.error.write("Ended; of \(report.calls) calls these were killed: \(ids).\n")
    }

    private func serverConfiguration() throws(CommandFailure) -> ServerConfiguration {
        let environment = Environment.all
        let isRoot = geteuid() == 0
        let address: ServerConfiguration.Address
        if let tcp, let (host, port) = ClientOptions.hostAndPort(tcp) {
            address = .tcp(host: host, port: port)
        } else if let path = socket.map({ FilePath($0) })
            ?? ServerConfiguration.defaultSocket(environment, isRoot: isRoot)
        {
            address = .socket(path)
        } else {
            throw CommandFailure(.usage, "noSocket", "XDG_RUNTIME_DIR is not set; write --socket PATH.")
        }
        var configuration = ServerConfiguration(address: address)
        if let tokenFile {
            configuration.token = try TokenFile.read(tokenFile)
        } else {
            configuration.token = environment["MICROVM_TOKEN"]
        }
        if tcp != nil, (configuration.token ?? "").utf8.count < 16 {
            throw CommandFailure(
                .usage,
                "noToken",
                "On TCP clients need a token of at least 16 bytes: write --token-file FILE, or set MICROVM_TOKEN."
            )
        }
        if !inMemory {
            guard
                let path = directory.map({ FilePath($0) })
                    ?? ServerConfiguration.defaultDirectory(environment, isRoot: isRoot)
            else { throw CommandFailure(.usage, "noDirectory", "HOME is not set; write --directory or --in-memory.") }
            configuration.directory = path
        }
        configuration.maximumModuleSize = Int(clamping: moduleSize.bytes)
        configuration.niceness = niceness
        configuration.callLimits = CallLimits(
            time: timeLimit?.duration,
            cpuTime: cpuLimit?.duration,
            output: outputLimit?.bytes
        )
        configuration.supervisor.limits = ResourceLimits(
            sandboxes: sandboxes,
            memory: memory?.bytes,
            cpuTimePerMinute: cpuPerMinute?.duration,
            outputPerMinute: outputPerMinute?.bytes
        )
        configuration.supervisor.maximumQueuedCalls = queue
        configuration.supervisor.fairnessLabel = fairness
        configuration.supervisor.drainTime = drain.duration
        return configuration
    }
}
#endif
