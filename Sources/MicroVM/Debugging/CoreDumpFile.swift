import Glibc
import SystemPackage

/// A file that is being written; it goes again unless it is completed.
final class CoreDumpFile {
    let path: FilePath
    let descriptor: FileDescriptor
    private var isClosed = false
    private var isComplete = false

    /// Makes a file that nobody else may read, and that was not there before.
    init(_ path: FilePath) throws(SandboxError) {
        self.path = path
        do {
            // The guest's own thread, which this is as a rule, may be confined.
            descriptor = try Errand.run {
                try .open(
                    path,
                    .writeOnly,
                    options: [.create, .exclusiveCreate, .closeOnExec],
                    permissions: .ownerReadWrite
                )
            }
        } catch {
            throw SandboxError(.systemCallFailed, "\(path) cannot be made.", underlyingError: error)
        }
    }

    func complete() throws(SandboxError) {
        isClosed = true
        do {
            try descriptor.close()
        } catch {
            throw failure(error)
        }
        isComplete = true
    }

    deinit {
        if !isClosed { try? descriptor.close() }
        guard !isComplete else { return }
        Errand.run { unsafe _ = unlink(path.string) }
    }

    private func failure(_ error: any Error) -> SandboxError {
        SandboxError(.systemCallFailed, "\(path) cannot be written.", underlyingError: error)
    }

    func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(SandboxError) {
        do {
            _ = unsafe try descriptor.writeAll(toAbsoluteOffset: Int64(offset), bytes)
        } catch {
            throw failure(error)
        }
    }

    func write(_ bytes: [UInt8], at offset: UInt64) throws(SandboxError) {
        unsafe try bytes.span.bytes.withUnsafeBytes { bytes throws(SandboxError) in
            unsafe try write(bytes, at: offset)
        }
    }

    /// Sets where it ends; what was not written before is a hole.
    func setSize(_ size: UInt64) throws(SandboxError) {
        guard ftruncate(descriptor.rawValue, off_t(size)) == 0 else { throw failure(Errno(rawValue: errno)) }
    }

    /// The size of the largest file that this process may write.
    static var sizeLimit: UInt64 {
        var limit = rlimit()
        // `limit` outlives the call. Beyond the limit a write would not fail, but end the process.
        guard unsafe getrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit) == 0 else { return .max }
        return UInt64(limit.rlim_cur)
    }
}
