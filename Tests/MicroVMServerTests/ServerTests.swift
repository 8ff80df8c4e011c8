#if Server
import Foundation
import Glibc
import MicroVM
import SystemPackage
import Testing

@testable import MicroVMServer
@testable import MicroVMSupervisor

/// What the server answers.
@Suite(.requiresKVM, .timeLimit(.minutes(2))) struct ServerTests {
    @Test func `every operation that is described is there, and answers as described`() async throws {
        try await TestServer.with { server in
            for path in ["/health/live", "/health/ready", "/metrics", "/v1/overview", "/v1/modules"] {
                try await server.request("GET", path, status: 200)
            }
            try await server.upload("spin", "?poolMinimum=1&poolMaximum=4")
            try await server.upload("echo")
            let module = try await server.request("GET", "/v1/modules/spin", status: 200)
            #expect(module["functions"]?.elements.contains(.string("spin_until")) == true)
            let json = #"{"minimum": 0, "maximum": 3}"#
            try await server.request("PATCH", "/v1/modules/spin", json: json, status: 200)

            let id = try await server.startSpinning("spin_with_output")
            let listed = try await server.request("GET", "/v1/calls?sample=true&label=tenant=a&state=running")
            #expect(listed["calls"]?.elements.map { $0["id"]?.integer } == [id])
            #expect(listed["calls"]?[0]?["sample"]?["statistics"] != nil)
            let inspection = try await server.request("GET", "/v1/calls/\(id)/inspection", status: 200)
            #expect(inspection["place"]?["registers"]?["rip"] != nil)
            #expect(try await server.request("POST", "/v1/calls/\(id)/stop", status: 200)["state"]?.text == "stopped")
            try await server.request("POST", "/v1/calls/\(id)/continue", status: 200)
            let fork = try await server.request("POST", "/v1/calls/\(id)/fork", status: 201)
            #expect(fork["parent"]?.integer == id)
            let forkID = try #require(fork["id"]?.integer)
            let snapshot = try await server.request("POST", "/v1/calls/\(id)/snapshot", status: 201)
            let number = try #require(snapshot["id"]?.integer)
            #expect(try await server.request("GET", "/v1/snapshots")["snapshots"]?.elements.count == 1)
            let other = try await server.request(
                "POST",
                "/v1/snapshots/\(number)/start",
                json: #"{"labels": {"tenant": "b"}}"#,
                status: 201
            )
            #expect(other["labels"]?["tenant"]?.text == "b")
            let otherID = try #require(other["id"]?.integer)
            try await server.request("DELETE", "/v1/snapshots/\(number)", status: 204)
            try await server.request("GET", "/v1/calls/\(id)/core-dump", status: 200)
            for call in [id, forkID, otherID] {
                try await server.request("POST", "/v1/calls/\(call)/kill", status: 200)
                let ended = try await server.request("GET", "/v1/calls/\(call)/wait", status: 200)
                #expect(ended["outcome"]?["kind"]?.text == "killed")
            }
            let output = try await server.client.request("GET", "/v1/calls/\(id)/output?stream=standardOutput")
            APIDescription.shared.check("GET", "/v1/calls/\(id)/output", output)
            #expect(!output.body.isEmpty && output.body.allSatisfy { $0 == UInt8(ascii: "x") })
            for path in ["/v1/calls/\(id)/output/events", "/v1/events"] {
                try await checkStream(server, path)
            }

            let bytes = try await server.client.request(
                "POST",
                "/v1/modules/echo/functions/reverse?waitMicroseconds=1e7&label.a=b",
                body: [1, 2, 3]
            )
            APIDescription.shared.check("POST", "/v1/modules/echo/functions/reverse", bytes)
            #expect(bytes.status == 200 && bytes.body == [3, 2, 1])
            let path = try #require(bytes.headers["content-location"])
            let result = try await server.client.request("GET", path + "/result")
            APIDescription.shared.check("GET", path + "/result", result)
            #expect(result.body == [3, 2, 1])
            let ended = Set([id, forkID, otherID])
            var recorded: Set<Int64> = []
            repeat {
                let history = try await server.request("GET", "/v1/history?limit=1000", status: 200)
                recorded = Set(history["calls"]?.elements.compactMap { $0["id"]?.integer } ?? [])
            } while !recorded.isSuperset(of: ended)
            try await server.request("DELETE", "/v1/modules/spin?kill=true", status: 204)
            #expect(APIDescription.shared.usedOperations.isSuperset(of: APIDescription.shared.operations))
        }
    }

    /// Reads a stream's head and one event, or its end.
    private func checkStream(_ server: TestServer, _ path: String) async throws {
        let starting = Task {
            // Something that there is news of, for as long as it takes.
            while !Task.isCancelled {
                let json = #"{"module": "spin", "function": "answer"}"#
                _ = try await server.client.request("POST", "/v1/calls", body: Array(json.utf8))
                try await Task.sleep(for: .milliseconds(5))
            }
        }
        defer { starting.cancel() }
        var names: [String] = []
        try await server.client.events(path) { name, data in
            names.append(name)
            guard let value = try? JSONNode(data) else {
                Issue.record("The event is no JSON.")
                return false
            }
            if name != "end" { APIDescription.shared.check(value, schema: name == "output" ? "Output" : "Event") }
            return name == "output"
        }
        #expect(!names.isEmpty)
        let answer = APIClient.Answer(status: 200, headers: ["content-type": "text/event-stream"], body: [])
        APIDescription.shared.check("GET", path, answer)
    }

    @Test func `a call by JSON returns its value with its type`() async throws {
        try await TestServer.with { server in
            try await server.upload("echo")
            try await server.upload("arithmetic")
            func value(_ json: String) async throws -> JSONNode? {
                let call = try await server.request("POST", "/v1/calls?waitMicroseconds=1e7", json: json, status: 201)
                return call["outcome"]?["result"]
            }
            #expect(
                try await value(
                    #"""
                    {"module": "arithmetic", "function": "add",
                     "arguments": [{"type": "i64", "value": 2}, {"type": "i64", "value": "40"}]}
                    """#
                ) == .object(["type": .string("i64"), "value": .integer(42)])
            )
            // Digits that a floating-point number would lose are text.
            #expect(
                try await value(
                    #"""
                    {"module": "arithmetic", "function": "add",
                     "arguments": [{"type": "i64", "value": 9223372036854775807}, {"type": "i64", "value": 0}]}
                    """#
                )?["value"] == .string("9223372036854775807")
            )
            #expect(
                try await value(
                    #"""
                    {"module": "arithmetic", "function": "add_f64", "returns": "f64",
                     "arguments": [{"type": "f64", "value": 0.5}, {"type": "f64", "value": "inf"}]}
                    """#
                )?["value"] == .string("inf")
            )
            #expect(
                try await value(
                    #"""
                    {"module": "echo", "function": "echo", "returns": "string",
                     "arguments": [{"type": "string", "value": "é\u0000 <b>"}]}
                    """#
                )?["value"] == .string("é\u{0} <b>")
            )
            #expect(
                try await value(
                    #"""
                    {"module": "echo", "function": "reverse", "returns": "bytes",
                     "arguments": [{"type": "bytes", "value": "AQID"}]}
                    """#
                )?["value"] == .string("AwIB")
            )
        }
    }

    @Test(arguments: [3, 7]) func `guests leave the processors to the server as far as it says`(
        _ niceness: Int
    ) async throws {
        try await TestServer.with(configure: { $0.niceness = niceness }) { server in
            try await server.upload("spin")
            _ = try await server.startSpinning()
            let own = getpriority(__priority_which_t(PRIO_PROCESS.rawValue), id_t(getpid()))
            let threads = try FileManager.default.contentsOfDirectory(atPath: "/proc/self/task").compactMap { name in
                // A thread may have ended since.
                try? String(contentsOfFile: "/proc/self/task/\(name)/stat", encoding: .utf8)
            }
            let values = threads.filter { $0.contains("(microvm-vcpu)") }.map { stat in
                // The nineteenth field; the second is the name, in parentheses.
                stat.split(separator: ")")[1].split(separator: " ")[16]
            }
            #expect(values.contains { Int32($0) == min(own + Int32(niceness), 19) })
        }
    }

    @Test func `a fault is reported with its place, and its core dump can be fetched`() async throws {
        try await TestServer.with { server in
            try await server.upload("faults")
            let json = #"""
                {"module": "faults", "function": "read_address", "returns": "u64",
                 "arguments": [{"type": "u64", "value": 16}]}
                """#
            let call = try await server.request("POST", "/v1/calls?waitMicroseconds=1e7", json: json, status: 201)
            #expect(call["outcome"]?["fault"]?["kind"]?.text == "memoryAccess")
            #expect(call["outcome"]?["fault"]?["address"]?.text == "0x10")
            #expect(call["outcome"]?["place"]?["symbol"]?["name"]?.text == "read_address")
            #expect(call["hasCoreDump"]?.isTrue == true)
            let id = try #require(call["id"]?.integer)
            let dump = try await server.client.request("GET", "/v1/calls/\(id)/core-dump")
            #expect(dump.status == 200 && dump.body.starts(with: [0x7f] + Array("ELF".utf8)))
            try await server.expect(422, "guestFault", "GET", "/v1/calls/\(id)/result")
            try await server.expect(409, "callFinished", "POST", "/v1/calls/\(id)/kill")
        }
    }

    @Test func `output with anything in it comes as it was written, while it is written`() async throws {
        try await TestServer.with { server in
            try await server.upload("hello")
            let name = #"</script><script>alert(1)</script>\u001b[2J"#
            let json = #"""
                {"module": "hello", "function": "greet", "returns": "void",
                 "arguments": [{"type": "string", "value": "\#(name)"}]}
                """#
            let call = try await server.request("POST", "/v1/calls", json: json, status: 201)
            let id = try #require(call["id"]?.integer)
            var text: [UInt8] = []
            try await server.client.events("/v1/calls/\(id)/output/events") { name, data in
                guard name == "output", let piece = try? JSONNode(data) else { return name != "end" }
                text += Data(base64Encoded: piece["base64"]?.text ?? "") ?? Data()
                return true
            }
            #expect(String(decoding: text, as: UTF8.self) == "Hello, </script><script>alert(1)</script>\u{1b}[2J!\n")
        }
    }

    @Test func `the page may run nothing but what was in it from the beginning`() async throws {
        try await TestServer.with { server in
            let first = try await server.client.request("GET", "/")
            let second = try await server.client.request("GET", "/")
            let policy = try #require(first.headers["content-security-policy"])
            let nonce = try #require(policy.firstMatch(of: /script-src 'nonce-([a-z0-9]+)'/)?.1)
            #expect(policy.hasPrefix("default-src 'none'") && !policy.contains("unsafe"))
            #expect(policy != second.headers["content-security-policy"])
            let text = String(decoding: first.body, as: UTF8.self)
            #expect(text.components(separatedBy: "nonce=\"\(nonce)\"").count == 3 && !text.contains("{{"))
            #expect(first.headers["x-content-type-options"] == "nosniff")
            // Nothing from elsewhere, nothing that makes markup of text.
            for word in ["src=", "http://", "https://", "innerHTML", "outerHTML", "insertAdjacent", "document.write"] {
                let rest = text.replacingOccurrences(of: "http://www.w3.org/2000/svg", with: "")
                #expect(!rest.contains(word), "\(word)")
            }
        }
    }

    @Test func `metrics are in the format that Prometheus reads`() async throws {
        try await TestServer.with { server in
            try await server.upload("spin")
            let json = #"{"module": "spin", "function": "answer"}"#
            for _ in 0..<3 {
                try await server.request("POST", "/v1/calls?waitMicroseconds=1e7", json: json, status: 201)
            }
            let answer = try await server.client.request("GET", "/metrics")
            #expect(answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8")
            let text = String(decoding: answer.body, as: UTF8.self)
            #expect(text.contains("microvm_calls_total{module=\"spin\",outcome=\"returned\"} 3\n"))
            #expect(text.contains("microvm_call_duration_seconds_bucket{le=\"+Inf\"} 3\n"))
            var described: Set<Substring> = []
            for line in text.split(separator: "\n") {
                if let match = line.wholeMatch(of: /# (?:HELP|TYPE) ([a-z_]+) .+/) {
                    described.insert(match.1)
                    continue
                }
                let sample = /([a-z_]+?)(?:_bucket|_sum|_count)?(?:\{[a-z]+="[^"]*"(?:,[a-z]+="[^"]*")*\})? [0-9.e+-]+/
                let name = line.wholeMatch(of: sample)?.1
                #expect(name.map { described.contains($0) || described.contains($0 + "_count") } == true, "\(line)")
            }
        }
    }
}
#endif
