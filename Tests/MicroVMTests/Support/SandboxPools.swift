import Glibc
import Testing

@testable import MicroVM

extension SandboxPool {
    /// What the pool has when all of its sandboxes are back and restored.
    func settled() async -> SandboxPoolStatistics {
        await waitUntil { statistics.isSettled }
        return statistics
    }
}

extension SandboxPoolStatistics {
    /// Whether nobody has a sandbox, waits for one, or has one that is being restored, and all numbers add up.
    var isSettled: Bool {
        inUse == 0 && waiting == 0 && idle == sandboxes && loans == restores + failedRestores
    }
}

/// A borrower that keeps its sandbox until it is told to give it back.
struct Borrower: Sendable {
    private let task: Task<SandboxError.Code?, Never>
    private let mayReturn = Flag()
    private let hasSandbox: Flag

    /// Borrows; returns when the sandbox has been lent.
    init(of pool: SandboxPool, body: @escaping @Sendable (Sandbox) async throws -> Void = { _ in }) async {
        let (flag, mayReturn) = (Flag(), mayReturn)
        hasSandbox = flag
        task = Task {
            await CallEnd {
                try await pool.withSandbox { sandbox in
                    flag.set()
                    try await body(sandbox)
                    while !mayReturn.isSet { try? await Task.sleep(for: .milliseconds(1)) }
                }
            }.code
        }
        await waitUntil { flag.isSet }
    }

    /// Gives the sandbox back. What the loan ended in.
    @discardableResult
    func finish() async -> SandboxError.Code? {
        mayReturn.set()
        return await task.value
    }
}

/// Expects that the guest's function `count` has been called so many times, this one included.
func expectCount(_ expected: Int, _ sandbox: Sandbox, sourceLocation: SourceLocation = #_sourceLocation) async throws {
    let count: Int = try await sandbox.call("count")
    #expect(count == expected, sourceLocation: sourceLocation)
}

extension GuestMemory {
    /// Whether some bytes are anywhere in the memory, the library's own pages included.
    func contains(_ pattern: [UInt8]) -> Bool {
        var position = 0
        let end = Int(heapEnd)
        // Inside the memory, up to where it is accessible.
        while position + pattern.count <= end,
            let hit = unsafe memchr(base + position, Int32(pattern[0]), end - position - pattern.count + 1)
        {
            if unsafe memcmp(hit, pattern, pattern.count) == 0 { return true }
            position = unsafe hit - UnsafeMutableRawPointer(base) + 1
        }
        return false
    }
}
