import Glibc
import Testing

@testable import MicroVM

/// What a configuration may say; none of it needs a guest to run.
@Suite struct ConfigurationTests {
    private func validated(_ change: (inout SandboxConfiguration) -> Void) throws(SandboxError) -> SandboxConfiguration
    {
        var configuration = SandboxConfiguration()
        change(&configuration)
        return try configuration.validated()
    }

    private func message(_ change: (inout SandboxConfiguration) -> Void) -> String? {
        let error = #expect(throws: SandboxError.self) { _ = try validated(change) }
        #expect(error?.code == .invalidConfiguration)
        return error?.message
    }

    @Test func `the defaults are valid, and are what they are said to be`() throws {
        let configuration = try validated { _ in }
        #expect(configuration.memoryLimit == 64 << 20 && configuration.stackSize == 1 << 20)
        #expect(configuration.argumentArenaSize == 4 << 20 && configuration.initializerTimeLimit == nil)
        #expect(configuration.interruptSignalOffset == 0)
        #expect(configuration.interruptRetryDelay == .microseconds(500))
    }

    @Test func `sizes are rounded up to whole pages`() throws {
        let configuration = try validated {
            $0.stackSize = 4097
            $0.argumentArenaSize = 12_287
        }
        #expect(configuration.stackSize == 8192 && configuration.argumentArenaSize == 12_288)
    }

    @Test func `sizes out of range are refused by name`() {
        for size: UInt64 in [0, 1, 4095, (64 << 30) + 1, .max, .max - 4095, 1 << 63] {
            #expect(message { $0.stackSize = size }?.contains("stackSize") == true)
            #expect(message { $0.argumentArenaSize = size }?.contains("argumentArenaSize") == true)
        }
        for size: UInt64 in [(64 << 30) + 1, .max] {
            #expect(message { $0.memoryLimit = size }?.contains("memoryLimit") == true)
        }
    }

    @Test func `signals, delays and niceness out of range are refused by name`() {
        for offset in [-1, 31, 1000, Int32.max, .min] {
            #expect(message { $0.interruptSignalOffset = offset }?.contains("interruptSignalOffset") == true)
        }
        for niceness in [-1, 20, .max, .min] {
            #expect(message { $0.niceness = niceness }?.contains("niceness") == true)
        }
        for delay in [Duration.zero, .seconds(-1)] {
            #expect(message { $0.interruptRetryDelay = delay }?.contains("interruptRetryDelay") == true)
        }
    }

    @Test(.requiresKVM, .timeLimit(.minutes(5)), arguments: [0, 7])
    func `a sandbox's thread is as nice as its configuration says`(_ niceness: Int) async throws {
        let sandbox = try await Guest.arithmetic.sandbox { $0.niceness = niceness }
        // Asks for the calling thread.
        let nice = { @Sendable in getpriority(__priority_which_t(PRIO_PROCESS.rawValue), 0) }
        let its = try await sandbox.run { _ in nice() }
        #expect(its == min(nice() + Int32(niceness), 19))
    }

    @Test(.requiresKVM, .timeLimit(.minutes(5)))
    func `workers of the concurrency pool are no nicer for a sandbox that is`() async throws {
        await #expect(processExitsWith: .success) {
            let sandbox = try await Guest.arithmetic.sandbox { $0.niceness = 9 }
            // Root could take it back.
            if geteuid() == 0 { precondition(setuid(65534) == 0) }
            let nice = { @Sendable in getpriority(__priority_which_t(PRIO_PROCESS.rawValue), 0) }
            let own = nice()
            let tasks = try await sandbox.run { _ in
                precondition(nice() == min(own + 9, 19))
                // All workers are gone, and tasks that this thread makes have the pool begin new ones.
                sleep(7)
                return (0..<8).map { _ in Task.detached { nice() } }
            }
            for task in tasks {
                let value = await task.value
                #expect(value == own)
            }
        }
    }

    @Test(.requiresKVM, .timeLimit(.minutes(5)), arguments: [0, 4096, 1 << 20, 5 << 20])
    func `a module that does not fit says what takes the room`(_ limit: UInt64) async throws {
        let error = await #expect(throws: SandboxError.self) {
            try await Guest.arithmetic.sandbox { $0.memoryLimit = limit }
        }
        #expect(error?.code == .invalidConfiguration && error?.message.contains("memoryLimit") == true)
    }

    @Test(.requiresKVM, .timeLimit(.minutes(5)))
    func `the smallest sandbox and a large one both work`() async throws {
        let image = try Guest.arithmetic.module().imageSize
        let smallest = try await Guest.arithmetic.sandbox {
            $0.stackSize = 4096
            $0.argumentArenaSize = 4096
            $0.memoryLimit = image + 3 * 4096
        }
        #expect(try await smallest.call("add", 2, 3) == 5)
        #expect(try await smallest.run { try $0.memory.addressSpace.heap.count } == 4096)
        // A page less, or a byte.
        for less in [1, 4096] as [UInt64] {
            await #expect(throws: SandboxError.self) {
                try await Guest.arithmetic.sandbox {
                    $0.stackSize = 4096
                    $0.argumentArenaSize = 4096
                    $0.memoryLimit = image + 3 * 4096 - less
                }
            }
        }
        let large = try await Guest.memory.sandbox {
            $0.memoryLimit = 8 << 30
            $0.stackSize = 1 << 30
            $0.argumentArenaSize = 1 << 30
        }
        #expect(try await large.call("touch_pages", UInt64(100), returning: UInt64.self) == 0)
        #expect(try await large.call("read_pages", UInt64(100), returning: UInt64.self) == 100)
        // The last page of the heap is there like the first.
        let heap = try await large.run { try $0.memory.addressSpace.heap }
        #expect(heap.count > 5 << 30)
        let last = GuestPointer<UInt64>(address: heap.upperBound - 8)
        try await large.run { try $0.memory.store(7, to: last) }
    }
}
