import Glibc
import SystemPackage
import Testing

@testable import MicroVM

/// Where core dumps go, how large they get and what becomes of them.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct CoreDumpFileTests {
    /// A directory of its own, which goes with this value.
    private let workshop: Workshop

    init() throws { workshop = try Workshop() }

    private func status(_ path: FilePath) throws -> stat {
        var status = stat()
        try #require(unsafe lstat(path.string, &status) == 0)
        return status
    }

    @Test func `a dump is its owner's alone, and takes what the guest has written`() async throws {
        let policy = workshop.coreDumpPolicy()
        let sandbox = try await BacktraceTests.sandbox(.backtrace) {
            $0.coreDumps = policy
            $0.memoryLimit = 8 << 30
            $0.windowCount = 2
            $0.windowSize = 64 << 30
        }
        let fetched = Counter()
        let source = PageSource.custom(size: 32 << 30) { _, count in
            fetched.next()
            return [UInt8](repeating: 0x5a, count: count)
        }
        let lazy = try await sandbox.map(.lazy(source), access: .copyOnWrite)
        let shared = try SharedMemory(count: 1 << 30)
        let window = try await sandbox.map(.shared(shared), access: .copyOnWrite)
        let heap: UInt64 = try await sandbox.call("heap_address")
        try await sandbox.call("touch", heap + (1 << 30), UInt64(1 << 20))
        try await sandbox.call("touch", lazy.address + (20 << 30), UInt64(1 << 20))
        try await sandbox.call("touch", window.address + (1 << 29), UInt64(1 << 20))
        #expect(fetched.value == 256)
        let path = try #require(try await BacktraceTests.error(sandbox, "outer", [0, 0]).coreDump)
        // Nothing was fetched for it.
        #expect(fetched.value == 256)
        let status = try status(path)
        #expect(status.st_mode & 0o777 == 0o600)
        #expect(status.st_size > 40 << 30)
        let stored = Int(status.st_blocks) * 512
        // Three stretches of 1 MiB, and little else: whole blocks of the file system.
        #expect(stored >= 3 << 20 && stored < 6 << 20)
        guard GDB.isInstalled else { return }
        let text = try GDB.run(
            Guest.backtrace.path,
            path,
            "x/1xb \(lazy.address + (20 << 30))",
            "x/1xg \(lazy.address + (20 << 30) + 8)",
            "x/1xb \(window.address + (1 << 29) + 4096)",
            "x/1xb \(lazy.address)"
        )
        #expect(text.split(separator: "\t0x01\n", omittingEmptySubsequences: false).count == 3)
        #expect(text.contains("\t0x00\n") && text.contains("\t0x5a5a5a5a5a5a5a5a\n"))
    }

    @Test(.requiresGDB, arguments: [65536, 100_000, 300_000])
    func `a dump that is cut off at its limit still has registers and stack`(limit: Int) async throws {
        let sandbox = try await workshop.dumpingSandbox { $0.maximumSize = UInt64(limit) }
        let heap: UInt64 = try await sandbox.call("heap_address")
        try await sandbox.call("touch", heap, UInt64(4 << 20))
        let error = try await BacktraceTests.error(sandbox, "outer", [0, 0])
        let path = try #require(error.coreDump)
        #expect(Int(try status(path).st_blocks) * 512 <= limit)
        let text = try GDB.run(Guest.backtrace.path, path, "backtrace", "x/1xb \(heap + (4 << 20) - 4096)")
        for name in ["innermost", "middle", "outer"] { #expect(text.contains(" in \(name) ()")) }
        #expect(text.contains("Cannot access memory at address"))
    }

    @Test func `a limit below the registers is an error, and leaves no file`() async throws {
        let sandbox = try await BacktraceTests.sandbox(.backtrace)
        let path = workshop.folder.appending("small.core")
        let error = await #expect(throws: SandboxError.self) {
            try await sandbox.coreDump(to: path, maximumSize: 1000)
        }
        #expect(error?.code == .systemCallFailed && error?.underlyingError as? Errno == .fileTooLarge)
        #expect(try workshop.coreDumps.isEmpty)
        #expect(try await sandbox.call("answer") == 42)
    }

    @Test func `what cannot be written is an error of its own, and the call's stays what it was`() async throws {
        let full = FilePath("/dev/full/nothing")
        let missing = workshop.folder.appending("missing")
        for directory in [full, missing] {
            let sandbox = try await workshop.dumpingSandbox { $0.directory = directory }
            let error = try await BacktraceTests.error(sandbox, "outer", [0, 0])
            #expect(error.code == .guestFault && error.fault?.kind == .memoryAccess && error.coreDump == nil)
            #expect((error.coreDumpFailure as? SandboxError)?.code == .systemCallFailed)
        }
        let sandbox = try await BacktraceTests.sandbox(.backtrace)
        try workshop.write([1, 2, 3], "there.core")
        let error = await #expect(throws: SandboxError.self) {
            try await sandbox.coreDump(to: workshop.folder.appending("there.core"))
        }
        #expect(error?.underlyingError as? Errno == .fileExists)
        #expect(try workshop.read("there.core") == [1, 2, 3])
    }

    @Test func `a limit of the process on files makes a dump shorter, and does not end the process`() async throws {
        let path: String = workshop.folder.string
        await #expect(processExitsWith: .success) { [path = path as String] in
            let sandbox = try await BacktraceTests.sandbox(.backtrace) {
                $0.coreDumps = CoreDumpPolicy(directory: FilePath(path))
            }
            let heap: UInt64 = try await sandbox.call("heap_address")
            try await sandbox.call("touch", heap, UInt64(4 << 20))
            var limit = rlimit(rlim_cur: 200_000, rlim_max: 200_000)
            precondition(unsafe setrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit) == 0)
            let error = try await BacktraceTests.error(sandbox, "outer", [0, 0])
            precondition(error.fault?.kind == .memoryAccess && error.coreDump != nil)
            limit = rlimit(rlim_cur: 1000, rlim_max: 1000)
            precondition(unsafe setrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit) == 0)
            let again = await #expect(throws: SandboxError.self) {
                try await sandbox.coreDump(to: FilePath(path + "/again.core"))
            }
            precondition(again?.underlyingError as? Errno == .fileTooLarge)
        }
        let files = try workshop.coreDumps
        try #require(files.count == 1)
        #expect(try status(workshop.folder.appending(files[0])).st_size <= 200_000)
    }

    @Test func `dumps at the same moment have names of their own`() async throws {
        let paths = try await withThrowingTaskGroup(of: FilePath?.self) { group in
            for _ in 0..<8 {
                let sandbox = try await workshop.dumpingSandbox { $0.maximumCount = 24 }
                group.addTask { try await BacktraceTests.error(sandbox, "outer", [0, 0]).coreDump }
            }
            return try await group.reduce(into: []) { $0.append($1) }
        }
        #expect(Set(paths.compactMap(\.self)).count == 8)
        #expect(try workshop.coreDumps.count == 8)
        for path in paths.compactMap(\.self) {
            #expect(path.lastComponent?.string.hasPrefix("microvm-backtrace.so-\(getpid())-") == true)
        }
    }

    @Test func `a full directory gets no more`() async throws {
        for round in 0..<5 {
            let error = try await BacktraceTests.error(
                workshop.dumpingSandbox { $0.maximumCount = 3 },
                "outer",
                [0, 0]
            )
            #expect(error.code == .guestFault && (error.coreDump != nil) == (round < 3))
            if round >= 3 {
                let failure = error.coreDumpFailure as? SandboxError
                #expect(failure?.underlyingError as? Errno == .noSpace)
            }
        }
        #expect(try workshop.coreDumps.count == 3)
        // What is no core dump of this library's does not count, and room that is made does.
        try workshop.write([], "other.txt")
        #expect(workshop.run("rm microvm-*-*.core"))
        let one = try await workshop.dumpingSandbox { $0.maximumCount = 1 }
        #expect(try await BacktraceTests.error(one, "outer", [0, 0]).coreDump != nil)
    }

    @Test func `limits that leave no room are refused`() async throws {
        for change in [{ $0.maximumCount = 0 }, { $0.maximumSize = 65535 }] as [(inout CoreDumpPolicy) -> Void] {
            let error = await #expect(throws: SandboxError.self) {
                _ = try await workshop.dumpingSandbox(.backtrace, change)
            }
            #expect(error?.code == .invalidConfiguration)
        }
    }

    @Test func `a fault in an initialiser and one in a nested call are dumped once`() async throws {
        let policy = workshop.coreDumpPolicy()
        let error = await #expect(throws: SandboxError.self) {
            _ = try await Guest.faultInInitializer.sandbox { $0.coreDumps = policy }
        }
        #expect(error?.coreDump != nil)
        #expect(try workshop.coreDumps.count == 1)
        let nested = try await BacktraceTests.error(workshop.dumpingSandbox(), "outer", [3, 0])
        #expect(nested.coreDump != nil && nested.fault?.backtrace.names.count == 12)
        #expect(try workshop.coreDumps.count == 2)
    }

    @Test func `pools write dumps too, and lend on`() async throws {
        var configuration = SandboxConfiguration()
        configuration.coreDumps = workshop.coreDumpPolicy()
        let pool = try await SandboxPool(
            Guest.backtrace.module(),
            hostFunctions: [BacktraceTests.enter],
            configuration: configuration,
            size: 1...1
        )
        for _ in 0..<3 {
            let error = await #expect(throws: SandboxError.self) {
                try await pool.withSandbox { sandbox in
                    #expect(try await sandbox.call("answer") == 42)
                    let _: Int64 = try await sandbox.call("outer", Int64(0), Int64(0))
                }
            }
            #expect(error?.coreDump != nil)
        }
        #expect(try workshop.coreDumps.count == 3)
        await pool.shutDown()
    }
}
