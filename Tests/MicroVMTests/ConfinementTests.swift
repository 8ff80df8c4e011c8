#if Confinement
import Dispatch
import Glibc
import SystemPackage
import Testing

@testable import MicroVM

/// Confined processes, each of which is a child of the tests' own.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct ConfinementTests {
    private static func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }

    // MARK: - What is in force

    @Test func `every thread has no capability, can gain none, and is filtered`() async throws {
        await #expect(processExitsWith: .success) {
            let sandbox = try await Guest.arithmetic.sandbox()
            #expect(try await sandbox.call("add", 1, 2) == 3)
            let state = try Confinement.apply { $0.permissions = [.makeSandboxes, .readFiles] }
            #expect(state.isConfined && !state.isNarrowed)
            let later = try await Guest.arithmetic.sandbox()
            for sandbox in [sandbox, later] {
                #expect(try await sandbox.call("add", 1, 2) == 3)
                let state = try await sandbox.run { _ in Confinement.State.current() }
                #expect(state.isConfined && state.isNarrowed)
            }
            let threads = try ConfinedThread.all().filter { !$0.isKernels }
            #expect(threads.count { $0.name == "microvm-vcpu" } == 2)
            for thread in threads {
                for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                    #expect(thread.capabilities[set] == 0, "\(set) of \(thread.name)")
                }
                if getuid() == 0 { #expect(thread.capabilities["CapBnd"] == 0, "\(thread.name)") }
                #expect(thread.hasNoNewPrivileges, "\(thread.name)")
                #expect(thread.seccompMode == 2, "\(thread.name)")
                #expect(thread.filterCount == (thread.name == "microvm-vcpu" ? 2 : 1), "\(thread.name)")
            }
            var limit = rlimit()
            #expect(unsafe getrlimit(__rlimit_resource_t(RLIMIT_CORE.rawValue), &limit) == 0)
            #expect(limit.rlim_cur == 0 && limit.rlim_max == 0)
        }
    }

    @Test func `each step can be left out`() async throws {
        await #expect(processExitsWith: .success) {
            let before = Confinement.State.current()
            let state = try Confinement.apply {
                $0.dropsCapabilities = false
                $0.forbidsNewPrivileges = false
                $0.filtersSystemCalls = false
                $0.limits.coreFileSize = nil
                $0.limits.openFiles = 200
            }
            #expect(state == before)
            var limit = rlimit()
            #expect(unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0)
            #expect(limit.rlim_cur <= 200 && limit.rlim_max <= 200)
        }
        await #expect(processExitsWith: .success) {
            let state = try Confinement.apply { $0.filtersSystemCalls = false }
            #expect(state.capabilities.isEmpty && state.forbidsNewPrivileges && !state.filtersSystemCalls)
            #expect(ForbiddenCall.openat.attempt() >= 0)
        }
        await #expect(processExitsWith: .success) {
            _ = try Guest.arithmetic.module()
            try Confinement.apply { $0.filtersVirtualCPUThreads = false }
            let sandbox = try await Guest.arithmetic.sandbox()
            let state = try await sandbox.run { _ in Confinement.State.current() }
            #expect(!state.isNarrowed)
        }
    }

    @Test func `a process is confined once, and as far as can be`() async throws {
        await #expect(processExitsWith: .success) {
            var error = #expect(throws: SandboxError.self) {
                try Confinement.apply { $0.forbidsNewPrivileges = false }
            }
            #expect(error?.code == .invalidConfiguration)
            error = #expect(throws: SandboxError.self) {
                try Confinement.apply { $0.additionalSystemCalls = ["no_such_call"] }
            }
            #expect(error?.code == .invalidConfiguration && error?.message.contains("no_such_call") == true)
            error = #expect(throws: SandboxError.self) {
                try Confinement.apply { $0.permissions = .childProcesses }
            }
            #expect(error?.code == .invalidConfiguration)
            #expect(!Confinement.State.current().filtersSystemCalls)
            try Confinement.apply()
            error = #expect(throws: SandboxError.self) { try Confinement.apply() }
            #expect(error?.code == .confinementFailed)
        }
    }

    @Test func `the workers of libdispatch may have more to do than they get done`() async throws {
        await #expect(processExitsWith: .success) {
            let count = 30 * Int(sysconf(Int32(_SC_NPROCESSORS_ONLN)))
            try Confinement.apply { $0.permissions = [] }
            // Where work waits, libdispatch looks at its workers once a second.
            let group = DispatchGroup()
            for _ in 0..<count {
                DispatchQueue.global().async(group: group) {
                    let end = MonotonicTime.now.nanoseconds + 100_000_000
                    while MonotonicTime.now.nanoseconds < end {}
                }
            }
            group.wait()
        }
    }

    @Test(arguments: ["/proc/1/stat", "/proc/1/task/1/stat"])
    func `and what they look at is no file`(_ path: String) async throws {
        await #expect(processExitsWith: .success) { [path = path as String] in
            try Confinement.apply { $0.permissions = [] }
            for _ in 0..<3 {
                let file = path.withCString { unsafe open($0, O_RDONLY | O_NONBLOCK) }
                precondition(file >= 0)
                var bytes = [UInt8](repeating: 0, count: 100)
                let count = unsafe read(file, &bytes, bytes.count)
                #expect(String(decoding: bytes.prefix(max(count, 0)), as: UTF8.self) == "0 (worker) R\n")
                close(file)
            }
        }
    }

    // MARK: - What is forbidden

    @Test(arguments: ForbiddenCall.allCases)
    func `what a confined process may not do ends it with a report`(_ call: ForbiddenCall) async throws {
        let result = await #expect(
            processExitsWith: .signal(SIGSYS),
            observing: [\.standardErrorContent]
        ) { [name = call.rawValue as String] in
            try Confinement.apply { $0.permissions = [] }
            ForbiddenCall(rawValue: name)?.attempt()
        }
        let report = Self.text(result?.standardErrorContent ?? [])
        #expect(report.contains("confinement violated: thread"), "\(report)")
        #expect(report.contains("(of the process) attempted the system call \(call.rawValue) ("), "\(report)")
    }

    @Test(arguments: ["/etc/hostname", "/proc/self/stat", "/proc/1/status", "/proc/1/stat/", "/proc/1/task/stat", ""])
    func `no other file can be opened the way libdispatch does`(_ path: String) async throws {
        await #expect(processExitsWith: .signal(SIGSYS)) { [path = path as String] in
            try Confinement.apply { $0.permissions = [] }
            _ = path.withCString { unsafe open($0, O_RDONLY | O_NONBLOCK) }
        }
    }

    @Test func `what a virtual CPU's thread may not do ends the process with a report`() async throws {
        let result = await #expect(processExitsWith: .signal(SIGSYS), observing: [\.standardErrorContent]) {
            try Confinement.apply { $0.permissions = [.makeSandboxes, .readFiles, .network] }
            #expect(ForbiddenCall.openat.attempt() >= 0)
            let function = HostFunction("host_tick") { _ = ForbiddenCall.openat.attempt() }
            let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(function))
            try await sandbox.call("call_tick")
        }
        let report = Self.text(result?.standardErrorContent ?? [])
        #expect(report.contains("(of a virtual CPU) attempted the system call openat ("), "\(report)")
    }

    @Test func `or the guest call alone, where the configuration says so`() async throws {
        await #expect(processExitsWith: .success) {
            try Confinement.apply {
                $0.permissions = [.makeSandboxes, .readFiles, .network]
                $0.violations = .endCall
            }
            let next = Locked<ForbiddenCall?>(nil)
            let function = HostFunction("host_tick") {
                guard let call = next.withLock({ $0 }) else { return }
                precondition(call.attempt() == -Int(EPERM))
            }
            let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(function))
            let snapshot = try await sandbox.snapshot()
            for call in ForbiddenCall.onVirtualCPUThreads {
                next.withLock { $0 = call }
                let error = await #expect(throws: SandboxError.self) { try await sandbox.call("call_tick") }
                #expect(error?.code == .confinementViolated)
                let violation = error?.underlyingError as? ConfinementViolation
                #expect(violation?.name == call.rawValue)
                #expect(error?.interruption?.hostFunction == "host_tick")
                await expectPoisoned(sandbox, "call_tick")
                next.withLock { $0 = nil }
                try await sandbox.restore(to: snapshot)
                try await sandbox.call("call_tick")
            }
        }
    }

    @Test func `a sandbox can be left out`() async throws {
        await #expect(processExitsWith: .success) {
            try Confinement.apply { $0.permissions = [.makeSandboxes, .readFiles] }
            let function = HostFunction("host_tick") { precondition(ForbiddenCall.openat.attempt() >= 0) }
            let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(function)) { $0.confinesThread = false }
            try await sandbox.call("call_tick")
        }
    }

    @Test func `system calls can be permitted by name`() async throws {
        await #expect(processExitsWith: .success) {
            try Confinement.apply { $0.additionalSystemCalls = ["socket"] }
            #expect(ForbiddenCall.socket.attempt() >= 0)
        }
    }

    // MARK: - What is needed

    @Test func `threads give memory back`() async throws {
        await #expect(processExitsWith: .success) {
            try Confinement.apply { $0.permissions = [] }
            // The allocator looks into a file before it first does.
            for _ in 0..<4 {
                await onThread {
                    // Freed right here, the last one first.
                    var pieces = unsafe (0..<600).map { _ in unsafe malloc(60000) }
                    while let piece = unsafe pieces.popLast() { unsafe free(piece) }
                }
            }
        }
    }

    @Test func `calls in both directions, limits, kills and faults work`() async throws {
        await #expect(processExitsWith: .success) {
            // Read while files can be opened.
            for guest in [Guest.hostCalls, .spin, .faults, .tenant] { _ = try guest.module() }
            try Confinement.apply()
            let added = HostFunction("host_add") { (left: Int, right: Int) async throws -> Int in
                try await Task.sleep(for: .milliseconds(1))
                return await Task.detached { left + right }.value
            }
            let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(added))
            #expect(try await sandbox.call("call_add", 2, 3) == 5)
            #expect(try await sandbox.call("random_bytes", 64, returning: [UInt8].self).count == 64)
            #expect(try await sandbox.call("clock_moves_on"))
            try await sandbox.growHeap(by: 0)

            let spinning = try await Guest.spin.sandbox()
            let untouched = try await spinning.snapshot()
            for limits in [(Duration.milliseconds(20), Duration?.none), (.seconds(60), .milliseconds(20))] {
                let error = await #expect(throws: SandboxError.self) {
                    try await spinning.call("spin", timeLimit: limits.0, cpuTimeLimit: limits.1)
                }
                #expect(error?.code == (limits.1 == nil ? .timeLimitExceeded : .cpuTimeLimitExceeded))
                try await spinning.restore(to: untouched)
            }
            let call = try spinning.start("spin", returning: Int.self)
            let killSwitch = call.killSwitch
            try await Task.sleep(for: .milliseconds(10))
            _ = try killSwitch.terminate()
            let killed = await #expect(throws: SandboxError.self) { try await call.result }
            #expect(killed?.code == .killed)
            let fork = try await Sandbox(from: untouched)
            #expect(try await fork.call("answer") == 42)

            let faulty = try await Guest.faults.sandbox()
            let fault = await #expect(throws: SandboxError.self) { try await faulty.call("write_null") }
            #expect(fault?.fault?.kind == .memoryAccess && fault?.fault?.backtrace.frames.isEmpty == false)
            await faulty.close()
        }
    }

    @Test func `stops, states, nested calls and pools work`() async throws {
        await #expect(processExitsWith: .success) {
            // Read while files can be opened.
            for guest in [Guest.hostCalls, .spin, .faults, .tenant] { _ = try guest.module() }
            try Confinement.apply()
            let descend = HostFunction("host_descend") { (context: HostCallContext, depth: Int) -> Int in
                try context.call("descend", depth)
            }
            let sandbox = try await Guest.hostCalls.sandbox(hostFunctions(descend))
            #expect(try await sandbox.call("descend", 8) == 8)

            let spinning = try await Guest.spin.sandbox()
            let call = try spinning.start("spin", returning: Int.self)
            while try await !spinning.pullFullState().isInCall {}
            try spinning.interruptHandle.beginExternalStop()
            _ = try await spinning.pullFullState()
            _ = try await spinning.snapshot()
            try spinning.interruptHandle.endExternalStop()
            _ = try call.killSwitch.terminate()
            _ = try? await call.result

            let pool = try await SandboxPool(Guest.tenant.module(), size: 1...4)
            try await withThrowingTaskGroup(of: Int.self) { group in
                for _ in 0..<32 {
                    group.addTask {
                        try await pool.withSandbox { sandbox in try await sandbox.call("answer") }
                    }
                }
                for try await answer in group { #expect(answer == 42) }
            }
            await pool.shutDown()
        }
    }

    @Test func `pages come from files and functions, on a thread that is confined too`() async throws {
        await #expect(processExitsWith: .success) {
            try Confinement.apply { $0.permissions = [.makeSandboxes, .readFiles] }
            let handler: PageFaultHandler
            do { handler = try PageFaultHandler() } catch { return }
            let sandbox = try await Guest.state.sandbox {
                $0.windowCount = 2
                $0.windowSize = 1 << 20
                $0.pageFaultHandler = handler
            }
            let bytes = PageSource.bytes([UInt8](repeating: 7, count: 64 << 10))
            let function = PageSource.custom(size: 64 << 10) { _, count in
                try? await Task.sleep(for: .milliseconds(1))
                return [UInt8](repeating: 9, count: count)
            }
            for (source, value) in [(bytes, 7), (function, 9)] as [(PageSource, UInt64)] {
                let window = try await sandbox.map(.lazy(source), access: .readOnly)
                let word: UInt64 = try await sandbox.call("peek", window.address + 8192)
                #expect(word & 0xff == value)
            }
            let threads = try ConfinedThread.all()
            #expect(threads.first { $0.name == "microvm-pages" }?.filterCount == 2)
        }
    }

    @Test func `core dumps are written where new files may be made`() async throws {
        let workshop = try Workshop()
        await #expect(processExitsWith: .success) { [path = workshop.folder.string as String] in
            _ = try Guest.faults.module()
            try Confinement.apply { $0.permissions = [.makeSandboxes, .newFiles] }
            let sandbox = try await Guest.faults.sandbox {
                $0.coreDumps = CoreDumpPolicy(directory: FilePath(path))
            }
            let error = await #expect(throws: SandboxError.self) { try await sandbox.call("write_null") }
            #expect(error?.coreDump != nil, "\(String(describing: error?.coreDumpFailure))")
        }
        #expect(workshop.run("test -s *.core"))
    }
}
#endif
