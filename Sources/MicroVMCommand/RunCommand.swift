import ArgumentParser
import Glibc
import MicroVM
import SystemPackage

/// `microvm run`.
struct RunCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run",
        abstract: "Call a function of a module in a micro-VM.",
        discussion: """
            The result goes to standard output, and so does what the guest writes there. Arguments and result are as \
            the function is declared in C; the types on the command line must match it, since nothing in a module says \
            what they are.

            ARGUMENTS
              i8 u8 i16 u16 i32 u32 i64 u64   integers: i32:-2, u64:0xff
              f32 f64                         floating point: f64:1.5
              bool                            bool:true, bool:false
              string                          pointer and length of its UTF-8: string:hello
              file:PATH                       pointer and length of a file's bytes
              stdin:                          the same of standard input

            EXAMPLES
              microvm run arithmetic.so add i64:2 i64:-3
              microvm run arithmetic.so add_f64 f64:1.5 f64:2.25 --returns f64
              microvm run hello.so greet string:Ada --returns void
              microvm run inflate.so gunzip file:words.gz --returns bytes > words
              gzip -c words | microvm run inflate.so gunzip stdin: --returns bytes | head
              microvm run spin.so spin --time-limit 500ms --json
              microvm run spin.so spin --cpu-limit 2s --stats
              microvm run plugin.so handle string:Ada --gdb 0 --wait
              microvm run plugin.so parse file:input --core-dump /tmp

            With --json one object goes to standard output: outcome (returned, fault, abort, timeLimitExceeded, \
            cpuTimeLimitExceeded, interrupted, killed or error), exitStatus, result (bytes in Base64), \
            durationMicroseconds, and fault, interruption or error, and coreDump; with --stats also statistics. What \
            the guest writes to standard output then goes to standard error.

            Ctrl-C ends the guest and says where it was; a second one ends the command at once.

            KEYS, where standard input is a terminal, and no argument is stdin:
              k   kill the guest, and say where it was
              s   stop it: the time limit waits meanwhile
              c   continue
              ?   say where it is: function, host function, call depth, CPU time

            EXIT STATUS
            \(ExitStatus.runTable)
            """
    )

    @Argument(help: "The module, an ELF shared object.", completion: .file(extensions: ["so"]))
    var module: String

    @Argument(help: "The name of a function that the module exports.")
    var function: String

    @Argument(
        help: ArgumentHelp("An argument of the function.", valueName: "type:value"),
        transform: ArgumentSpecification.init(parsing:)
    )
    var arguments: [ArgumentSpecification] = []

    @Option(
        help: ArgumentHelp(
            "What the function returns: \(ResultType.names.joined(separator: ", ")). i64 unless given.",
            valueName: "type"
        ),
        completion: .list(ResultType.names),
        transform: ResultType.init(parsing:)
    )
    var returns = ResultType.value(.i64)

    @Option(
        help: ArgumentHelp(
            "How long the guest may run, the module's initialisers included, such as 500ms or 2s.",
            valueName: "time"
        ),
        transform: TimeSpan.init(parsing:)
    )
    var timeLimit: TimeSpan?

    @Option(
        help: ArgumentHelp(
            "How much CPU time the guest may use, the module's initialisers included, such as 500ms or 2s.",
            valueName: "time"
        ),
        transform: TimeSpan.init(parsing:)
    )
    var cpuLimit: TimeSpan?

    @OptionGroup var memoryOptions: MemoryOptions

    @Option(
        help: ArgumentHelp(
            "Let GDB attach, at a port of 127.0.0.1 (0: any) or a socket at a path.",
            valueName: "port|path"
        ),
        completion: .file(),
        transform: DebuggerOptions.address(parsing:)
    )
    var gdb: DebugServer.Address?

    @Flag(help: "With --gdb: run nothing before GDB has attached, and keep a fault until it has seen it.")
    var wait = false

    @Option(
        help: ArgumentHelp(
            "Write a core dump for gdb into this directory when the guest faults or is ended.",
            valueName: "directory"
        ),
        completion: .directory
    )
    var coreDump: String?

    @Flag(inversion: .prefixedNo, help: ArgumentHelp(CommandConfinement.help))
    var confinement = true

    @Flag(help: "Report on standard error what the call has cost, however it ended; with --json in the object.")
    var stats = false

    @Flag(help: "Report the end of the run as one JSON object on standard output.")
    var json = false

    func validate() throws {
        if wait, gdb == nil { throw ValidationError("--wait is for --gdb: there is nobody to wait for.") }
        guard arguments.count(where: \.isStandardInput) <= 1 else {
            throw ValidationError("stdin: can be given only once: there is only one standard input.")
        }
    }

    func run() async throws {
        let (ending, statistics) = await ending()
        let report = RunReport(
            ending,
            module: module,
            function: function,
            returns: returns,
            statistics: stats ? statistics : nil
        )
        if json {
            try StandardStream.output.writeJSON(report)
        } else if case .returned(let result, _) = ending {
            StandardStream.output.write(result.output)
        } else {
            StandardStream.error.write(report.text)
        }
        if !json, let statistics = report.statistics { StandardStream.error.write(statistics.text) }
        throw ExitCode(report.exitStatus)
    }

    private func ending() async -> (RunEnding, CallStatistics?) {
        // Until the guest runs there is nothing to kill, and reading may take for ever; so may writing, afterwards.
        let leave: @Sendable () -> Void = {
            KeyTerminal.shared.end()
            StandardStream.error.write("Interrupted.\n")
            _exit(ExitStatus.interrupted.rawValue)
        }
        CommandSignals.shared.handle(by: leave)
        defer { CommandSignals.shared.handle(by: leave) }
        let run: GuestRun
        do {
            run = try prepare()
        } catch {
            return (.failed(error), nil)
        }
        let control = RunControl()
        let task = Task { await run.ending(control) }
        control.begin { task.cancel() }
        CommandSignals.shared.handle { task.cancel() }
        if !arguments.contains(where: \.isStandardInput) { RunKeys.begin(control) }
        defer { RunKeys.end() }
        return await task.value
    }

    /// Whether something is made or removed in the file system after the guest has begun.
    private var makesFiles: Bool {
        if case .unixSocket? = gdb { return true }
        return coreDump != nil
    }

    /// Checks all that can be checked before anything is read, and then reads the arguments.
    private func prepare() throws(CommandFailure) -> GuestRun {
        let module = try ModuleFile.load(module)
        try module.checkFunction(function)
        try module.checkImports()
        let limit = memoryOptions.memory.map { min($0.bytes, MemoryPlan.greatest) } ?? MemoryPlan.usualArguments
        let arguments = try ArgumentBytes(reading: arguments, limit: limit)
        return GuestRun(
            module: module,
            function: function,
            arguments: arguments.values,
            returns: returns,
            memory: try MemoryPlan(
                image: module.imageSize,
                arguments: arguments.arenaSize,
                memory: memoryOptions.memory,
                stack: memoryOptions.stack
            ),
            timeLimit: timeLimit?.duration,
            cpuTimeLimit: cpuLimit?.duration,
            debugger: gdb.map { DebuggerOptions(address: $0, waits: wait) },
            coreDumpDirectory: coreDump.map { FilePath($0) },
            confinement: confinement ? CommandConfinement(makesFiles: makesFiles) : nil,
            keepsStandardOutputFree: json
        )
    }
}
