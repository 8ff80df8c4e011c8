import Testing

@testable import MicroVM

/// Windows whose pages come when a guest touches them, from a source that may take its time or fail.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct LazyWindowTests {
    private struct NoPage: Error {}

    private static func sandbox() async throws -> Sandbox {
        try await Guest.state.sandbox {
            $0.windowCount = 2
            $0.windowSize = 1 << 20
        }
    }

    /// Words that count up.
    private static func words(_ count: Int, first: UInt64 = 0) -> [UInt8] {
        (0..<count).flatMap { index in (0..<8).map { UInt8(truncatingIfNeeded: (first + UInt64(index)) >> (8 * $0)) } }
    }

    @Test(arguments: [WindowContents.Access.readOnly, .copyOnWrite], PageSource.Granularity.allCases)
    func `pages come when they are touched, and only those`(
        _ access: WindowContents.Access,
        _ granularity: PageSource.Granularity
    ) async throws {
        let asked = Recorder<UInt64>()
        let source = PageSource.custom(size: 128 * 4096, granularity: granularity) { offset, count in
            asked.append(offset)
            return Self.words(count / 8, first: offset / 8)
        }
        let sandbox = try await Self.sandbox()
        let window = try await sandbox.map(.lazy(source), access: access)
        #expect(window.count == 128 * 4096 && asked.count == 0)
        for page in [0, 17, 64, 127] as [UInt64] {
            #expect(try await sandbox.call("peek", window.address + page * 4096 + 8) as UInt64 == page * 512 + 1)
        }
        #expect(asked.count == 4)
        let loaded = try await sandbox.snapshot()
        #expect(try await sandbox.call("peek", window.address + 80) as UInt64 == 10)
        #expect(asked.count == 4)
        #expect(try await sandbox.call("peek", window.address + 32 * 4096) as UInt64 == 32 * 512)
        if access == .copyOnWrite { try await sandbox.call("poke", window.address, 5 as UInt64) }
        try await sandbox.restore(to: loaded)
        #expect(try await sandbox.call("peek", window.address) as UInt64 == 0)
        #expect(asked.count == 5)
        // What came after the snapshot has gone where the guest could have written it, and comes again.
        #expect(try await sandbox.call("peek", window.address + 32 * 4096) as UInt64 == 32 * 512)
        #expect(asked.count == (access == .copyOnWrite ? 6 : 5))
    }

    @Test func `host code reads and writes it as well`() async throws {
        let sandbox = try await Self.sandbox()
        let window = try await sandbox.map(.lazy(.bytes(Self.words(1000))), access: .copyOnWrite)
        try await sandbox.run { sandbox in
            let memory = try sandbox.memory
            #expect(try memory.load(GuestPointer<UInt64>(address: window.address + 800)) == 100)
            try memory.store(7, to: GuestPointer<UInt64>(address: window.address + 4096))
            #expect(try memory.load(window).count == 8000)
        }
        #expect(try await sandbox.call("peek", window.address + 4096) as UInt64 == 7)
        #expect(try await sandbox.call("peek", window.address + 4104) as UInt64 == 513)
    }

    @Test func `a source that fails ends the call, and only that`() async throws {
        let isBroken = Flag()
        let source = PageSource.custom(size: 64 << 10) { offset, count in
            if isBroken.isSet, offset == 8192 { throw NoPage() }
            return [UInt8](repeating: 1, count: count)
        }
        let sandbox = try await Self.sandbox()
        let other = try await Self.sandbox()
        let window = try await sandbox.map(.lazy(source), access: .readOnly)
        let otherWindow = try await other.map(.lazy(source), access: .readOnly)
        let snapshot = try await sandbox.snapshot()
        isBroken.set()
        for _ in 0..<3 {
            let error = await #expect(throws: SandboxError.self) {
                let _: UInt64 = try await sandbox.call("peek", window.address + 8192)
            }
            #expect(error?.fault?.kind == .memoryUnavailable && error?.fault?.address == window.address + 8192)
            #expect(error?.underlyingError is NoPage)
            #expect(try await other.call("peek", otherWindow.address) as UInt64 == 0x0101_0101_0101_0101)
            try await sandbox.restore(to: snapshot)
            #expect(try await sandbox.call("peek", window.address) as UInt64 == 0x0101_0101_0101_0101)
        }
        let beyond = await #expect(throws: SandboxError.self) {
            let _: UInt64 = try await sandbox.call("peek", window.address + 64 << 10)
        }
        #expect(beyond?.code == .guestFault)
    }

    @Test func `a kill ends a guest that waits for a page, and others go on`() async throws {
        let isAsked = Flag()
        let source = PageSource.custom(size: 64 << 10) { _, _ in
            isAsked.set()
            try await Task.sleep(for: .seconds(3600))
            return []
        }
        let sandbox = try await Self.sandbox()
        let window = try await sandbox.map(.lazy(source), access: .copyOnWrite)
        let other = try await Self.sandbox()
        let otherWindow = try await other.map(.lazy(.bytes(Self.words(512))), access: .copyOnWrite)
        let snapshot = try await sandbox.snapshot()
        for _ in 0..<3 {
            isAsked.clear()
            let call = Task {
                await #expect(throws: SandboxError.self) {
                    let _: UInt64 = try await sandbox.call("peek", window.address + 4096)
                }
            }
            await waitUntil { isAsked.isSet }
            #expect(try await other.call("peek", otherWindow.address + 16) as UInt64 == 2)
            #expect(await onThread { sandbox.interruptHandle.kill() } == .signalled)
            #expect(await call.value?.code == .killed)
            try await sandbox.restore(to: snapshot)
            #expect(try await sandbox.call("answer") == 42)
        }
    }

    @Test func `a fork has the same pages to come`() async throws {
        let sandbox = try await Self.sandbox()
        let source = PageSource.bytes(Self.words(4096))
        let window = try await sandbox.map(.lazy(source), access: .copyOnWrite)
        try await sandbox.call("poke", window.address + 4096, 99 as UInt64)
        let snapshot = try await sandbox.snapshot()
        await sandbox.close()
        for _ in 0..<3 {
            let fork = try await Sandbox(from: snapshot)
            #expect(try await fork.call("peek", window.address + 4096) as UInt64 == 99)
            #expect(try await fork.call("peek", window.address + 8192) as UInt64 == 1024)
            try await fork.unmap(window)
            let error = await #expect(throws: SandboxError.self) {
                let _: UInt64 = try await fork.call("peek", window.address)
            }
            #expect(error?.fault?.kind == .outOfBounds)
        }
    }

    @Test func `what does not fit is refused`() async throws {
        let sandbox = try await Self.sandbox()
        #expect(throws: SandboxError.self) { try WindowContents.lazy(.bytes([])) }
        let large = PageSource.custom(size: 2 << 20) { _, _ in [] }
        let error = await #expect(throws: SandboxError.self) {
            try await sandbox.map(.lazy(large), access: .readOnly)
        }
        #expect(error?.code == .outOfMemory)
        _ = try await sandbox.map(.lazy(.bytes([1])), access: .readOnly)
    }
}
