import ArgumentParser
import MicroVM
import SystemPackage

/// How GDB may attach to a run.
struct DebuggerOptions: Sendable {
    var address: DebugServer.Address
    /// Whether nothing runs before it has, and faults are kept for it.
    var waits: Bool

    /// A number is a port, and everything else a path.
    static func address(parsing text: String) throws -> DebugServer.Address {
        if let port = UInt16(text) { return .loopback(port: port) }
        guard !text.isEmpty, text.contains("/") || !text.allSatisfy(\.isNumber) else {
            throw ValidationError("'\(text)' is neither a port, from 0 to 65535, nor a path.")
        }
        return .unixSocket(FilePath(text))
    }

    /// Starts the server, and tells how to attach.
    func start(for sandbox: Sandbox) throws -> DebugServer {
        let server = try sandbox.debugServer(on: address, holding: waits ? [.nextCall, .faults] : [])
        StandardStream.error.write(
            """
            Waiting for GDB: \(server.command)
            It finds the symbols by itself; any other debugger is given them by: \(server.addSymbolFileCommand)

            """
        )
        return server
    }
}
