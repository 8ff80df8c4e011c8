import MicroVM
import SystemPackage

/// Reads the arguments that are files, and tells how much room all of them take in the guest.
struct ArgumentBytes {
    /// The arguments in the form in which they are passed.
    private(set) var values: [any GuestValue] = []
    /// What the argument arena must hold, in bytes: each string and byte array with a zero byte behind it, at an
    /// address that is a multiple of 16.
    private(set) var arenaSize: UInt64 = 0

    /// - Parameter limit: the number of bytes that all of them may have together.
    init(reading specifications: [ArgumentSpecification], limit: UInt64) throws(CommandFailure) {
        for specification in specifications {
            switch specification {
            case .value(let value):
                values.append(value)
                if let text = value as? String { try add(text.utf8.count, limit, "the strings") }
            case .file(let path):
                let bytes = try Self.read(path.printable, limit) { try FileDescriptor.open(FilePath(path), .readOnly) }
                try add(bytes.count, limit, path.printable)
                values.append(bytes)
            case .standardInput:
                let bytes = try Self.read("standard input", limit) { try FileDescriptor.standardInput.duplicate() }
                try add(bytes.count, limit, "standard input")
                values.append(bytes)
            }
        }
    }

    private mutating func add(_ count: Int, _ limit: UInt64, _ name: String) throws(CommandFailure) {
        arenaSize += (UInt64(count) + 16) & ~15
        if arenaSize > limit { throw Self.tooLarge(name, limit) }
    }

    private static func tooLarge(_ name: String, _ limit: UInt64) -> CommandFailure {
        CommandFailure(
            .usage,
            "argumentTooLarge",
            "With \(name) the arguments are larger than \(ByteCount(limit)); raise --memory."
        )
    }

    private static func read(
        _ name: String,
        _ limit: UInt64,
        open: () throws -> FileDescriptor
    ) throws(CommandFailure) -> [UInt8] {
        do {
            let file = try open()
            return try file.closeAfter {
                var bytes: [UInt8] = []
                let size = 1 << 18
                while true {
                    let piece = unsafe try [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
                        // The buffer is what the read is bounded by, and `count` what it has written.
                        count = unsafe try file.read(into: UnsafeMutableRawBufferPointer(buffer))
                    }
                    if piece.isEmpty { return bytes }
                    bytes += piece
                    if UInt64(bytes.count) > limit { throw tooLarge(name, limit) }
                }
            }
        } catch let failure as CommandFailure {
            throw failure
        } catch {
            throw CommandFailure(.usage, "unreadableArgument", "\(name) cannot be read: \(error).")
        }
    }
}
