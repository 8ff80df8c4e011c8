#if Server
package import Logging
package import MicroVMSupervisor
package import SystemPackage

/// Where a server listens, and what it allows.
package struct ServerConfiguration: Sendable {
    /// Where a server is reached.
    package enum Address: Sendable, Hashable {
        /// A Unix socket, for the user who owns it.
        case socket(FilePath)
        /// A TCP port, for those who have the token.
        case tcp(host: String, port: Int)
    }

    /// Where it listens.
    package var address: Address
    /// What clients have to know; needed for TCP.
    package var token: String?
    /// Where modules, records of calls and core dumps are kept; in memory, and gone with the server, unless set.
    package var directory: FilePath?
    /// The bytes that an uploaded module may have; 64 MiB unless set.
    package var maximumModuleSize = 64 << 20
    /// The bytes that any other request's body may have; 8 MiB unless set.
    package var maximumBodySize = 8 << 20
    /// How long the body of a request may take; 30 seconds unless set.
    package var bodyTime = Duration.seconds(30)
    /// How long a connection may be idle, or a request's head may take; 60 seconds unless set.
    package var idleTime = Duration.seconds(60)
    /// How many clients may be connected at the same time; 512 unless set.
    package var maximumConnections = 512
    /// How many calls are kept on the disk; 100,000 unless set.
    package var recordedCalls = 100_000
    /// The bytes of memory of a guest, where its upload does not say; 64 MiB unless set.
    package var guestMemory: UInt64 = 64 << 20
    /// The bytes of memory that an upload may ask for; 4 GiB unless set.
    package var maximumGuestMemory: UInt64 = 4 << 30
    /// How many calls of one module may run at the same time, where its upload does not say; 4 unless set.
    package var poolSize = 4
    /// How large a pool may be made; 1,024 unless set.
    package var maximumPoolSize = 1024
    /// How long the initialisers of a module may run; 10 seconds unless set.
    package var initializerTime = Duration.seconds(10)
    /// How much guests leave the processors to the server and to others, from 0 to 19; 10 unless set.
    package var niceness = 10
    /// What each call may use.
    package var callLimits = CallLimits()
    /// What the supervisor allows.
    package var supervisor = SupervisorConfiguration()
    /// Where the server logs; nowhere unless set.
    package var logger: Logger?

    /// A server at an address, with the defaults.
    package init(address: Address) { self.address = address }

    /// Where a server listens unless it is told otherwise: in the user's run-time directory, or /run for root.
    package static func defaultSocket(_ environment: [String: String], isRoot: Bool) -> FilePath? {
        if let directory = environment["XDG_RUNTIME_DIR"], directory.hasPrefix("/") {
            return FilePath(directory).appending("microvm.sock")
        }
        return isRoot ? "/run/microvm.sock" : nil
    }

    /// Where a server keeps what it keeps unless it is told otherwise.
    package static func defaultDirectory(_ environment: [String: String], isRoot: Bool) -> FilePath? {
        if let directory = environment["XDG_STATE_HOME"], directory.hasPrefix("/") {
            return FilePath(directory).appending("microvm")
        }
        if isRoot { return "/var/lib/microvm" }
        guard let home = environment["HOME"], home.hasPrefix("/") else { return nil }
        return FilePath(home).appending(".local/state/microvm")
    }
}

/// Why a server does not begin, in a full sentence.
package struct ServerError: Error, CustomStringConvertible {
    package var description: String

    init(_ description: String) { self.description = description }
}
#endif
