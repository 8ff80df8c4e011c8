#if Server
import Foundation
import Glibc
import Testing

@testable import MicroVMCommand
@testable import MicroVMServer

/// `microvm top`, on a terminal.
@Suite(.requiresKVM, .timeLimit(.minutes(3))) struct TopTests {
    private static let bottom = "k kill  s stop"

    @Test func `a call is seen, stopped, continued and killed by keys`() async throws {
        let server = try await ServerProcess()
        try await server.upload("spin")
        let id = try await server.start("spin", "spin", "--returns", "void")
        let top = try TerminalRun("top", "--interval", "50ms", "--server", server.socket)
        try await top.wait(until: "the call on the screen") {
            top.text.contains("running") && top.text.contains("spin") && top.text.contains(Self.bottom)
        }
        #expect(top.mode.isForKeys && top.text.contains("\u{1b}[?1049h"))
        top.type("s")
        try await top.wait(until: "the call is stopped") { top.text.contains("stopped   spin") }
        #expect(try await server.stateOfCall(id) == "stopped")
        top.type("c")
        try await waitForState("running", id, server)
        top.type("k")
        try await top.wait(until: "a question") { top.text.contains("Kill call \(id)? y or n") }
        top.type("n")
        #expect(try await server.stateOfCall(id) == "running")
        top.type("k")
        top.type("y")
        try await waitForState("finished", id, server)
        try await top.wait(until: "the kill is counted") { top.text.contains("killed 1") }
        top.type("q")
        #expect(try await top.end() == 0)
        expectTerminalIsBack(top)
        try await server.end()
        server.remove()
    }

    private func waitForState(_ state: String, _ id: String, _ server: ServerProcess) async throws {
        while try await server.stateOfCall(id) != state { try await Task.sleep(for: .milliseconds(5)) }
    }

    @Test(arguments: [SIGINT, SIGTERM, SIGHUP])
    func `a signal ends it with the terminal as it was`(_ signal: Int32) async throws {
        let server = try await ServerProcess()
        let top = try TerminalRun("top", "--interval", "50ms", "--server", server.socket)
        try await top.wait(until: "a screen") { top.text.contains(Self.bottom) }
        top.send(signal)
        #expect(try await top.end() == 128 + signal)
        expectTerminalIsBack(top)
        try await server.end()
        server.remove()
    }

    @Test func `it ends with the server, and says so when the terminal is as it was`() async throws {
        let server = try await ServerProcess()
        let top = try TerminalRun("top", "--interval", "20ms", "--server", server.socket)
        try await top.wait(until: "a screen") { top.text.contains(Self.bottom) }
        try await server.end(by: SIGKILL)
        #expect(try await top.end() == 69)
        #expect(top.mode == top.modeBefore && top.text.contains("\u{1b}[?1049lError: No server answers"))
        server.remove()
    }

    /// Expects the terminal to be as it was: its mode, and its screen, on which a shell may say what has ended.
    private func expectTerminalIsBack(_ top: TerminalRun, location: SourceLocation = #_sourceLocation) {
        let parts = top.text.components(separatedBy: "\u{1b}[?25h\u{1b}[?1049l")
        #expect(top.mode == top.modeBefore, sourceLocation: location)
        #expect(parts.count == 2 && !(parts.last ?? "").contains("\u{1b}"), sourceLocation: location)
    }

    // MARK: - The screen by itself

    private func call(_ id: UInt64, _ function: String, cpu: Double) throws -> API.Call {
        let json = """
            {"id": \(id), "module": "m", "function": "\(function)", "returns": "void", "labels": {"tenant": "t\(id)"},
             "priority": 0, "limits": {}, "state": "running", "accepted": "", "queuedMicroseconds": 0,
             "elapsedMicroseconds": 1500000, "outputBytes": 0, "hasCoreDump": false,
             "sample": {"time": "", "place": "\(function)", "cpuShare": \(cpu), "exitsPerSecond": 12345,
                "hostCallsPerSecond": 3, "memoryBytes": 1048576,
                "statistics": {"durationMicroseconds": 1, "stoppedMicroseconds": 0, "exits": 1, "hostCalls": 0,
                    "nestedCalls": 0}}}
            """
        return try JSONDecoder().decode(API.Call.self, from: Data(json.utf8))
    }

    @Test func `every line fits, whatever the names are and however small the terminal is`() throws {
        var screen = TopScreen()
        let name = "f\\u001b[2J日本語\\n\\u202e" + String(repeating: "x", count: 99)
        screen.calls = try (1...50).map { try call($0, name, cpu: 0.5) }
        screen.keepSelection(at: 30)
        for (columns, rows) in [(80, 24), (20, 5), (10, 2), (200, 60), (80, 1)] {
            let lines = screen.lines(columns: columns, rows: rows)
            #expect(lines.count == rows)
            for line in lines {
                let text = line.replacingOccurrences(of: "\u{1b}[7m", with: "")
                    .replacingOccurrences(of: "\u{1b}[0m", with: "")
                #expect(text.count <= columns && !text.contains("\u{1b}") && !text.contains("\n"))
                #expect(text.unicodeScalars.allSatisfy { $0.value < 0x590 || $0 == "…" || $0 == "“" || $0 == "”" })
            }
        }
        #expect(screen.lines(columns: 80, rows: 24).contains { $0.hasPrefix("\u{1b}[7m") })
    }

    @Test func `keys sort, filter and select`() throws {
        var screen = TopScreen()
        var keys = TopKeys()
        screen.calls = [try call(1, "slow", cpu: 0.1), try call(2, "fast", cpu: 0.9), try call(3, "even", cpu: 0.5)]
        screen.keepSelection(at: 0)
        #expect(screen.shown.map(\.id) == [2, 3, 1] && screen.selection == 2)
        #expect(keys.actions(Array("\u{1b}[B".utf8), &screen).isEmpty && screen.selection == 3)
        // In pieces, as a terminal may send them.
        #expect(keys.actions([0x1b, UInt8(ascii: "[")], &screen).isEmpty)
        #expect(keys.actions([UInt8(ascii: "A")], &screen).isEmpty && screen.selection == 2)
        #expect(keys.actions(Array("p".utf8), &screen).isEmpty && screen.selection == 2)
        #expect(keys.actions(Array("nn".utf8), &screen).isEmpty && screen.selection == 1)
        for _ in 0..<4 { _ = keys.actions(Array("o".utf8), &screen) }
        #expect(screen.order == .call && screen.shown.map(\.id) == [1, 2, 3])
        #expect(keys.actions(Array("/evx\u{7f}e\r".utf8), &screen).isEmpty)
        #expect(screen.filter == "eve" && screen.shown.map(\.id) == [3] && screen.selection == 3)
        #expect(keys.actions(Array("s".utf8), &screen) == [.stop(3)])
        #expect(keys.actions(Array("kx".utf8), &screen).isEmpty && screen.prompt == .none)
        #expect(keys.actions(Array("ky".utf8), &screen) == [.kill(3)])
        #expect(keys.actions(Array("f\u{15}tenant=t2\r".utf8), &screen).isEmpty && screen.shown.map(\.id) == [2])
        #expect(keys.actions(Array("fzzz".utf8), &screen).isEmpty)
        #expect(keys.actions([0x1b], &screen).isEmpty && screen.prompt == .none && screen.filter == "tenant=t2")
        #expect(keys.actions(Array("cq".utf8), &screen) == [.resume(2), .quit])
        screen.calls = []
        screen.keepSelection(at: 0)
        #expect(keys.actions(Array("ks".utf8), &screen).isEmpty && screen.selection == nil)
    }
}
#endif
