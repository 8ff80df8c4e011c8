import CShims
import Glibc
import SystemPackage

/// A listening socket, and what is done with those who connect.
struct DebugSocket: Sendable {
    struct Ready {
        var hasConnection: Bool
        var hasEvent: Bool
        var hasInput: Bool
    }

    let address: DebugServer.Address
    private let listener: FileDescriptor

    /// How long a client may take nothing of what it is sent, in milliseconds.
    private static let patience: Int32 = 10_000

    init(listeningOn address: DebugServer.Address) throws(SandboxError) {
        do {
            switch address {
            case .loopback(let port): (listener, self.address) = try Self.listen(port: port)
            case .unixSocket(let path):
                listener = try Self.listen(path: path)
                self.address = address
            }
        } catch {
            throw SandboxError(
                .systemCallFailed,
                "The debug server cannot listen on \(address).",
                underlyingError: error
            )
        }
    }

    private static func listen(port: UInt16) throws(Errno) -> (FileDescriptor, DebugServer.Address) {
        let listener = try open(AF_INET)
        do throws(Errno) {
            // The address of a server that has just closed is free again.
            set(SO_REUSEADDR, SOL_SOCKET, of: listener.rawValue, to: Int32(1))
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            address.sin_port = port.bigEndian
            address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
            var size = socklen_t(MemoryLayout<sockaddr_in>.size)
            try check(
                unsafe withUnsafePointer(to: address) { pointer in
                    // A sockaddr_in is what the call takes for this family.
                    unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                        unsafe bind(listener.rawValue, address, size)
                    }
                }
            )
            try check(
                unsafe withUnsafeMutablePointer(to: &address) { pointer in
                    unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                        unsafe getsockname(listener.rawValue, address, &size)
                    }
                }
            )
            try check(Glibc.listen(listener.rawValue, 1))
            return (listener, .loopback(port: UInt16(bigEndian: address.sin_port)))
        } catch {
            try? listener.close()
            throw error
        }
    }

    private static func listen(path: FilePath) throws(Errno) -> FileDescriptor {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.string.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path), !bytes.isEmpty else {
            throw .fileNameTooLong
        }
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
        let listener = try open(AF_UNIX)
        do throws(Errno) {
            // The owner's alone from the first moment on: nobody can connect before the socket listens.
            try check(
                unsafe withUnsafePointer(to: address) { pointer in
                    unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                        unsafe bind(listener.rawValue, address, socklen_t(MemoryLayout<sockaddr_un>.size))
                    }
                }
            )
            do throws(Errno) {
                try check(unsafe chmod(path.string, 0o600))
                try check(Glibc.listen(listener.rawValue, 1))
            } catch {
                unsafe unlink(path.string)
                throw error
            }
            return listener
        } catch {
            try? listener.close()
            throw error
        }
    }

    private static func open(_ family: Int32) throws(Errno) -> FileDescriptor {
        let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        let descriptor = socket(family, type, 0)
        try check(descriptor)
        return FileDescriptor(rawValue: descriptor)
    }

    private static func set<Value: BitwiseCopyable>(
        _ option: Int32,
        _ level: Int32,
        of descriptor: Int32,
        to value: Value
    ) {
        var value = value
        unsafe _ = setsockopt(descriptor, level, option, &value, socklen_t(MemoryLayout<Value>.size))
    }

    private static func check(_ result: Int32) throws(Errno) {
        if result < 0 { throw Errno(rawValue: errno) }
    }

    func close() {
        try? listener.close()
        if case .unixSocket(let path) = address { unsafe _ = unlink(path.string) }
    }

    /// Sleeps until somebody connects, the client has sent something or is gone, or the event is set.
    func wait(for client: FileDescriptor?, _ event: DebugEvent) -> Ready {
        let readable = Int16(POLLIN)
        var descriptors = [
            pollfd(fd: listener.rawValue, events: readable, revents: 0),
            pollfd(fd: event.descriptor, events: readable, revents: 0),
            // A negative one is ignored.
            pollfd(fd: client?.rawValue ?? -1, events: readable, revents: 0),
        ]
        unsafe descriptors.withUnsafeMutableBufferPointer { unsafe _ = poll($0.baseAddress, nfds_t($0.count), -1) }
        return Ready(
            hasConnection: descriptors[0].revents != 0,
            hasEvent: descriptors[1].revents != 0,
            hasInput: descriptors[2].revents != 0
        )
    }

    /// Takes a client that waits, if one still does.
    func accept() -> FileDescriptor? {
        let descriptor = shim_accept(listener.rawValue)
        guard descriptor >= 0 else { return nil }
        // Of no use to a socket in the file system, and refused there.
        Self.set(TCP_NODELAY, Int32(IPPROTO_TCP), of: descriptor, to: Int32(1))
        return FileDescriptor(rawValue: descriptor)
    }

    /// What a client has sent; nothing when it has gone.
    static func receive(from client: FileDescriptor) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0, count: GDBPackets.maximumSize)
        let count = unsafe bytes.withUnsafeMutableBytes { buffer in
            unsafe recv(client.rawValue, buffer.baseAddress, buffer.count, 0)
        }
        return count > 0 ? Array(bytes[..<count]) : nil
    }

    /// Sends all of the bytes, unless the client takes none for long, or none at once when the event is set. Whether
    /// the client is still there.
    static func send(_ bytes: [UInt8], to client: FileDescriptor, until event: DebugEvent) -> Bool {
        var sent = 0
        while sent < bytes.count {
            let count = unsafe bytes.withUnsafeBytes { buffer in
                let rest = unsafe UnsafeRawBufferPointer(rebasing: buffer[sent...])
                let flags = Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT)
                return unsafe Glibc.send(client.rawValue, rest.baseAddress, rest.count, flags)
            }
            if count > 0 {
                sent += count
            } else {
                guard count < 0, errno == EAGAIN, waitForRoom(at: client, event) else { return false }
            }
        }
        return true
    }

    private static func waitForRoom(at client: FileDescriptor, _ event: DebugEvent) -> Bool {
        var descriptors = [
            pollfd(fd: client.rawValue, events: Int16(POLLOUT), revents: 0),
            pollfd(fd: event.descriptor, events: Int16(POLLIN), revents: 0),
        ]
        unsafe descriptors.withUnsafeMutableBufferPointer {
            unsafe _ = poll($0.baseAddress, nfds_t($0.count), patience)
        }
        return descriptors[0].revents != 0
    }
}
