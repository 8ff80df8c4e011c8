import Glibc
import SystemPackage
import Testing

@testable import MicroVM

/// Files and memory of the host in a guest's windows, and what lies beyond what there is.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct WindowTests {
    private static func sandbox(windows: Int = 2) async throws -> Sandbox {
        try await Guest.state.sandbox {
            $0.windowCount = windows
            $0.windowSize = 1 << 20
        }
    }

    /// A file of 64-bit words that count up from `first`.
    private static func file(pages: Int, first: UInt64 = 1000) throws -> FilePath {
        var template = Array("/tmp/microvm-window-XXXXXX".utf8CString)
        let descriptor = unsafe template.withUnsafeMutableBufferPointer { unsafe mkstemp($0.baseAddress!) }
        let words = (0..<UInt64(pages * 512)).map { first + $0 }
        let written = unsafe words.withUnsafeBytes { unsafe write(descriptor, $0.baseAddress, $0.count) }
        try #require(written == pages * 4096)
        close(descriptor)
        return FilePath(String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self))
    }

    private static func fault(
        sourceLocation: SourceLocation = #_sourceLocation,
        _ body: () async throws -> Void
    ) async throws -> GuestFault {
        let error = await #expect(throws: SandboxError.self, sourceLocation: sourceLocation) { try await body() }
        return try #require(error?.fault, sourceLocation: sourceLocation)
    }

    @Test func `an access beyond the heap's end is a fault that says where`() async throws {
        let sandbox = try await Guest.state.sandbox { $0.initialMemorySize = 8 << 20 }
        let snapshot = try await sandbox.snapshot()
        let end = try await sandbox.run { try $0.memory.heapEnd }
        for distance in [0, 8, 4096 * 7 + 16, 1 << 20] as [UInt64] {
            let read = try await Self.fault { let _: UInt64 = try await sandbox.call("peek", end + distance) }
            #expect(read.kind == .outOfBounds && read.address == end + distance && read.access == .read)
            #expect(read.symbol?.name == "peek")
            await expectPoisoned(sandbox)
            try await sandbox.restore(to: snapshot)
            let write = try await Self.fault { try await sandbox.call("poke", end + distance, 1 as UInt64) }
            #expect(write.kind == .outOfBounds && write.address == end + distance && write.access == .write)
            try await sandbox.restore(to: snapshot)
            #expect(try await sandbox.call("answer") == 42)
        }
        // Below it all is well, and the host is held to the same limit.
        try await sandbox.call("poke", end - 8, 5 as UInt64)
        #expect(try await sandbox.call("peek", end - 8) as UInt64 == 5)
        try await sandbox.run { sandbox in
            let memory = try sandbox.memory
            #expect(throws: SandboxError.self) { try memory.load(GuestBuffer(address: end - 8, count: 16)) }
            #expect(try memory.load(GuestBuffer(address: end - 8, count: 8)).count == 8)
        }
    }

    @Test func `a file is read where it is mapped, and not written`() async throws {
        let path = try Self.file(pages: 3)
        defer { unsafe _ = unlink(path.string) }
        let sandbox = try await Self.sandbox()
        let clean = try await sandbox.snapshot()
        let window = try await sandbox.map(.file(path), access: .readOnly)
        #expect(window.count == 3 * 4096)
        #expect(try await sandbox.call("peek", window.address + 8 * 600) as UInt64 == 1600)
        let mapped = try await sandbox.snapshot()
        let write = try await Self.fault { try await sandbox.call("poke", window.address + 8, 1 as UInt64) }
        #expect(write.kind == .memoryAccess && write.access == .write && write.address == window.address + 8)
        try await sandbox.restore(to: mapped)
        #expect(try await sandbox.call("peek", window.address + 8 * 600) as UInt64 == 1600)
        let beyond = try await Self.fault {
            let _: UInt64 = try await sandbox.call("peek", window.address + 3 * 4096)
        }
        #expect(beyond.kind == .outOfBounds && beyond.address == window.address + 3 * 4096)
        // The host sees the same, by copies.
        try await sandbox.restore(to: mapped)
        try await sandbox.run { sandbox in
            let memory = try sandbox.memory
            #expect(try memory.load(GuestPointer<UInt64>(address: window.address + 800)) == 1100)
            #expect(throws: SandboxError.self) {
                try memory.store(1, to: GuestPointer<UInt64>(address: window.address))
            }
            try memory.withBytes(of: window) { #expect($0.byteCount == 3 * 4096) }
        }
        try await sandbox.restore(to: clean)
        let gone = try await Self.fault { let _: UInt64 = try await sandbox.call("peek", window.address) }
        #expect(gone.kind == .outOfBounds)
    }

    @Test func `what a guest writes into a private window is its own, and gone after a restore`() async throws {
        let path = try Self.file(pages: 4)
        defer { unsafe _ = unlink(path.string) }
        let sandbox = try await Self.sandbox()
        let other = try await Self.sandbox()
        let window = try await sandbox.map(.file(path, offset: 4096), access: .copyOnWrite)
        let otherWindow = try await other.map(.file(path, offset: 4096), access: .copyOnWrite)
        #expect(window == otherWindow)
        let clean = try await sandbox.snapshot()
        try await sandbox.call("poke", window.address, 7 as UInt64)
        try await sandbox.call("poke", window.address + 4096, 0 as UInt64)
        let written = try await sandbox.snapshot()
        #expect(try await other.call("peek", window.address) as UInt64 == 1512)
        for _ in 0..<3 {
            try await sandbox.call("poke", window.address + 8192, 9 as UInt64)
            try await sandbox.restore(to: clean)
            #expect(try await sandbox.call("peek", window.address) as UInt64 == 1512)
            #expect(try await sandbox.call("peek", window.address + 4096) as UInt64 == 2024)
            #expect(try await sandbox.call("peek", window.address + 8192) as UInt64 == 2536)
            try await sandbox.restore(to: written)
            #expect(try await sandbox.call("peek", window.address) as UInt64 == 7)
            #expect(try await sandbox.call("peek", window.address + 8) as UInt64 == 1513)
            #expect(try await sandbox.call("peek", window.address + 4096) as UInt64 == 0)
            #expect(try await sandbox.call("peek", window.address + 8192) as UInt64 == 2536)
        }
        let fork = try await Sandbox(from: written)
        #expect(try await fork.call("peek", window.address) as UInt64 == 7)
        #expect(try await fork.call("peek", window.address + 4096) as UInt64 == 0)
        #expect(try await fork.call("peek", window.address + 8192) as UInt64 == 2536)
        // Unmapped in between: what was written comes back with the mapping.
        try await fork.unmap(window)
        try await fork.restore(to: written)
        #expect(try await fork.call("peek", window.address) as UInt64 == 7)
        try await fork.unmap(window)
        let without = try await fork.snapshot()
        try await fork.restore(to: written)
        try await fork.restore(to: without)
        let gone = try await Self.fault { let _: UInt64 = try await fork.call("peek", window.address) }
        #expect(gone.kind == .outOfBounds)
    }

    @Test(arguments: [WindowContents.Access.readOnly, .copyOnWrite])
    func `a file that is truncated underneath ends the call and not the process`(
        _ access: WindowContents.Access
    ) async throws {
        let path = try Self.file(pages: 64)
        defer { unsafe _ = unlink(path.string) }
        let sandbox = try await Self.sandbox()
        let window = try await sandbox.map(.file(path), access: access)
        #expect(try await sandbox.call("peek", window.address) as UInt64 == 1000)
        #expect(try await sandbox.call("peek", window.address + 60 * 4096) as UInt64 == 1000 + 60 * 512)
        let snapshot = try await sandbox.snapshot()
        unsafe _ = truncate(path.string, 4096)
        #expect(try await sandbox.call("peek", window.address) as UInt64 == 1000)
        for page in [60, 3] as [UInt64] {
            let fault = try await Self.fault {
                let _: UInt64 = try await sandbox.call("peek", window.address + page * 4096)
            }
            #expect(fault.kind == .memoryUnavailable)
            try await sandbox.restore(to: snapshot)
        }
        try await sandbox.run { sandbox in
            let memory = try sandbox.memory
            #expect(throws: SandboxError.self) { try memory.load(window) }
            #expect(throws: SandboxError.self) { try memory.withBytes(of: window) { _ in } }
            let first = GuestBuffer(address: window.address, count: 4096)
            #expect(try memory.load(first).count == 4096)
            let last = GuestPointer<UInt64>(address: window.address + 9 * 4096)
            #expect(throws: SandboxError.self) { try memory.load(last) }
            #expect(throws: SandboxError.self) { try memory.store(1, to: last) }
        }
        #expect(try await sandbox.call("answer") == 42)
    }

    @Test func `memory of the host is shared without copies`() async throws {
        let memory = try SharedMemory((0..<20_000).map { UInt8(truncatingIfNeeded: $0) })
        var sandboxes: [Sandbox] = []
        for index in 0..<4 {
            let sandbox = try await Self.sandbox()
            let window = try await sandbox.map(.shared(memory), access: index == 3 ? .copyOnWrite : .readOnly)
            #expect(window.count == 20_000)
            #expect(try await sandbox.call("peek", window.address) as UInt64 == 0x0706_0504_0302_0100)
            sandboxes.append(sandbox)
        }
        let window = try await sandboxes[0].run { try $0.memory.addressSpace.windows[0].lowerBound }
        try await sandboxes[3].call("poke", window, 1 as UInt64)
        memory.withMutableBytes { $0.storeBytes(of: 99, toByteOffset: 0, as: UInt64.self) }
        for sandbox in sandboxes.prefix(3) {
            #expect(try await sandbox.call("peek", window) as UInt64 == 99)
        }
        #expect(try await sandboxes[3].call("peek", window) as UInt64 == 1)
        memory.withBytes { #expect($0.byteCount == 20_000) }
    }

    @Test func `unmapping really unmaps, a thousand times over`() async throws {
        let path = try Self.file(pages: 2)
        defer { unsafe _ = unlink(path.string) }
        let sandbox = try await Self.sandbox(windows: 1)
        func round(_ index: Int) async throws {
            let window = try await sandbox.map(.file(path), access: index % 2 == 0 ? .readOnly : .copyOnWrite)
            #expect(try await sandbox.call("peek", window.address) as UInt64 == 1000)
            let full = await #expect(throws: SandboxError.self) {
                try await sandbox.map(.file(path), access: .readOnly)
            }
            #expect(full?.code == .outOfMemory)
            try await sandbox.unmap(window)
            let twice = await #expect(throws: SandboxError.self) { try await sandbox.unmap(window) }
            #expect(twice?.code == .invalidArgument)
        }
        for index in 0..<10 { try await round(index) }
        let before = Resources()
        for index in 0..<(Surroundings.isEmulated ? 200 : 1000) { try await round(index) }
        let after = Resources()
        #expect(after.descriptors <= before.descriptors && after.mappings <= before.mappings + 2)
    }

    @Test func `what cannot be mapped is refused`() async throws {
        let path = try Self.file(pages: 300)
        defer { unsafe _ = unlink(path.string) }
        let sandbox = try await Self.sandbox(windows: 1)
        let tooLarge = await #expect(throws: SandboxError.self) {
            try await sandbox.map(.file(path), access: .readOnly)
        }
        #expect(tooLarge?.code == .outOfMemory)
        let without = try await Guest.state.sandbox()
        let none = await #expect(throws: SandboxError.self) { try await without.map(.file(path), access: .readOnly) }
        #expect(none?.code == .outOfMemory)
        func code(_ body: () throws(SandboxError) -> WindowContents) -> SandboxError.Code? {
            do {
                _ = try body()
                return nil
            } catch { return error.code }
        }
        #expect(code { () throws(SandboxError) in try .file("/nowhere") } == .systemCallFailed)
        #expect(code { () throws(SandboxError) in try .file("/tmp") } == .invalidArgument)
        #expect(code { () throws(SandboxError) in try .file("/dev/null") } == .invalidArgument)
        #expect(code { () throws(SandboxError) in try .file(path, offset: 100) } == .invalidArgument)
        #expect(code { () throws(SandboxError) in try .file(path, offset: 300 * 4096) } == .invalidArgument)
        #expect(code { () throws(SandboxError) in try .file(path, count: 300 * 4096 + 1) } == .invalidArgument)
        #expect(code { () throws(SandboxError) in try .file(path, count: 0) } == .invalidArgument)
        #expect(throws: SandboxError.self) { try SharedMemory(count: 0) }
        #expect(throws: SandboxError.self) { try SharedMemory(count: -1) }
    }
}
