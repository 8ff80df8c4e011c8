public import SystemPackage

/// Lets a debugger attach to a sandbox: GDB, or anything else that speaks its remote protocol.
///
/// ```swift
/// let server = try sandbox.debugServer(on: .loopback(port: 0))
/// print(server.command)           // gdb -ex 'target remote 127.0.0.1:41807'
/// ```
///
/// One debugger at a time can attach, at any moment, and leave again. While it is attached the sandbox is its own: it
/// stops the guest, reads and writes its registers and all of its memory, whatever the guest itself may do there. So
/// whoever can connect to the address owns the guest, and should be nobody else than the owner of the process.
///
/// A sandbox without an attached debugger runs as one without a server. Breakpoints are in the guest's memory only
/// while the guest runs: no snapshot contains one, and a restore removes none. Kills end a call that a debugger holds;
/// limits by the clock wait meanwhile.
public final class DebugServer: Sendable {
    /// Where a server listens.
    public enum Address: Sendable, Hashable {
        /// TCP on 127.0.0.1, which every user of the machine can reach; port 0 is any that is free.
        case loopback(port: UInt16)
        /// A socket in the file system, which only its owner can connect to. Nothing may be there before; it is removed
        /// when the server closes.
        case unixSocket(FilePath)
    }

    /// What is held until a debugger has attached and lets it go on.
    public struct Hold: OptionSet, Sendable {
        // swift-format-ignore: AllPublicDeclarationsHaveDocumentation
        public let rawValue: UInt8

        // swift-format-ignore: AllPublicDeclarationsHaveDocumentation
        public init(rawValue: UInt8) { self.rawValue = rawValue }

        /// The next call, or the initialisers, before any guest code runs.
        public static let nextCall = Hold(rawValue: 1)
        /// Each call that faults, before it ends. Where a debugger is attached that is so in any case.
        public static let faults = Hold(rawValue: 2)
    }

    /// Where the server listens; the port is the real one.
    public let address: Address
    private let core: DebugServerCore

    /// Whether a debugger is attached.
    public var isAttached: Bool { core.guest.debugger.isAttached }

    /// The shell command that attaches GDB, which finds the module and its symbols by itself.
    public var command: String {
        switch address {
        case .loopback(let port): "gdb -ex 'target remote 127.0.0.1:\(port)'"
        case .unixSocket(let path): "gdb -ex 'target remote \(path)'"
        }
    }

    /// The command inside a debugger that gives it the module's symbols, where it does not ask for them itself.
    public var addSymbolFileCommand: String { core.guest.symbols.addSymbolFile }

    init(_ reference: RunLoopReference, _ symbols: DebugSymbols, on address: Address, holding hold: Hold)
        throws(SandboxError)
    {
        let socket = try Errand.run { () throws(SandboxError) in try DebugSocket(listeningOn: address) }
        self.address = socket.address
        do throws(SandboxError) {
            core = try DebugServerCore(reference, symbols, socket, holding: hold)
            try core.start()
        } catch {
            socket.close()
            throw error
        }
    }

    /// Detaches the debugger, and lets nobody attach any more. The guest goes on.
    public func close() { core.close() }
}

extension Sandbox {
    /// Lets a debugger attach to this sandbox from now on, until the server is closed or the sandbox is gone.
    ///
    /// - Parameters:
    ///   - address: where to listen.
    ///   - hold: what is to wait for a debugger.
    /// - Throws: ``SandboxError/Code/systemCallFailed`` when the address is taken or cannot be used;
    ///   ``SandboxError/Code/busy`` when the sandbox has a server already; ``SandboxError/Code/closed``.
    @discardableResult
    public nonisolated func debugServer(
        on address: DebugServer.Address,
        holding hold: DebugServer.Hold = []
    ) throws(SandboxError) -> DebugServer {
        if interruptHandle.isDropped { throw SandboxError(.closed, "This sandbox has been closed.") }
        return try DebugServer(
            reference,
            DebugSymbols(module: module, addressSpace: reference.addressSpace),
            on: address,
            holding: hold
        )
    }
}

extension DebugSymbols {
    /// The debugger's command for the module's symbols.
    var addSymbolFile: String { "add-symbol-file \(module.path ?? module.name) -o 0x\(String(loadBias, radix: 16))" }
}
