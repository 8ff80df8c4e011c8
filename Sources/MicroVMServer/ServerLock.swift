#if Server
import Glibc
import SystemPackage

/// What only one server can have at a time: a file that is locked for as long as the process lives, however it ends.
final class ServerLock: Sendable {
    private let descriptor: Int32

    /// - Throws: ``ServerError`` where another server has it.
    init(_ path: FilePath, of what: String) throws {
        descriptor = unsafe open(path.string, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard descriptor >= 0 else {
            throw ServerError("\(path) cannot be opened (\(Errno(rawValue: errno))).")
        }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            let error = Errno(rawValue: errno)
            close(descriptor)
            throw ServerError(
                error == .wouldBlock
                    ? "Another server uses \(what): it holds \(path)." : "\(path) cannot be locked (\(error))."
            )
        }
    }

    /// Lets others have it, whoever still knows of this one. For good.
    func release() { flock(descriptor, LOCK_UN) }

    deinit { close(descriptor) }
}

/// Directories as a server needs them.
enum ServerDirectory {
    /// Makes a directory that only its owner may use, with those above it, unless it is there.
    static func make(_ path: FilePath) throws {
        if unsafe mkdir(path.string, 0o700) == 0 || errno == EEXIST { return }
        guard errno == ENOENT, path.components.count > 1 else {
            throw ServerError("The directory \(path) cannot be made (\(Errno(rawValue: errno))).")
        }
        try make(path.removingLastComponent())
        guard unsafe mkdir(path.string, 0o700) == 0 || errno == EEXIST else {
            throw ServerError("The directory \(path) cannot be made (\(Errno(rawValue: errno))).")
        }
    }
}
#endif
