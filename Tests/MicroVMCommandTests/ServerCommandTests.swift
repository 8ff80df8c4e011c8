#if Server
import Foundation
import Glibc
import Testing

/// `microvm serve` and the commands that talk to it.
@Suite(.requiresKVM, .timeLimit(.minutes(3))) struct ServerCommandTests {
    @Test func `a module is uploaded, called, watched, held and killed`() async throws {
        let server = try await ServerProcess()
        try await server.upload("spin", "--pool", "0...2")
        try await server.upload("echo")
        let modules = try await server.run("modules")
        #expect(modules.outputText.contains("spin") && modules.outputText.contains("0...2"))

        let answer = try await server.run(
            "start",
            "echo",
            "concatenate",
            "string:micro",
            "string:-vm",
            "--returns",
            "string",
            "--wait"
        )
        #expect(answer.status == 0 && answer.outputText == "micro-vm\n")
        let id = try await server.start("spin", "spin", "--returns", "void", "--label", "tenant=a")
        let list = try await server.run("ps", "--sample")
        #expect(list.outputText.contains("tenant=a") && list.outputText.contains("running"))
        let place = try await server.run("inspect-call", id)
        for text in ["#0", "spin", "rip"] { #expect(place.outputText.contains(text)) }
        #expect(try await server.run("stop", id).status == 0)
        #expect(try await server.stateOfCall(id) == "stopped")
        #expect(try await server.run("continue", id).status == 0)
        #expect(try await server.stateOfCall(id) == "running")
        let second = try await server.start("spin", "spin", "--returns", "void")
        #expect(try await server.run("kill", id, second).status == 0)
        let ending = try await server.run("wait", id)
        #expect(ending.status == 130 && ending.error.contains("killed:request") && ending.error.contains("spin"))
        let again = try await server.run("kill", id)
        #expect(again.status == 65 && again.error.contains("is over"))
        #expect(try await server.run("ps").outputText == "No calls.\n")
        #expect(try await server.end() == 0)
        #expect(try server.errors.contains("no call was killed"))
        server.remove()
    }

    @Test func `results, faults and limits end wait as they end run`() async throws {
        let server = try await ServerProcess()
        for guest in ["spin", "faults", "arithmetic", "echo"] { try await server.upload(guest) }
        let sum = try await server.run("start", "arithmetic", "add", "i64:2", "i64:-3", "--wait", "--json")
        let outcome = try sum.json()["outcome"] as? [String: Any]
        #expect(outcome?["kind"] as? String == "returned")
        let fault = try await server.run("start", "faults", "read_address", "u64:16", "--wait")
        #expect(fault.status == 139 && fault.error.contains("faulted:memoryAccess") && fault.error.contains("0x10"))
        let late = try await server.run("start", "spin", "spin", "--returns", "void", "--time-limit", "20ms", "--wait")
        #expect(late.status == 124 && late.error.contains("limited:time"))
        let bytes = try await CommandRun.microvm(
            ["start", "echo", "reverse", "stdin:", "--returns", "bytes", "--wait", "--server", server.socket],
            input: Data([1, 2, 0xff])
        )
        #expect(Array(bytes.output) == [0xff, 2, 1])
        for (arguments, status) in [
            (["start", "none", "f"], 65), (["start", "spin", "none"], 65), (["start", "spin", "answer", "x"], 64),
            (["kill", "999"], 65), (["logs", "999"], 65), (["wait", "x"], 64), (["modules", "none"], 65),
        ] {
            let run = try await CommandRun.microvm(arguments + ["--server", server.socket])
            #expect(run.status == Int32(status) && run.error.hasPrefix("Error: "), "\(arguments) \(run.error)")
        }
        try await server.end()
        server.remove()
        let gone = try await server.run("ps")
        #expect(gone.status == 69 && gone.error.contains("microvm serve"))
    }

    @Test func `logs show what the guest has written, to the stream it was written to`() async throws {
        let server = try await ServerProcess()
        try await server.upload("hello")
        try await server.upload("spin")
        let id = try await server.start("hello", "greet", "string:Ada", "--returns", "void", until: "finished")
        let logs = try await server.run("logs", id)
        #expect(logs.outputText == "Hello, Ada!\n" && logs.error == "")
        let other = try await server.start("hello", "complain", "string:oh", "--returns", "void", until: "finished")
        let followed = try await server.run("logs", "--follow", other)
        #expect(followed.outputText == "" && followed.error == "oh")
        let flood = try await server.start("spin", "spin_with_output", "--returns", "void")
        async let following = server.run("logs", "--follow", flood)
        try await Task.sleep(for: .milliseconds(50))
        #expect(try await server.run("kill", flood).status == 0)
        let output = try await following.output
        #expect(output.allSatisfy { $0 == UInt8(ascii: "x") })
        try await server.end()
        server.remove()
    }

    @Test func `a killed server does not stop the next one, and what it ran is recorded as lost`() async throws {
        let first = try await ServerProcess()
        try await first.upload("spin")
        let id = try await first.start("spin", "spin", "--returns", "void")
        let blocked = try await CommandRun.microvm(
            "serve",
            "--socket",
            first.socket,
            "--directory",
            first.directory.appending(path: "other").path
        )
        #expect(blocked.status == 71 && blocked.error.contains("Another server uses"))
        #expect(try await first.end(by: SIGKILL) == 128 + SIGKILL)
        #expect(FileManager.default.fileExists(atPath: first.socket))

        let second = try await ServerProcess(in: first.directory)
        #expect(try second.errors.contains("1 call was under way when the last server ended"))
        let lost = try await second.run("wait", id)
        #expect(lost.status == 69 && lost.error.contains("lost"))
        // The module is there, and the socket is one.
        let answer = try await second.run("start", "spin", "answer", "--wait")
        #expect(answer.outputText == "42\n")
        try await second.end()
        second.remove()
    }

    @Test func `a server that keeps nothing on the disk works and ends like others`() async throws {
        let server = try await ServerProcess(inMemory: true)
        try await server.upload("spin")
        for _ in 0..<20 {
            #expect(try await server.run("start", "spin", "answer", "--wait").outputText == "42\n")
        }
        #expect(try await server.end() == 0)
        #expect(!FileManager.default.fileExists(atPath: server.socket))
        server.remove()
    }

    @Test func `a server that is told to end kills what does not end, and says what`() async throws {
        let server = try await ServerProcess()
        try await server.upload("spin")
        let id = try await server.start("spin", "spin", "--returns", "void")
        #expect(try await server.end(by: SIGINT) == 0)
        #expect(try server.errors.contains("of 1 calls these were killed: \(id)."))
        #expect(!FileManager.default.fileExists(atPath: server.socket))
        server.remove()
    }

    @Test func `wrong command lines are refused before anything is done`() async throws {
        for arguments in [
            ["serve", "--tcp", "127.0.0.1:0"], ["serve", "--tcp", "nowhere", "--token-file", "/x"],
            ["serve", "--socket", "/x", "--tcp", "127.0.0.1:0"], ["serve", "--in-memory", "--directory", "/x"],
            ["top"], ["upload", "--pool", "5...2", "x.so"], ["modules", "--remove"],
            ["start", "m", "f", "--label", "novalue"], ["ps", "--server", "http://nothing"],
        ] {
            let run = try await CommandRun.microvm(arguments)
            #expect(run.status == 64 && run.error.hasPrefix("Error: "), "\(arguments): \(run.error)")
        }
    }
}
#endif
