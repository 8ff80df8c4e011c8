import Glibc
import SystemPackage
import Testing

@testable import MicroVM

/// The guests of guest-images. Each is parsed once in a process.
enum Guest: String, CaseIterable, Sendable {
    case arithmetic, backtrace, debug, echo, faults, hello, hideout, inflate, initializers, interruption, lies
    case logging, memory, nested, outcomes, registers, spin, state, tenant
    case backtraceTables = "backtrace_tables"
    case faultInInitializer = "fault_in_initializer"
    case hostCalls = "host_calls"
    case hostileTests = "hostile_tests"
    case lz4Tests = "lz4_tests"
    case manyTests = "many_tests"
    case missingImport = "missing_import"
    case setupFailsTests = "setup_fails_tests"
    case setupHangsTests = "setup_hangs_tests"
    case setupSkipsTests = "setup_skips_tests"
    case spinInInitializer = "spin_in_initializer"
    case threadLocal = "thread_local"
    case zlibTests = "zlib_tests"
    case swiftArithmetic = "swift_arithmetic"
    case swiftBacktrace = "swift_backtrace"
    case swiftDebug = "swift_debug"
    case swiftHello = "swift_hello"
    case swiftHostCalls = "swift_host_calls"
    case swiftStrings = "swift_strings"
    case swiftTests = "swift_tests"
    case swiftTraps = "swift_traps"

    private static let modules = Locked<[Guest: GuestModule]>([:])

    var path: FilePath { FilePath("\(GuestImages.directory)/\(rawValue).so") }

    func module() throws -> GuestModule {
        if let module = Self.modules.withLock({ $0[self] }) { return module }
        let module = try GuestModule(contentsOf: path)
        Self.modules.withLock { $0[self] = module }
        return module
    }

    func sandbox(
        _ hostFunctions: [HostFunction] = [],
        configure: (inout SandboxConfiguration) -> Void = { _ in }
    ) async throws -> Sandbox {
        var configuration = SandboxConfiguration()
        configure(&configuration)
        return try await Sandbox(module(), hostFunctions: hostFunctions, configuration: configuration)
    }
}

/// Values that several threads add to one list.
final class Recorder<Element: Sendable>: Sendable {
    private let elements = Locked<[Element]>([])

    var all: [Element] { elements.withLock { $0 } }
    var count: Int { elements.withLock { $0.count } }

    func append(_ element: Element) { elements.withLock { $0.append(element) } }
}

/// Waits until something has happened on another thread. How long anything takes decides no test; but what has not
/// happened long after the test's own time limit does not keep all other tests from running.
func waitUntil(_ condition: () -> Bool, sourceLocation: SourceLocation = #_sourceLocation) async {
    let end = ContinuousClock.now + .seconds(Surroundings.isEmulated ? 1200 : 400)
    while !condition() {
        guard ContinuousClock.now < end else {
            Issue.record("It has not happened.", sourceLocation: sourceLocation)
            return
        }
        // Where the task has been cancelled this returns at once.
        try? await Task.sleep(for: .milliseconds(1))
        if Task.isCancelled { usleep(1000) }
    }
}

/// Expects the sandbox to refuse all further calls, because an earlier one ended half way.
func expectPoisoned(
    _ sandbox: Sandbox,
    _ function: String = "answer",
    sourceLocation: SourceLocation = #_sourceLocation
) async {
    let error = await #expect(throws: SandboxError.self, sourceLocation: sourceLocation) {
        try await sandbox.call(function)
    }
    #expect(error?.code == .poisoned, sourceLocation: sourceLocation)
}

/// Code on another thread than those of the cooperative pool, so that it may block.
///
/// - Parameter stackSize: in bytes; nil for as much as threads have.
func onThread<Result: Sendable>(stackSize: Int? = nil, _ body: @escaping @Sendable () -> Result) async -> Result {
    await handedOver { handOver in startThread(stackSize: stackSize) { handOver(body()) } }
}

/// Code on a thread of its own, which nobody waits for.
func startThread(stackSize: Int? = nil, _ body: @escaping @Sendable () -> Void) {
    let start = unsafe Unmanaged.passRetained(ThreadStart(body))
    // The attributes are this function's own, and the thread takes none of them with it; it takes over the reference
    // that was retained for it.
    unsafe withUnsafeTemporaryAllocation(of: pthread_attr_t.self, capacity: 1) { attributes in
        let attributes = attributes.baseAddress!
        unsafe pthread_attr_init(attributes)
        defer { unsafe pthread_attr_destroy(attributes) }
        if let stackSize {
            precondition(unsafe pthread_attr_setstacksize(attributes, stackSize) == 0, "not a stack's size")
        }
        var thread = pthread_t()
        let code = unsafe pthread_create(&thread, attributes, threadMain, start.toOpaque())
        precondition(code == 0, "no thread to be had")
        pthread_detach(thread)
    }
}

private final class ThreadStart: Sendable {
    let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }
}

private func threadMain(_ argument: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    // What `onThread` retained.
    if let argument = unsafe argument {
        unsafe Unmanaged<ThreadStart>.fromOpaque(argument).takeRetainedValue().body()
    }
    return nil
}
