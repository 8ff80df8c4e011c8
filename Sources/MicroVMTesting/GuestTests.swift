import Glibc
import GuestTestRunner
public import MicroVM
import SystemPackage

/// The tests that a guest module contains, as arguments of a Swift test.
///
/// ```swift
/// @Test(.requiresKVM, arguments: GuestTests("zlib_tests.so"))
/// func zlib(_ test: GuestTest) async throws { try await test.run() }
/// ```
///
/// Every exported function whose name begins with `test_` is a test, in the order in which they lie in the module. Each
/// runs in a fresh sandbox, in the state that the module's initialisers, which run once, have left. Tests may run at
/// the same time.
///
/// Where the module cannot be loaded or has no tests, there is one element, and it fails with the reason.
public struct GuestTests: Sendable, RandomAccessCollection {
    private let tests: [GuestTest]

    /// Reads a module from a file.
    ///
    /// - Parameters:
    ///   - path: an ELF shared object; a relative path begins in the process's working directory, which is the
    ///     package's in `swift test`.
    ///   - hostFunctions: what the module's imports stand for. They are shared by all sandboxes, and what they keep
    ///     goes from one test to the next.
    ///   - timeLimit: how long each test may run by the clock, and the initialisers.
    ///   - configuration: memory and other limits. Its output is not used: what a test writes is shown when it fails.
    public init(
        _ path: String,
        hostFunctions: [HostFunction] = [],
        timeLimit: Duration = .seconds(10),
        configuration: SandboxConfiguration = SandboxConfiguration()
    ) {
        do throws(SandboxError) {
            let module = try GuestModule(contentsOf: FilePath(path))
            tests = Self.tests(of: module, hostFunctions, timeLimit, configuration)
        } catch {
            tests = [GuestTest(of: path, problem: error.description)]
        }
    }

    /// Takes a module that has been loaded already.
    ///
    /// - Parameters: as those of ``init(_:hostFunctions:timeLimit:configuration:)-(String,_,_,_)``.
    public init(
        _ module: GuestModule,
        hostFunctions: [HostFunction] = [],
        timeLimit: Duration = .seconds(10),
        configuration: SandboxConfiguration = SandboxConfiguration()
    ) {
        tests = Self.tests(of: module, hostFunctions, timeLimit, configuration)
    }

    private static func tests(
        of module: GuestModule,
        _ hostFunctions: [HostFunction],
        _ timeLimit: Duration,
        _ configuration: SandboxConfiguration
    ) -> [GuestTest] {
        var configuration = configuration
        configuration.timeLimit = timeLimit
        configuration.initializerTimeLimit = timeLimit
        let module = GuestTestModule(
            module,
            hostFunctions: hostFunctions,
            configuration: configuration,
            idleLimit: Swift.max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))))
        )
        guard module.tests.isEmpty else { return module.tests.map { GuestTest($0, in: module) } }
        let problem = "The module exports no function whose name begins with \(GuestTestModule.prefix)."
        return [GuestTest(of: module.name, problem: problem)]
    }

    /// The position of the first test.
    public var startIndex: Int { tests.startIndex }
    /// The position behind the last one.
    public var endIndex: Int { tests.endIndex }
    /// One test.
    public subscript(position: Int) -> GuestTest { tests[position] }
}
