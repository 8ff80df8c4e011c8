import ArgumentParser
import FoundationEssentials
import Glibc
import GuestTestRunner
import MicroVM
import SystemPackage

/// `microvm test`.
struct TestCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "test",
        abstract: "Run the tests that modules contain.",
        discussion: """
            Every exported function whose name begins with test_ is a test. Each runs in a fresh sandbox, in the state \
            that the module's initialisers have left. It passes when it returns 0; anything else fails it: another \
            number, a fault, an abort, a time limit that has passed, a failed CHECK of microvm_test.h. Results come in \
            the order of the modules and of the tests in them.

            EXAMPLES
              microvm test zlib_tests.so
              microvm test *_tests.so --filter 'zlib_tests/test_round_trip' --time-limit 2s
              microvm test *_tests.so --junit report.xml --fail-fast
              microvm test network_tests.so --repeat 100      find tests that fail now and then
              microvm test zlib_tests.so --list

            What a test writes is shown when it fails. On a terminal, tests that pass are only counted. Ctrl-C ends \
            the tests that are running, and what is known by then is reported; a second one ends the command at once.

            EXIT STATUS
            \(ExitStatus.testTable)
            """
    )

    @Argument(help: "The modules, ELF shared objects.", completion: .file(extensions: ["so"]))
    var modules: [String]

    @Option(
        help: ArgumentHelp(
            "Run only tests whose name, in the form module/test_name, contains a match of this expression.",
            valueName: "regex"
        )
    )
    var filter: String?

    @Option(
        help: ArgumentHelp(
            "How long each test may run, and each module's initialisers, such as 500ms or 2s. 10s unless given.",
            valueName: "time"
        ),
        transform: TimeSpan.init(parsing:)
    )
    var timeLimit: TimeSpan?

    @Option(help: ArgumentHelp("How many tests run at once; one for each processor unless given.", valueName: "number"))
    var parallel: Int?

    @Option(
        name: .customLong("repeat"),
        help: ArgumentHelp(
            "How often each test runs. One that fails not every time is reported as flaky, and has failed.",
            valueName: "number"
        )
    )
    var repetitions = 1

    @Option(
        help: ArgumentHelp("Write a report in the format of JUnit.", valueName: "file"),
        completion: .file(extensions: ["xml"])
    )
    var junit: String?

    @OptionGroup var memoryOptions: MemoryOptions

    @Flag(inversion: .prefixedNo, help: ArgumentHelp(CommandConfinement.help))
    var confinement = true

    @Flag(help: "Begin no further tests when one has failed.")
    var failFast = false

    @Flag(help: "List the tests and run none.")
    var list = false

    private static let mostParallel = 1024

    func validate() throws {
        guard (1...Self.mostParallel).contains(parallel ?? 1) else {
            throw ValidationError("--parallel \(parallel ?? 1) is not between 1 and \(Self.mostParallel).")
        }
        guard repetitions >= 1 else { throw ValidationError("--repeat \(repetitions) is less than 1.") }
        _ = try expression()
    }

    private func expression() throws -> Regex<AnyRegexOutput>? {
        guard let filter else { return nil }
        do {
            return try Regex(filter)
        } catch {
            throw ValidationError("--filter “\(filter.printable)” is not a regular expression: \(error)")
        }
    }

    func run() async throws {
        let jobs: [TestJob]
        var reportFile: FileDescriptor?
        let parallel = parallel ?? ProcessInfo.processInfo.activeProcessorCount
        do throws(CommandFailure) {
            jobs = try plan()
            if !list {
                reportFile = try prepareSurroundings()
                if confinement { try CommandConfinement(makesSandboxes: true).apply() }
            }
        } catch {
            StandardStream.error.write("Error: \(error.message)\n")
            throw error.status.exitCode
        }
        if list {
            StandardStream.output.write(jobs.map { $0.name.printable + "\n" }.joined())
            return
        }
        let session = TestSession(
            jobs: jobs,
            parallel: parallel,
            repetitions: repetitions,
            failFast: failFast
        )
        let task = Task { await session.run() }
        CommandSignals.shared.handle { task.cancel() }
        let report = await task.value
        StandardStream.output.write(report.summary)
        if let junit, let reportFile {
            do {
                // A pipe or a terminal cannot be made shorter, and need not be.
                _ = ftruncate(reportFile.rawValue, 0)
                _ = try reportFile.closeAfter { try reportFile.writeAll(Array(JUnitReport(report).text.utf8)) }
            } catch {
                StandardStream.error.write("Error: \(junit.printable) cannot be written: \(error)\n")
                throw ExitStatus.outputFailed.exitCode
            }
        }
        throw report.exitStatus.exitCode
    }

    /// All tests that are to run, of modules that can all be loaded.
    private func plan() throws(CommandFailure) -> [TestJob] {
        var paths: [String: String] = [:]
        var jobs: [TestJob] = []
        var found = false
        for path in modules {
            let module = try ModuleFile.load(path)
            try module.checkImportsForTests()
            let tests = GuestTestModule(
                module,
                configuration: try configuration(module),
                idleLimit: parallel ?? ProcessInfo.processInfo.activeProcessorCount
            )
            guard !tests.tests.isEmpty else {
                throw CommandFailure(
                    .noTests,
                    "noTests",
                    "\(module.name.printable) exports no function whose name begins with \(GuestTestModule.prefix)."
                )
            }
            found = true
            // Two files of the same name are told apart by their paths.
            let name = paths.updateValue(path, forKey: tests.name) == nil ? tests.name : path
            let wanted = tests.tests.filter { isWanted("\(name)/\($0)") }
            jobs += wanted.map { TestJob(module: tests, moduleName: name, test: $0, isLast: $0 == wanted.last) }
        }
        guard !jobs.isEmpty || !found else {
            throw CommandFailure(.noTests, "noTests", "No test matches --filter \((filter ?? "").printable).")
        }
        return jobs
    }

    private func isWanted(_ name: String) -> Bool {
        // It has been tried before.
        guard let expression = try? expression() else { return true }
        return name.contains(expression)
    }

    /// Finds out before the first test what would fail all of them, or the report after the last one, whose file is
    /// opened here: what it held before stays there until then.
    private func prepareSurroundings() throws(CommandFailure) -> FileDescriptor? {
        var reportFile: FileDescriptor?
        if let junit {
            do {
                reportFile = try .open(
                    FilePath(junit),
                    .writeOnly,
                    options: [.create, .closeOnExec],
                    permissions: [.ownerReadWrite, .groupRead, .otherRead]
                )
            } catch {
                throw CommandFailure(
                    .usage,
                    "invalidArgument",
                    "--junit \(junit.printable) cannot be written: \(error)."
                )
            }
        }
        do throws(SandboxError) {
            _ = try HostSupport()
        } catch {
            throw CommandFailure(error)
        }
        return reportFile
    }

    private func configuration(_ module: GuestModule) throws(CommandFailure) -> SandboxConfiguration {
        let plan = try MemoryPlan(
            image: module.imageSize,
            arguments: 0,
            memory: memoryOptions.memory,
            stack: memoryOptions.stack
        )
        var configuration = SandboxConfiguration()
        configuration.memoryLimit = plan.memory
        configuration.stackSize = plan.stack
        configuration.argumentArenaSize = plan.arena
        configuration.timeLimit = timeLimit?.duration ?? .seconds(10)
        return configuration
    }
}

extension GuestModule {
    /// Checks that the library and the test runner provide all that the module needs.
    fileprivate func checkImportsForTests() throws(CommandFailure) {
        if imports.contains(where: { $0.needsHostFunction && !GuestTestModule.provides($0.name) }) {
            try checkImports()
        }
    }
}
