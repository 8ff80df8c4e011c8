import Glibc
public import SystemPackage

/// When and where a sandbox writes core dumps by itself; see ``SandboxConfiguration/coreDumps``.
///
/// Each is a new file with a name like `microvm-plugin.so-4711-1.core`: the module, the process and a number, none of
/// which ever replaces another file. Nothing is deleted to make room: once the directory is full, what came first is
/// what there is, until somebody takes it away.
public struct CoreDumpPolicy: Sendable, Hashable {
    /// Where the files go: a directory that is there and may be written.
    public var directory: FilePath
    /// How many core dumps of this library's, of any process, the directory may hold for another one to be written, at
    /// least 1; 16 unless set. Processes that write at the same moment may exceed it by one each.
    public var maximumCount = 16
    /// The bytes that one file may take on the disk, 65,536 at least, of what ``Sandbox/coreDump(to:maximumSize:)``
    /// says; 256 MiB unless set.
    public var maximumSize: UInt64 = 256 << 20
    /// Whether calls that are killed, cancelled or ended by a limit are dumped, and not only faults; false unless set.
    /// Such calls then end only when the file is written.
    public var includesKills = false

    /// Core dumps of faults, in a directory.
    public init(directory: FilePath) { self.directory = directory }

    func validate() throws(SandboxError) {
        guard maximumCount >= 1, maximumSize >= 65536 else {
            throw SandboxError(
                .invalidConfiguration,
                """
                Core dumps are limited to \(maximumCount) of \(maximumSize) bytes; there must be room for 1 of 65536 \
                at least.
                """
            )
        }
    }
}

extension CoreDumpPolicy {
    private static let prefix = "microvm-"
    private static let suffix = ".core"
    /// Held while files are counted and one is made, so that the limit holds within the process.
    private static let number = Locked(0)

    /// Makes the next file, unless the directory is full.
    func createFile(module: String) throws(SandboxError) -> CoreDumpFile {
        let name = Self.prefix + Self.fileName(module) + "-\(getpid())-"
        return try Self.number.withLock { number throws(SandboxError) in
            let count = try Errand.run { () throws(SandboxError) in try existingCount() }
            guard count < maximumCount else {
                throw SandboxError(
                    .systemCallFailed,
                    "\(directory) holds \(count) core dumps, and maximumCount allows no more.",
                    underlyingError: Errno.noSpace
                )
            }
            // Another process can have had the same number, and left files.
            for _ in 0..<1000 {
                number += 1
                do throws(SandboxError) {
                    return try CoreDumpFile(directory.appending("\(name)\(number)\(Self.suffix)"))
                } catch {
                    guard error.underlyingError as? Errno == .fileExists else { throw error }
                }
            }
            throw SandboxError(.systemCallFailed, "\(directory) has no name left.", underlyingError: Errno.fileExists)
        }
    }

    private func existingCount() throws(SandboxError) -> Int {
        // The stream is this function's until it is closed, and an entry good until the next one is read.
        guard let stream = unsafe opendir(directory.string) else {
            throw SandboxError(
                .systemCallFailed,
                "Core dumps cannot be written to \(directory).",
                underlyingError: Errno(rawValue: errno)
            )
        }
        defer { unsafe _ = closedir(stream) }
        var count = 0
        while let entry = unsafe readdir(stream) {
            let name = unsafe withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
                unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name.hasPrefix(Self.prefix), name.hasSuffix(Self.suffix) { count += 1 }
        }
        return count
    }

    /// A module's name as part of a file's.
    private static func fileName(_ name: String) -> String {
        let allowed = name.unicodeScalars.prefix(64).map { scalar -> Character in
            switch scalar {
            case "a"..."z", "A"..."Z", "0"..."9", ".", "_": Character(scalar)
            default: "_"
            }
        }
        return String(allowed)
    }
}
