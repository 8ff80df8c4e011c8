@testable import MicroVM

/// A workshop for the core dumps of sandboxes.
extension Workshop {
    /// Has them written here.
    func coreDumpPolicy(_ change: (inout CoreDumpPolicy) -> Void = { _ in }) -> CoreDumpPolicy {
        var policy = CoreDumpPolicy(directory: folder)
        change(&policy)
        return policy
    }

    /// A sandbox whose dumps are written here.
    func dumpingSandbox(
        _ guest: Guest = .backtrace,
        _ change: (inout CoreDumpPolicy) -> Void = { _ in }
    ) async throws -> Sandbox {
        let policy = coreDumpPolicy(change)
        return try await BacktraceTests.sandbox(guest) { $0.coreDumps = policy }
    }

    /// The names of those that are here.
    var coreDumps: [String] {
        get throws {
            _ = run("ls *.core > list || true")
            return String(decoding: try read("list"), as: UTF8.self).split(separator: "\n").map(String.init)
        }
    }
}
