import Synchronization
import Testing

@testable import MicroVM

/// A guest call that is known to be spinning in the guest: it has said so in its memory.
struct SpinningGuest: Sendable {
    let sandbox: Sandbox
    let call: Task<SandboxError?, Never>

    var handle: LinuxInterruptHandle { sandbox.interruptHandle }

    /// Begins the call and waits until it spins, or has ended before it came to that.
    init(
        in sandbox: Sandbox,
        timeLimit: Duration? = nil,
        sourceLocation: SourceLocation = #_sourceLocation
    ) async throws {
        self.sandbox = sandbox
        let word = try await SharedWord(of: sandbox)
        word.value = 0
        let ended = Flag()
        call = Task {
            defer { ended.set() }
            return await #expect(throws: SandboxError.self, sourceLocation: sourceLocation) {
                try await sandbox.call("spin_and_say_so", word.address, timeLimit: timeLimit)
            }
        }
        await waitUntil { word.value == 1 || ended.isSet }
    }

    init(_ configure: (inout SandboxConfiguration) -> Void = { _ in }) async throws {
        try await self.init(in: Guest.spin.sandbox(configure: configure))
    }
}

/// A word of guest memory that is looked at while the guest runs.
@safe struct SharedWord: Sendable {
    let address: UInt64
    /// In the mapping of a sandbox that the test keeps.
    private nonisolated(unsafe) let word: UnsafeMutablePointer<Atomic<UInt64>>

    /// A word of the guest's heap, by its index, or the word at an address of the guest's.
    init(of sandbox: Sandbox, at address: UInt64? = nil, index: Int = 0) async throws {
        self = try await sandbox.run { sandbox in
            let memory = try sandbox.memory
            let address = address ?? memory.addressSpace.heap.lowerBound + 8 * UInt64(index)
            let bytes = unsafe memory.hostBytes(at: address, count: 8)
            return unsafe SharedWord(address: address, bytes: bytes)
        }
    }

    private init(address: UInt64, bytes: UnsafeMutableRawBufferPointer) {
        self.address = address
        // Aligned, because the heap is; as large as the word it wraps.
        unsafe word = bytes.baseAddress!.assumingMemoryBound(to: Atomic<UInt64>.self)
    }

    var value: UInt64 {
        get { unsafe word.pointee.load(ordering: .acquiring) }
        nonmutating set { unsafe word.pointee.store(newValue, ordering: .releasing) }
    }
}
