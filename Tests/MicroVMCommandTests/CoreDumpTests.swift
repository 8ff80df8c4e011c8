import Foundation
import Testing

/// Backtraces and core dumps of `microvm run`.
@Suite(.requiresKVM, .timeLimit(.minutes(2)))
struct CoreDumpTests {
    private static func withFolder(_ body: (URL) async throws -> Void) async throws {
        let folder = FileManager.default.temporaryDirectory.appending(path: "microvm-dumps-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        try await body(folder)
    }

    @Test func `a fault has a backtrace and leaves a core dump`() async throws {
        try await Self.withFolder { folder in
            let arguments = [
                "run", CommandRun.guest("backtrace"), "outer", "i64:0", "i64:0", "--core-dump", folder.path,
            ]
            let run = try await CommandRun.microvm(arguments)
            #expect(run.status == 139)
            let lines = run.error.split(separator: "\n")
            let start = try #require(lines.firstIndex(of: "  backtrace"))
            for (number, name) in ["innermost", "middle", "outer"].enumerated() {
                #expect(lines[start + 1 + number].hasPrefix("    #\(number)   0x"))
                #expect(lines[start + 1 + number].contains(" \(name)+0x"))
            }
            let line = try #require(lines.last)
            #expect(line.hasPrefix("Core dump: \(folder.path)/microvm-backtrace.so-") && line.hasSuffix(".core"))
            let path = line.dropFirst("Core dump: ".count)
            #expect(FileManager.default.fileExists(atPath: String(path)))

            let json = try await CommandRun.microvm(arguments + ["--json"]).json()
            let dump = try #require((json["coreDump"] as? [String: Any])?["path"] as? String)
            #expect(FileManager.default.fileExists(atPath: dump) && dump != path)
            let backtrace = try #require((json["fault"] as? [String: Any])?["backtrace"] as? [String: Any])
            #expect(backtrace["isTruncated"] as? Bool == false)
            let frames = try #require(backtrace["frames"] as? [[String: Any]])
            #expect(frames.compactMap { $0["name"] as? String } == ["innermost", "middle", "outer"])
            #expect(frames.allSatisfy { ($0["address"] as? String)?.hasPrefix("0x") == true && $0["offset"] is Int })
        }
    }

    @Test func `a call at its limit has both too`() async throws {
        try await Self.withFolder { folder in
            let run = try await CommandRun.microvm(
                "run",
                CommandRun.guest("backtrace"),
                "outer",
                "i64:0",
                "i64:1",
                "--time-limit",
                "150ms",
                "--core-dump",
                folder.path
            )
            #expect(run.status == 124 && run.error.contains("\n    #2   0x") && run.error.contains(" outer+0x"))
            #expect(run.error.contains("\nCore dump: \(folder.path)/microvm-"))
            #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path).count == 1)
        }
    }

    @Test func `Swift's functions are named as in the source`() async throws {
        let run = try await CommandRun.microvm("run", CommandRun.guest("swift_backtrace"), "add_entries", "i64:7")
        #expect(run.status == 139 && run.error.contains("swift_backtrace.Ledger.entry(at: Swift.Int) -> Swift.Int+0x"))
        #expect(!run.error.contains("Core dump"))
    }

    @Test func `a core dump that cannot be written changes nothing else`() async throws {
        let arguments = ["run", CommandRun.guest("backtrace"), "outer", "i64:0", "i64:0", "--core-dump", "/nowhere"]
        let run = try await CommandRun.microvm(arguments)
        #expect(run.status == 139 && run.error.contains("\nNo core dump was written: "))
        let json = try await CommandRun.microvm(arguments + ["--json"]).json()
        #expect((json["coreDump"] as? [String: Any])?["failure"] is String)
        #expect(json["outcome"] as? String == "fault")
    }
}
