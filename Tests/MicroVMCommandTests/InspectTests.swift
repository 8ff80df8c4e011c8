import Foundation
import Testing

@Suite(.timeLimit(.minutes(2)))
struct InspectTests {
    @Test func `text tells exports, imports and segments apart`() async throws {
        let run = try await CommandRun.microvm("inspect", CommandRun.guest("host_calls"))
        #expect(run.status == 0)
        let lines = run.outputText.split(separator: "\n").map { $0.split(separator: " ").joined(separator: " ") }
        #expect(lines.contains { $0.hasPrefix("function call_add 0x") })
        #expect(lines.contains("host_add the embedder's"))
        #expect(lines.contains("host_optional the embedder's, weak: null if not provided"))
        #expect(lines.contains("microvm_clock provided by the library"))
        #expect(lines.contains { $0.hasPrefix("r-x 0x") })
        #expect(lines.contains { $0.hasPrefix("Read-only after relocation: ") })
    }

    @Test func `what only a test runner provides is not asked of the embedder`() async throws {
        let run = try await CommandRun.microvm("inspect", CommandRun.guest("outcomes"))
        let lines = run.outputText.split(separator: "\n").map { $0.split(separator: " ").joined(separator: " ") }
        #expect(lines.contains("microvm_test_failed a test runner's, weak: null if not provided"))
    }

    @Test func `JSON holds all of it`() async throws {
        let json = try await CommandRun.microvm("inspect", CommandRun.guest("thread_local"), "--json").json()
        #expect(json["isLoadable"] as? Bool == true)
        #expect(json["module"] as? String == "thread_local.so")
        let exports = try #require(json["exports"] as? [[String: Any]])
        #expect(exports.contains { $0["name"] as? String == "canary" && $0["kind"] as? String == "function" })
        let imports = try #require(json["imports"] as? [[String: Any]])
        let library = imports.first { $0["name"] as? String == "__tls_get_addr" }
        #expect(library?["providedBy"] as? String == "library")
        let storage = try #require(json["threadLocalStorage"] as? [String: Any])
        #expect(try #require(storage["size"] as? Int) > 0)
        let segments = try #require(json["segments"] as? [[String: Any]])
        #expect(segments.contains { $0["permissions"] as? String == "r-x" })
    }

    @Test func `initialisers are counted`() async throws {
        let json = try await CommandRun.microvm("inspect", CommandRun.guest("initializers"), "--json").json()
        // A compiler may carry out some of the five itself.
        #expect((1...5).contains(try #require(json["initializers"] as? Int)))
    }

    @Test func `a refusal is explained`() async throws {
        // A program is no module.
        let program = CommandRun.executable
        let text = try await CommandRun.microvm("inspect", program.path)
        #expect(text.status == 65)
        #expect(text.error.hasPrefix("Error: The module \"\(program.lastPathComponent)\" cannot be loaded: "))
        let file = FileManager.default.temporaryDirectory.appending(path: "microvm-inspect-\(UUID().uuidString)")
        try Data("text".utf8).write(to: file)
        defer { try? FileManager.default.removeItem(at: file) }
        let json = try await CommandRun.microvm("inspect", file.path, "--json")
        #expect(json.status == 65)
        #expect(try json.json()["isLoadable"] as? Bool == false)
        #expect((try json.json()["refusal"] as? String)?.contains("not an ELF file") == true)
    }
}
