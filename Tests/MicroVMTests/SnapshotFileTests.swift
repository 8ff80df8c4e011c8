import CShims
import Glibc
import SystemPackage
import Testing

@testable import MicroVM

/// Snapshots in files, whole and damaged.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct SnapshotFileTests {
    private static func withPath<Result>(_ body: (FilePath) async throws -> Result) async throws -> Result {
        let path = FilePath("/tmp/microvm-snapshot-\(getpid())-\(UInt32.random(in: 0...(.max)))")
        defer { unsafe _ = unlink(path.string) }
        return try await body(path)
    }

    private static func bytes(_ path: FilePath) throws -> [UInt8] {
        let file = try FileDescriptor.open(path, .readOnly)
        defer { try? file.close() }
        let size = Int(try file.seek(offset: 0, from: .end))
        return unsafe try [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
            count = unsafe try file.read(fromAbsoluteOffset: 0, into: UnsafeMutableRawBufferPointer(buffer))
        }
    }

    private static func write(_ bytes: [UInt8], _ path: FilePath) throws {
        let options: FileDescriptor.OpenOptions = [.create, .truncate]
        let file = try FileDescriptor.open(path, .writeOnly, options: options, permissions: .ownerReadWrite)
        defer { try? file.close() }
        try file.writeAll(bytes)
    }

    private static func sandbox() async throws -> Sandbox {
        let sandbox = try await Guest.state.sandbox { $0.initialMemorySize = 16 << 20 }
        try await sandbox.call("set_state", 8 as UInt64)
        try await sandbox.call("write_pages", 10 as UInt64, 100 as UInt64, 2 as UInt64, 500 as UInt64)
        try await sandbox.growHeap(by: 8192)
        return sandbox
    }

    @Test(arguments: [false, true])
    func `what was written is what is read`(_ verifies: Bool) async throws {
        let sandbox = try await Self.sandbox()
        let snapshot = try await sandbox.snapshot()
        let sum: UInt64 = try await sandbox.call("read_pages", 0 as UInt64, 300 as UInt64, 1 as UInt64)
        let size: UInt64 = try await sandbox.call("heap_size")
        try await Self.withPath { path in
            try snapshot.write(to: path)
            let loaded = try Snapshot(contentsOf: path, verifyingPages: verifies)
            #expect(!loaded.isInCall && loaded.module.bytes == sandbox.module.bytes)
            let fork = try await Sandbox(from: loaded)
            for sandbox in [fork, sandbox] {
                for _ in 0..<3 {
                    try await sandbox.restore(to: loaded)
                    #expect(try await sandbox.call("get_state") == 8_008_008_008_008 as UInt64)
                    #expect(
                        try await sandbox.call("read_pages", 0 as UInt64, 300 as UInt64, 1 as UInt64) == sum
                    )
                    #expect(try await sandbox.call("heap_size") == size)
                    try await sandbox.call("set_state", 9 as UInt64)
                    try await sandbox.call("write_pages", 0 as UInt64, 300 as UInt64, 1 as UInt64, 1 as UInt64)
                }
            }
            // A snapshot of a sandbox that was made from a file is one like any other, and can be written again.
            try await fork.restore(to: loaded)
            try await fork.call("set_state", 10 as UInt64)
            try await fork.snapshot().write(to: path)
            let again = try await Sandbox(from: Snapshot(contentsOf: path, verifyingPages: true))
            #expect(try await again.call("get_state") == 10_010_010_010_010 as UInt64)
            // The heap's first word belongs to both, and is greater by two now.
            #expect(try await again.call("read_pages", 0 as UInt64, 300 as UInt64, 1 as UInt64) == sum + 2)
        }
    }

    @Test func `a call is written in its middle, and goes on wherever it is read`() async throws {
        let sandbox = try await Guest.state.sandbox()
        let word = try await SharedWord(of: sandbox)
        let call = try sandbox.start("hold_and_sum", word.address, 1000 as UInt64, returning: UInt64.self)
        await waitUntil { word.value == 1 }
        let snapshot = try await sandbox.snapshot()
        word.value = 2
        #expect(try await call.result == 17_500)
        try await Self.withPath { path in
            try snapshot.write(to: path)
            let loaded = try Snapshot(contentsOf: path)
            #expect(loaded.isInCall)
            for _ in 0..<3 {
                let fork = try await Sandbox(from: loaded)
                try await SharedWord(of: fork).value = 2
                #expect(try await fork.resume(returning: UInt64.self) == 17_500)
            }
        }
    }

    @Test func `a damaged file is an error, whichever byte it is`() async throws {
        let snapshot = try await Self.sandbox().snapshot()
        try await Self.withPath { path in
            try snapshot.write(to: path)
            let good = try Self.bytes(path)
            func code() -> SandboxError.Code? {
                do throws(SandboxError) {
                    _ = try Snapshot(contentsOf: path, verifyingPages: true)
                    return nil
                } catch { return error.code }
            }
            #expect(code() == nil)
            // All of the header, and a sample of the rest.
            for position in Array(0..<64) + (0..<200).map({ 64 + (good.count - 64) / 200 * $0 }) {
                var bad = good
                bad[position] ^= 1 << UInt8(position % 8)
                try Self.write(bad, path)
                // Between module and pages there is room that nobody looks at.
                let isPadding = good[position] == 0 && code() == nil
                #expect(isPadding || code() == .invalidSnapshot, "byte \(position)")
            }
            for count in [0, 1, 63, 64, 65, 1000, good.count / 2, good.count - 4096, good.count - 1] {
                try Self.write(Array(good[..<count]), path)
                #expect(code() == .invalidSnapshot, "\(count) bytes")
            }
            try Self.write(good + [0], path)
            #expect(code() == .invalidSnapshot)
            try Self.write(try Self.bytes(Guest.state.path), path)
            #expect(code() == .invalidSnapshot)
        }
        #expect(throws: SandboxError.self) { try Snapshot(contentsOf: "/nowhere") }
        #expect(throws: SandboxError.self) { try Snapshot(contentsOf: "/tmp") }
        #expect(throws: SandboxError.self) { try Snapshot(contentsOf: "/dev/zero") }
    }

    @Test func `a file that lies with right checksums does no harm`() async throws {
        let snapshot = try await Self.sandbox().snapshot()
        try await Self.withPath { path in
            try snapshot.write(to: path)
            let good = try Self.bytes(path)
            var generator = SystemRandomNumberGenerator()
            var accepted = 0
            for _ in 0..<300 {
                // Somewhere in the description, and the checksums to match.
                var bad = good
                let size = Int(bad[16..<24].reversed().reduce(0 as UInt64) { $0 << 8 | UInt64($1) })
                let position = 64 + Int.random(in: 0..<size, using: &generator)
                bad[position] = UInt8.random(in: 0...255, using: &generator)
                let description = Self.checksum(bad[64..<64 + size])
                bad.replaceSubrange(12..<16, with: description)
                bad.replaceSubrange(60..<64, with: Self.checksum(bad[..<60]))
                try Self.write(bad, path)
                guard let loaded = try? Snapshot(contentsOf: path) else { continue }
                guard let sandbox = try? await Sandbox(from: loaded) else { continue }
                accepted += 1
                _ = try? await sandbox.call("get_state", returning: UInt64.self)
            }
            #expect(accepted > 0)
        }
    }

    private static func checksum(_ bytes: ArraySlice<UInt8>) -> [UInt8] {
        let value = unsafe bytes.withUnsafeBytes { unsafe shim_checksum(0, $0.baseAddress, $0.count) }
        return (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }

    @Test func `what a file cannot bring back is refused`() async throws {
        let sandbox = try await Guest.state.sandbox { $0.windowCount = 1 }
        _ = try await sandbox.map(.shared(SharedMemory(count: 10)), access: .readOnly)
        let snapshot = try await sandbox.snapshot()
        let error = #expect(throws: SandboxError.self) { try snapshot.write(to: "/tmp/never") }
        #expect(error?.code == .invalidArgument)
        let plain = try await Guest.state.sandbox().snapshot()
        let nowhere = #expect(throws: SandboxError.self) { try plain.write(to: "/nowhere/at/all") }
        #expect(nowhere?.code == .systemCallFailed)
        // A disk without room leaves no file behind.
        let full = #expect(throws: SandboxError.self) { try plain.write(to: "/dev/full/x") }
        #expect(full?.code == .systemCallFailed)
    }

    @Test func `a file that is truncated while it is used ends calls and restores with errors`() async throws {
        // In one stretch, so that it is mapped and not rearranged.
        let original = try await Guest.state.sandbox()
        try await original.call("write_pages", 10 as UInt64, 100 as UInt64, 1 as UInt64, 500 as UInt64)
        try await original.call("set_state", 8 as UInt64)
        let snapshot = try await original.snapshot()
        try await Self.withPath { path in
            try snapshot.write(to: path)
            let loaded = try Snapshot(contentsOf: path)
            let sandbox = try await Sandbox(from: loaded)
            try await sandbox.call("write_pages", 10 as UInt64, 100 as UInt64, 2 as UInt64, 1 as UInt64)
            unsafe _ = truncate(path.string, 4096)
            let error = await #expect(throws: SandboxError.self) { try await sandbox.restore(to: loaded) }
            #expect(error?.code == .invalidSnapshot)
            await expectPoisoned(sandbox)
            await #expect(throws: SandboxError.self) { try await Sandbox(from: loaded) }
            // The sandbox has lost its ground; the other snapshot has all of its pages.
            await #expect(throws: SandboxError.self) { try await sandbox.restore(to: snapshot) }
            let other = try await Sandbox(from: snapshot)
            #expect(try await other.call("get_state") == 8_008_008_008_008 as UInt64)
        }
    }
}
