#if Server
import ArgumentParser
import Glibc
import MicroVM
import MicroVMServer
import SystemPackage

/// Where the server is that a command talks to.
struct ClientOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            """
            The server: the path of its socket, or http://HOST:PORT. MICROVM_SERVER unless given, or the socket in \
            XDG_RUNTIME_DIR, or /run/microvm.sock for root.
            """,
            valueName: "path|URL"
        )
    )
    var server: String?

    @Option(
        help: ArgumentHelp(
            "A file with the token that the server wants; MICROVM_TOKEN holds the token itself.",
            valueName: "file"
        ),
        completion: .file()
    )
    var tokenFile: String?

    @Flag(help: "Write JSON, as the server sends it.")
    var json = false

    func client() throws(CommandFailure) -> APIClient {
        let environment = Environment.all
        let address: ServerConfiguration.Address
        if let text = server ?? environment["MICROVM_SERVER"] {
            address = try Self.address(text)
        } else if let path = ServerConfiguration.defaultSocket(environment, isRoot: geteuid() == 0) {
            address = .socket(path)
        } else {
            throw CommandFailure(
                .usage,
                "noServer",
                "Where is the server? Neither XDG_RUNTIME_DIR nor MICROVM_SERVER is set; write --server PATH."
            )
        }
        let token = try tokenFile.map { path throws(CommandFailure) in try TokenFile.read(path) }
        return APIClient(address, token: token ?? environment["MICROVM_TOKEN"])
    }

    /// A path or a URL.
    static func address(_ text: String) throws(CommandFailure) -> ServerConfiguration.Address {
        guard text.hasPrefix("http://") else { return .socket(FilePath(text)) }
        guard let (host, port) = hostAndPort(String(text.dropFirst(7).prefix { $0 != "/" })) else {
            throw CommandFailure(.usage, "invalidServer", "“\(text.printable)” is no address; write http://HOST:PORT.")
        }
        return .tcp(host: host, port: port)
    }

    /// `127.0.0.1:8080` or `[::1]:8080`.
    static func hostAndPort(_ text: String) -> (host: String, port: Int)? {
        guard let colon = text.lastIndex(of: ":"), let port = UInt16(text[text.index(after: colon)...]) else {
            return nil
        }
        var host = text[..<colon]
        if host.hasPrefix("["), host.hasSuffix("]") { host = host.dropFirst().dropLast() }
        return host.isEmpty ? nil : (String(host), Int(port))
    }
}

/// A file that holds a token.
enum TokenFile {
    static func read(_ path: String) throws(CommandFailure) -> String {
        do {
            let file = try FileDescriptor.open(FilePath(path), .readOnly)
            let bytes = try file.closeAfter {
                unsafe try [UInt8](unsafeUninitializedCapacity: 4096) { buffer, count in
                    // The buffer is what the read is bounded by, and `count` what it has written.
                    count = unsafe try file.read(into: UnsafeMutableRawBufferPointer(buffer))
                }
            }
            var token = String(decoding: bytes, as: UTF8.self)
            while token.last?.isWhitespace == true { token.removeLast() }
            guard !token.isEmpty, token.utf8.allSatisfy({ $0 > 32 && $0 < 127 }) else {
                throw CommandFailure(.usage, "invalidToken", "\(path.printable) holds no token of printable ASCII.")
            }
            return token
        } catch let failure as CommandFailure {
            throw failure
        } catch {
            throw CommandFailure(.usage, "unreadableToken", "\(path.printable) cannot be read: \(error).")
        }
    }
}

/// The process's environment.
enum Environment {
    static var all: [String: String] {
        var variables: [String: String] = [:]
        // The list and its strings stay as they are: nothing in this process changes them.
        var position = unsafe environ
        while let entry = unsafe position.pointee {
            let text = unsafe String(cString: entry)
            if let equals = text.firstIndex(of: "=") {
                variables[String(text[..<equals])] = String(text[text.index(after: equals)...])
            }
            unsafe position += 1
        }
        return variables
    }
}
#endif
