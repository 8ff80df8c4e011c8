import Glibc
import MicroVM
import SystemPackage

/// The library's side of the benchmarks of snapshots, on the same guest module as plain C's.
struct RestoreLoops: Sendable {
    private let module: GuestModule
    private let sandbox: Sandbox
    private let snapshot: Snapshot
    private let base: UInt64

    /// - Parameter memoryLimit: of the sandbox, in bytes.
    init(modulePath: String, memoryLimit: UInt64 = 64 << 20) async throws {
        module = try GuestModule(contentsOf: FilePath(modulePath))
        var configuration = SandboxConfiguration.withoutPolling
        configuration.memoryLimit = memoryLimit
        sandbox = try await Sandbox(module, hostFunctions: [.hostAdd], configuration: configuration)
        base = try await sandbox.call("heap_base")
        snapshot = try await sandbox.snapshot()
    }

    /// The restore alone, after a call that has written pages.
    func restore(pages: UInt64) -> Sampler {
        { count in
            try await sandbox.run { sandbox in
                try Placement.adoptGuest()
                let write = try sandbox.function("write_pages", as: ((UInt64, UInt64) -> Void).self)
                var times: [UInt64] = []
                times.reserveCapacity(count)
                for _ in 0..<count {
                    try await write(base, pages)
                    let begin = now()
                    try await sandbox.restore(to: snapshot)
                    times.append(now() - begin)
                }
                return times
            }
        }
    }

    /// The call and the restore.
    func callWithRestore(pages: UInt64) -> Sampler {
        { count in
            try await sandbox.run { sandbox in
                try Placement.adoptGuest()
                let write = try sandbox.function("write_pages", as: ((UInt64, UInt64) -> Void).self)
                var times: [UInt64] = []
                times.reserveCapacity(count)
                for _ in 0..<count {
                    let begin = now()
                    try await write(base, pages)
                    try await sandbox.restore(to: snapshot)
                    times.append(now() - begin)
                }
                return times
            }
        }
    }

    /// A snapshot after a call that has written pages.
    func takeSnapshot(pages: UInt64) -> Sampler {
        { count in
            try await sandbox.run { _ in try Placement.adoptGuest() }
            var times: [UInt64] = []
            for _ in 0..<count {
                try await sandbox.call("write_pages", base, pages)
                let begin = now()
                let snapshot = try await sandbox.snapshot()
                times.append(now() - begin)
                _ = snapshot
            }
            try await sandbox.restore(to: snapshot)
            return times
        }
    }

    /// A new sandbox from a snapshot, up to its first call returned; its end is not counted.
    func forkFirstCall(count: Int) async throws -> [UInt64] {
        var times: [UInt64] = []
        for _ in 0..<count {
            let begin = now()
            let fork = try await Sandbox(from: snapshot, hostFunctions: [.hostAdd])
            let sum: UInt64 = try await fork.call("add", UInt64(2), UInt64(3))
            times.append(now() - begin)
            guard sum == 5 else { throw Errno.protocolError }
            await fork.close()
        }
        return times
    }

    /// A sandbox that is there already made into another one, up to its first call returned.
    func forkFromWarm(count: Int) async throws -> [UInt64] {
        try await sandbox.call("write_pages", base, 8 as UInt64)
        let other = try await sandbox.snapshot()
        return try await sandbox.run { sandbox in
            try Placement.adoptGuest()
            let add = try sandbox.function("add", as: ((UInt64, UInt64) -> UInt64).self)
            var times: [UInt64] = []
            for index in 0..<count {
                let begin = now()
                try await sandbox.restore(to: index % 2 == 0 ? other : snapshot)
                let sum = try await add(2, 3)
                times.append(now() - begin)
                guard sum == 5 else { throw Errno.protocolError }
            }
            try await sandbox.restore(to: snapshot)
            return times
        }
    }

    /// Reading a snapshot's file that has so many bytes of pages.
    func load(size: UInt64) -> Sampler {
        let file = SnapshotOnDisk(self, size: size)
        return { count in
            let path = try await file.path()
            var times: [UInt64] = []
            for _ in 0..<count {
                let begin = now()
                let snapshot = try Snapshot(contentsOf: path)
                times.append(now() - begin)
                _ = snapshot
            }
            return times
        }
    }

    fileprivate func write(size: UInt64, to path: FilePath) async throws {
        var configuration = SandboxConfiguration.withoutPolling
        configuration.memoryLimit = size + 64 << 20
        let large = try await Sandbox(module, hostFunctions: [.hostAdd], configuration: configuration)
        try await large.call("write_pages", base, size / 4096)
        try await large.snapshot().write(to: path)
        await large.close()
    }

    /// A page that a guest reads and a page source has in memory: a call that reads 256, divided.
    func lazyPage(count: Int) async throws -> [UInt64] {
        let pages: UInt64 = 256
        var configuration = SandboxConfiguration.withoutPolling
        configuration.windowCount = 1
        let lazy = try await Sandbox(module, hostFunctions: [.hostAdd], configuration: configuration)
        let bytes = (0..<Int(pages) * 4096).map { $0 % 4096 == 0 ? 1 as UInt8 : 0 }
        let contents = try WindowContents.lazy(.bytes(bytes))
        try await lazy.run { _ in try Placement.adoptGuest() }
        var times: [UInt64] = []
        for _ in 0..<count {
            let window = try await lazy.map(contents, access: .readOnly)
            let time = try await lazy.run { lazy in
                let begin = now()
                let sum: UInt64 = try await lazy.call("read_pages", window.address, pages)
                guard sum == pages else { throw Errno.protocolError }
                return now() - begin
            }
            times.append(time / pages)
            try await lazy.unmap(window)
        }
        await lazy.close()
        return times
    }

    /// A sandbox lent by a pool, one call in it, and given back, by so many tasks at once: the time between two
    /// answers.
    func poolRequest(tasks: Int) -> Sampler {
        { count in
            let pool = try await SandboxPool(
                module,
                hostFunctions: [.hostAdd],
                configuration: .withoutPolling,
                size: 2 * tasks...2 * tasks
            )
            let times = try await requestTimes(count, tasks: tasks) {
                let sum: UInt64 = try await pool.withSandbox { try await $0.call("add", UInt64(2), UInt64(3)) }
                guard sum == 5 else { throw Errno.protocolError }
            }
            await pool.shutDown()
            return times
        }
    }

    /// So many sandboxes at once, each called; a sample is the time for one.
    func thousandSandboxes(_ memory: MemoryOfMany) -> Sampler {
        { count in
            try raiseDescriptorLimit()
            var sandboxes: [Sandbox] = []
            var times: [UInt64] = []
            let before = MemoryOfMany.Usage()
            for _ in 0..<count {
                let begin = now()
                let sandbox = try await Sandbox(module, hostFunctions: [.hostAdd])
                let sum: UInt64 = try await sandbox.call("add", UInt64(2), UInt64(3))
                times.append(now() - begin)
                guard sum == 5 else { throw Errno.protocolError }
                sandboxes.append(sandbox)
            }
            memory.note(before, MemoryOfMany.Usage(), times)
            for sandbox in sandboxes { await sandbox.close() }
            return times
        }
    }
}

/// A file that is made when it is first needed, and removed with this.
private actor SnapshotOnDisk {
    private let loops: RestoreLoops
    private let size: UInt64
    private var made: FilePath?

    init(_ loops: RestoreLoops, size: UInt64) {
        self.loops = loops
        self.size = size
    }

    func path() async throws -> FilePath {
        if let made { return made }
        let path = FilePath("/tmp/microvm-bench-\(getpid())-\(size)")
        try await loops.write(size: size, to: path)
        made = path
        return path
    }

    deinit {
        if let made { unsafe _ = unlink(made.string) }
    }
}

/// What many sandboxes take, each, as measured last.
final class MemoryOfMany: @unchecked Sendable {
    // Written and read by the one task that runs the benchmarks.
    private(set) var fields: [(name: String, value: Double)] = []
    private var largest = 0

    /// In KiB: of the process, and of the kernel for everybody.
    struct Usage {
        var resident = MemoryOfMany.field("VmRSS:", of: "/proc/self/status")
        var slab = MemoryOfMany.field("Slab:", of: "/proc/meminfo")
        var stacks = MemoryOfMany.field("KernelStack:", of: "/proc/meminfo")
    }

    /// - Parameter times: for each of the many, in the order in which they were made.
    func note(_ before: Usage, _ after: Usage, _ times: [UInt64]) {
        guard times.count >= largest else { return }
        largest = times.count
        let count = Double(times.count)
        fields = [
            ("resident_kib_each", (after.resident - before.resident) / count),
            ("slab_kib_each", (after.slab - before.slab) / count),
            ("stack_kib_each", (after.stacks - before.stacks) / count),
        ]
    }

    private static func field(_ name: String, of path: String) -> Double {
        guard let file = try? FileDescriptor.open(FilePath(path), .readOnly) else { return 0 }
        defer { try? file.close() }
        var bytes = [UInt8](repeating: 0, count: 1 << 16)
        let count = unsafe (try? bytes.withUnsafeMutableBytes { unsafe try file.read(into: $0) }) ?? 0
        let line = String(decoding: bytes[..<count], as: UTF8.self).split(separator: "\n").first { $0.hasPrefix(name) }
        return line?.split(separator: " ").compactMap { Double($0) }.first ?? 0
    }
}
