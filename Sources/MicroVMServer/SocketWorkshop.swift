#if Server
import Glibc
import SystemPackage

/// Where a socket is made that nobody else may connect to, at no moment: a directory of this user's alone, from which
/// it is moved to its place when its mode is right. The process's mode mask, which all threads share, stays as it is.
final class SocketWorkshop: Sendable {
    private static let template = ".microvm-XXXXXX"

    /// Where it ends.
    private let place: FilePath
    private let directory: FilePath
    /// Where it is to be made.
    var socket: FilePath { directory.appending("s") }

    /// A path as long as that of the socket while it is made.
    static func path(for place: FilePath) -> FilePath {
        place.removingLastComponent().appending(template).appending("s")
    }

    /// - Throws: ``ServerError`` where there is something at its place that is no socket, or no directory can be made.
    init(_ place: FilePath) throws(ServerError) {
        self.place = place
        var status = stat()
        // Both outlive the call.
        if unsafe lstat(place.string, &status) == 0, status.st_mode & mode_t(S_IFMT) != mode_t(S_IFSOCK) {
            throw ServerError("\(place) is there already, and is no socket.")
        }
        var template = Array(place.removingLastComponent().appending(Self.template).string.utf8CString)
        // A zero-terminated array of the required form, which outlives the call.
        guard unsafe mkdtemp(&template) != nil else {
            throw ServerError("The socket \(place) cannot be made. (\(Errno(rawValue: errno)))")
        }
        directory = FilePath(String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self))
    }

    deinit { removeDirectory() }

    /// Puts the socket into its place, where a server that was killed may have left one.
    ///
    /// - Throws: ``ServerError`` where that cannot be done: nobody would find the server.
    func complete() throws(ServerError) {
        defer { removeDirectory() }
        // The paths outlive the calls.
        guard unsafe chmod(socket.string, 0o600) == 0, unsafe rename(socket.string, place.string) == 0 else {
            throw ServerError("The socket \(place) cannot be made. (\(Errno(rawValue: errno)))")
        }
    }

    private func removeDirectory() {
        // As above. Neither is there any more, as a rule.
        unsafe _ = unlink(socket.string)
        unsafe _ = rmdir(directory.string)
    }
}
#endif
