#if Server
import Foundation
import Glibc
import MicroVM
import SystemPackage
import Testing

@testable import MicroVMServer
@testable import MicroVMSupervisor

/// Clients that do what clients should not.
@Suite(.requiresKVM, .timeLimit(.minutes(2))) struct HostileClientTests {
    @Test func `what is wrong with a request is said with a status and a code`() async throws {
        try await TestServer.with { server in
            try await server.upload("spin")
            let module = Array(try Data(contentsOf: URL(filePath: "\(GuestImages.directory)/spin.so")))
            let cases: [(Int, String, String, String, String?)] = [
                (404, "unknownResource", "GET", "/nothing", nil),
                (404, "unknownResource", "PUT", "/v1/calls", nil),
                (404, "unknownCall", "GET", "/v1/calls/999999", nil),
                (404, "unknownCall", "GET", "/v1/calls/abc", nil),
                (404, "unknownCall", "GET", "/v1/calls/-1", nil),
                (404, "unknownCall", "GET", "/v1/calls/99999999999999999999999", nil),
                (404, "unknownCall", "POST", "/v1/calls/999999/kill", nil),
                (404, "unknownModule", "GET", "/v1/modules/none", nil),
                (404, "unknownSnapshot", "DELETE", "/v1/snapshots/7", nil),
                (400, "invalidRequest", "GET", "/v1/calls?state=odd", nil),
                (400, "invalidRequest", "GET", "/v1/calls?finished=-1", nil),
                (400, "invalidRequest", "GET", "/v1/calls?unknown=1", nil),
                (400, "invalidRequest", "GET", "/v1/history?limit=100000", nil),
                (400, "invalidRequest", "POST", "/v1/calls", ""),
                (400, "invalidRequest", "POST", "/v1/calls", "{"),
                (400, "invalidRequest", "POST", "/v1/calls", "[]"),
                (400, "invalidRequest", "POST", "/v1/calls", #"{"module": "spin"}"#),
                (400, "invalidRequest", "POST", "/v1/calls", #"{"module": 1, "function": "answer"}"#),
                (400, "invalidRequest", "POST", "/v1/calls", #"{"module": "spin", "function": "answer", "x": 1}"#),
                (
                    400, "invalidRequest", "POST", "/v1/calls",
                    #"{"module": "spin", "function": "answer", "returns": "i128"}"#
                ),
                (
                    400, "invalidRequest", "POST", "/v1/calls",
                    #"{"module": "spin", "function": "answer", "arguments": [{"type": "i8", "value": 300}]}"#
                ),
                (
                    400, "invalidRequest", "POST", "/v1/calls",
                    #"{"module": "spin", "function": "answer", "arguments": [{"type": "bytes", "value": "?"}]}"#
                ),
                (
                    400, "invalidRequest", "POST", "/v1/calls",
                    #"{"module": "spin", "function": "answer", "limits": {"timeMicroseconds": -1}}"#
                ),
                (
                    400, "invalidRequest", "POST", "/v1/calls",
                    #"{"module": "spin", "function": "answer", "limits": {"timeMicroseconds": 1e300}}"#
                ),
                (404, "unknownModule", "POST", "/v1/calls", #"{"module": "../x", "function": "answer"}"#),
                (422, "unknownFunction", "POST", "/v1/calls", #"{"module": "spin", "function": "none"}"#),
                (422, "unknownFunction", "POST", "/v1/modules/spin/functions/none", ""),
                (400, "invalidRequest", "PATCH", "/v1/modules/spin", #"{"minimum": 5, "maximum": 1}"#),
                (400, "invalidRequest", "PATCH", "/v1/modules/spin", #"{"minimum": 0, "maximum": 1000000000}"#),
                (422, "invalidModule", "PUT", "/v1/modules/new", "this is no module"),
                (422, "invalidModule", "PUT", "/v1/modules/new", ""),
                (400, "invalidRequest", "PUT", "/v1/modules/.hidden", "x"),
                (400, "invalidRequest", "PUT", "/v1/modules/a%2Fb", "x"),
                (400, "invalidRequest", "PUT", "/v1/modules/..%2f..%2fetc", "x"),
                (400, "invalidRequest", "PUT", "/v1/modules/%00", "x"),
                (400, "invalidRequest", "PUT", "/v1/modules/new?poolMaximum=0", "x"),
                (400, "invalidRequest", "PUT", "/v1/modules/new?memoryBytes=99999999999999", "x"),
                (409, "moduleExists", "PUT", "/v1/modules/spin", "x"),
            ]
            for (status, code, method, path, body) in cases {
                try await server.expect(status, code, method, path, body: body.map { Array($0.utf8) })
            }
            try await server.expect(409, "moduleExists", "PUT", "/v1/modules/spin", body: module)
            // Nothing of all that was stored or has begun.
            #expect(try await server.request("GET", "/v1/modules")["modules"]?.elements.count == 1)
            #expect(await server.supervisor.statistics.totals.accepted == 0)
        }
    }

    @Test func `modules that need what nobody gives, or whose initialisers do not end, are not kept`() async throws {
        try await TestServer.with(configure: { $0.initializerTime = .milliseconds(50) }) { server in
            for (name, code) in [
                ("missing_import", "missingImports"), ("spin_in_initializer", "timeLimitExceeded"),
                ("fault_in_initializer", "guestFault"),
            ] {
                let bytes = Array(try Data(contentsOf: URL(filePath: "\(GuestImages.directory)/\(name).so")))
                try await server.expect(422, code, "PUT", "/v1/modules/\(name)", body: bytes)
            }
            #expect(try await server.request("GET", "/v1/modules")["modules"]?.elements.isEmpty == true)
        }
    }

    @Test func `bodies that are too large are refused before they are read, whether they say so or not`() async throws {
        try await TestServer.with(configure: {
            $0.maximumModuleSize = 1 << 20
            $0.maximumBodySize = 10_000
        }) { server in
            let large = [UInt8](repeating: 32, count: 10_001)
            try await server.expect(413, "bodyTooLarge", "POST", "/v1/calls", body: large)
            let socket = try RawConnection(server)
            try socket.write("PUT /v1/modules/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
            #expect(try socket.readAll().hasPrefix("HTTP/1.1 413 "))
            let chunked = try RawConnection(server)
            try chunked.write("PUT /v1/modules/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            let piece = "10000\r\n" + String(repeating: "x", count: 0x10000) + "\r\n"
            // Until the other side has had enough.
            for _ in 0..<64 where (try? chunked.write(piece)) == nil { break }
            #expect(try chunked.readAll().hasPrefix("HTTP/1.1 413 "))
            try await server.request("GET", "/health/ready", status: 200)
        }
    }

    @Test func `bodies that do not come are not waited for`() async throws {
        try await TestServer.with(configure: { $0.bodyTime = .milliseconds(50) }) { server in
            let socket = try RawConnection(server)
            try socket.write("POST /v1/calls HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            #expect(try socket.readAll().hasPrefix("HTTP/1.1 408 "))
        }
    }

    @Test func `connections that say nothing, or not enough, are closed`() async throws {
        try await TestServer.with(configure: { $0.idleTime = .milliseconds(50) }) { server in
            let silent = try RawConnection(server)
            #expect(try silent.readAll() == "")
            let half = try RawConnection(server)
            try half.write("GET /v1/calls HTTP/1.1\r\nHost: loc")
            #expect(try half.readAll().contains("200") == false)
        }
    }

    @Test func `what is not HTTP, or not UTF-8, is refused`() async throws {
        try await TestServer.with { server in
            for text in [
                "nonsense\r\n\r\n", "GET\r\n\r\n", "\0\0\0\0\r\n\r\n",
                "GET /v1/calls HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
                "POST /v1/calls HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                "GET / HTTP/1.1\r\nHost: localhost\r\nX: " + String(repeating: "a", count: 200_000) + "\r\n\r\n",
            ] {
                let socket = try RawConnection(server)
                // It may hang up before it has heard everything.
                try? socket.write(text)
                let answer = try socket.readAll()
                #expect(answer.isEmpty || answer.hasPrefix("HTTP/1.1 4"), "\(text.prefix(20)): \(answer)")
            }
            try await server.upload("echo")
            for body in [[UInt8]([0x22, 0xff, 0xfe, 0x22]), [0xc0, 0x80], Array("{\"module\": \"\u{0}\"".utf8)] {
                try await server.expect(400, "invalidRequest", "POST", "/v1/calls", body: body)
            }
            let deep = String(repeating: "[", count: 100_000)
            try await server.expect(400, "invalidRequest", "POST", "/v1/calls", body: Array(deep.utf8))
            for path in [
                "/../../etc/passwd", "/v1/modules/../calls", "//", "/%2e%2e/%2e%2e", "/v1//calls", "/?x=%ff%00",
            ] {
                let answer = try await server.client.request("GET", path)
                #expect([200, 400, 404].contains(answer.status), "\(path)")
                #expect(!String(decoding: answer.body, as: UTF8.self).contains("root:"))
            }
        }
    }

    @Test func `pages of other sites, and names that point here, get nothing`() async throws {
        try await TestServer.with { server in
            func status(_ headers: String) throws -> String {
                let socket = try RawConnection(server)
                try socket.write(
                    "POST /v1/calls/1/kill HTTP/1.1\r\n\(headers)Connection: close\r\nContent-Length: 0\r\n\r\n"
                )
                return String(try socket.readAll().dropFirst(9).prefix(3))
            }
            for (headers, expected) in [
                ("Host: localhost\r\n", "404"),
                ("Host: localhost:8080\r\nOrigin: http://localhost:8080\r\n", "404"),
                ("Host: 127.0.0.1\r\n", "404"),
                ("Host: [::1]:80\r\n", "404"),
                ("Host: localhost\r\nOrigin: http://evil.example\r\n", "403"),
                ("Host: localhost\r\nOrigin: null\r\n", "403"),
                ("Host: evil.example\r\n", "421"),
                ("Host: localhost.evil.example\r\n", "421"),
            ] {
                let answer = try status(headers)
                #expect(answer == expected, "\(headers)")
            }
        }
    }

    @Test func `on TCP nothing goes without the token, but whether the server is well`() async throws {
        let token = "a token of sufficient length".replacingOccurrences(of: " ", with: "-")
        #expect(throws: ServerError.self) {
            var configuration = ServerConfiguration(address: .tcp(host: "127.0.0.1", port: 0))
            configuration.token = "short"
            _ = try SupervisorServer(configuration)
        }
        try await TestServer.with(token: token) { server in
            try await server.request("GET", "/v1/calls", status: 200)
            var stranger = server.client
            for wrong in [nil, "", "a", token.dropLast().description, token + "x", token.uppercased()] {
                stranger.token = wrong
                for path in ["/v1/calls", "/v1/events", "/metrics", "/v1/nothing", "/health", "//health/live"] {
                    let answer = try await stranger.request("GET", path)
                    #expect(answer.status == 401, "\(path)")
                    APIDescription.shared.check("GET", path, answer)
                }
                #expect(try await stranger.request("GET", "/health/live").status == 200)
            }
            #expect(TokenMiddleware.isEqual(Array("abc".utf8), Array("abc".utf8)))
            #expect(!TokenMiddleware.isEqual(Array("abcabc".utf8), Array("abc".utf8)))
            #expect(!TokenMiddleware.isEqual([], []))
        }
    }
}

/// A connection over which anything can be said.
final class RawConnection {
    private let descriptor: Int32

    init(_ server: TestServer) throws {
        let path = server.directory.appending("socket").string
        descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        let capacity = MemoryLayout.size(ofValue: address.sun_path)
        try #require(bytes.count < capacity)
        // The path fits, and the structure outlives the call.
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
        let result = unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        try #require(result == 0)
        var limit = timeval(tv_sec: 20, tv_usec: 0)
        // Likewise.
        unsafe _ = setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        unsafe _ = setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { close(descriptor) }

    struct Closed: Error {}

    func write(_ text: String) throws {
        var bytes = Array(text.utf8)[...]
        while !bytes.isEmpty {
            // The bytes outlive the call, which is told their number.
            let count = unsafe bytes.withUnsafeBytes {
                unsafe send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { throw Closed() }
            bytes = bytes.dropFirst(count)
        }
    }

    /// What comes until the other side closes.
    func readAll() throws -> String {
        var text: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        while true {
            // Likewise.
            let count = unsafe recv(descriptor, &buffer, buffer.count, 0)
            if count < 0, errno == EAGAIN { throw Closed() }
            guard count > 0 else { return String(decoding: text, as: UTF8.self) }
            text += buffer[..<count]
        }
    }
}
#endif
