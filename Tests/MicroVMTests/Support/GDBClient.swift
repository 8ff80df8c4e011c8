import Glibc
import SystemPackage
import Testing

@testable import MicroVM

/// Speaks GDB's remote protocol from the other side, as plainly as can be.
@safe final class GDBClient {
    struct Gone: Error {}

    private let descriptor: Int32
    private var input: [UInt8] = []
    /// What the server has said to the user since the last answer.
    private(set) var console = ""

    /// Connects, and turns acknowledgements off.
    init(_ server: DebugServer) async throws {
        descriptor = try Self.connect(server.address)
        #expect(try await exchange("QStartNoAckMode") == "OK")
        send("+")
    }

    init(rawly server: DebugServer) throws { descriptor = try Self.connect(server.address) }

    deinit { close(descriptor) }

    private static func connect(_ address: DebugServer.Address) throws -> Int32 {
        let descriptor: Int32
        let result: Int32
        switch address {
        case .loopback(let port):
            descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            address.sin_port = port.bigEndian
            address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
            // Of the family's own type, and as long as that.
            result = unsafe withUnsafePointer(to: address) { pointer in
                unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
        case .unixSocket(let path):
            descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
            var address = sockaddr_un()
            address.sun_family = sa_family_t(AF_UNIX)
            unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: path.string.utf8) }
            result = unsafe withUnsafePointer(to: address) { pointer in
                unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
                }
            }
        }
        try #require(result == 0)
        return descriptor
    }

    /// From now on what the server does not take at once is not sent.
    func makeNonblocking() { _ = fcntl(descriptor, F_SETFL, O_NONBLOCK) }

    /// Takes at most so many bytes of what has been sent, and forgets them.
    func drop(_ count: Int) {
        var buffer = [UInt8](repeating: 0, count: count)
        unsafe _ = buffer.withUnsafeMutableBytes {
            unsafe recv(descriptor, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT))
        }
    }

    func send(_ text: String) { sendBytes(Array(text.utf8)) }

    func sendBytes(_ bytes: [UInt8]) {
        // The server may be gone.
        unsafe _ = bytes.withUnsafeBytes {
            unsafe Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
        }
    }

    /// Sends a packet and waits for none in return.
    func tell(_ packet: String) { sendBytes(GDBPackets.frame(Array(packet.utf8))) }

    /// Sends a packet and takes the answer.
    func exchange(_ packet: String) async throws -> String {
        tell(packet)
        return try await receive()
    }

    /// The next packet that is not for the user to read.
    func receive() async throws -> String {
        console = ""
        while true {
            let packet = String(decoding: try await receivePacket(), as: UTF8.self)
            guard packet.hasPrefix("O"), packet != "OK", let bytes = GDBText.bytes(Array(packet.utf8)[1...]) else {
                return packet
            }
            console += String(decoding: bytes.compactMap(\.self), as: UTF8.self)
        }
    }

    func receivePacket() async throws -> [UInt8] {
        while true {
            if let start = input.firstIndex(of: UInt8(ascii: "$")), let end = input.firstIndex(of: UInt8(ascii: "#")),
                end + 2 < input.count
            {
                let packet = Array(input[(start + 1)..<end])
                input.removeSubrange(...(end + 2))
                return packet
            }
            var buffer = [UInt8](repeating: 0, count: 65536)
            let count = unsafe buffer.withUnsafeMutableBytes {
                unsafe recv(descriptor, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT))
            }
            if count < 0, errno == EAGAIN {
                // Where there is one processor, the guest's caller is waiting for this very thread.
                try await Task.sleep(for: .milliseconds(1))
                continue
            }
            guard count > 0 else { throw Gone() }
            input += buffer[..<count]
        }
    }

    /// Ctrl-C.
    func interrupt() async throws -> String {
        sendBytes([3])
        return try await receive()
    }

    /// Lets the guest go on, and waits until it is held again.
    func resume(_ action: String = "c") async throws -> String { try await exchange("vCont;\(action)") }

    // MARK: What is asked all the time

    func register(_ name: String) async throws -> UInt64 {
        let bytes = try await registerBytes(name)
        return bytes.prefix(8).reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    func registerBytes(_ name: String) async throws -> [UInt8] {
        let number = try #require(GDBRegisters.all.firstIndex { $0.name == name })
        let answer = try await exchange("p\(String(number, radix: 16))")
        return try #require(GDBText.bytes(Array(answer.utf8)[...])).compactMap(\.self)
    }

    @discardableResult
    func setRegister(_ name: String, _ bytes: [UInt8]) async throws -> String {
        let number = try #require(GDBRegisters.all.firstIndex { $0.name == name })
        let digits = String(decoding: GDBPackets.hexadecimal(bytes), as: UTF8.self)
        return try await exchange("P\(String(number, radix: 16))=\(digits)")
    }

    @discardableResult
    func setRegister(_ name: String, _ value: UInt64) async throws -> String {
        var bytes: [UInt8] = []
        bytes.append(value)
        return try await setRegister(name, bytes)
    }

    func memory(_ address: UInt64, _ count: Int) async throws -> [UInt8]? {
        let answer = try await exchange("m\(String(address, radix: 16)),\(String(count, radix: 16))")
        return GDBText.bytes(Array(answer.utf8)[...])?.compactMap(\.self)
    }

    func setMemory(_ address: UInt64, _ bytes: [UInt8]) async throws -> String {
        let digits = String(decoding: GDBPackets.hexadecimal(bytes), as: UTF8.self)
        return try await exchange("M\(String(address, radix: 16)),\(String(bytes.count, radix: 16)):\(digits)")
    }

    func setBreakpoint(_ address: UInt64) async throws {
        #expect(try await exchange("Z0,\(String(address, radix: 16)),1") == "OK")
    }
    func removeBreakpoint(_ address: UInt64) async throws {
        #expect(try await exchange("z0,\(String(address, radix: 16)),1") == "OK")
    }
}

extension Sandbox {
    /// The address of an export in the guest's memory.
    nonisolated func address(of name: String) throws -> UInt64 {
        try reference.addressSpace.imageBase + #require(module.export(named: name)).address
    }

    nonisolated func testServer(holding hold: DebugServer.Hold = []) throws -> DebugServer {
        try debugServer(on: .loopback(port: 0), holding: hold)
    }
}
