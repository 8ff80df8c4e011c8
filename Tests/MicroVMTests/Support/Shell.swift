import Glibc
import SystemPackage

/// Runs commands of the system in a folder of its own, which goes with this value.
final class Workshop {
    let folder: FilePath

    init() throws {
        var template = Array("/tmp/microvm-tests-XXXXXX".utf8CString)
        // A zero-terminated array of the required form, which outlives the call.
        guard unsafe mkdtemp(&template) != nil else { throw Errno(rawValue: errno) }
        folder = FilePath(String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self))
    }

    deinit { _ = run("rm -rf '\(folder)'") }

    func run(_ command: String) -> Bool {
        // `system` only reads the command.
        unsafe system("cd '\(folder)' && { \(command) ; } 2>/dev/null") == 0
    }

    func write(_ bytes: [UInt8], _ name: String) throws {
        let file = try FileDescriptor.open(
            folder.appending(name),
            .writeOnly,
            options: [.create, .truncate],
            permissions: .ownerReadWrite
        )
        _ = try file.closeAfter { try file.writeAll(bytes) }
    }

    func read(_ name: String) throws -> [UInt8] { try contents(of: folder.appending(name)) }
}

/// All bytes of a file.
func contents(of path: FilePath) throws -> [UInt8] {
    let file = try FileDescriptor.open(path, .readOnly)
    return try file.closeAfter {
        let size = Int(try file.seek(offset: 0, from: .end))
        try file.seek(offset: 0, from: .start)
        return unsafe try [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
            // Each read is bounded by what is left of the buffer, and `count` is what has been written.
            let raw = UnsafeMutableRawBufferPointer(buffer)
            while count < size {
                let read = unsafe try file.read(into: UnsafeMutableRawBufferPointer(rebasing: raw[count...]))
                guard read > 0 else { break }
                count += read
            }
        }
    }
}
