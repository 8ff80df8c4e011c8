internal import CShims
internal import SystemPackage

/// The value of a system call, or the error it reports: the C functions return the error number negated.
@inline(__always)
func valueOrErrno(_ result: CInt) throws(Errno) -> CInt {
    guard result >= 0 else { throw Errno(rawValue: -result) }
    return result
}

/// The same for calls whose value says nothing.
@inline(__always)
func nothingOrErrno(_ result: CInt) throws(Errno) {
    guard result >= 0 else { throw Errno(rawValue: -result) }
}

/// A file descriptor that is closed when its owner goes.
struct OwnedFileDescriptor: ~Copyable, Sendable {
    let rawValue: CInt

    /// Takes over what a call that makes a descriptor returned.
    init(result: CInt) throws(Errno) {
        self.rawValue = try valueOrErrno(result)
    }

    deinit {
        // Linux releases the descriptor whatever close returns; trying again could close somebody else's.
        try? FileDescriptor(rawValue: rawValue).close()
    }
}

/// A virtual CPU's `struct kvm_run` and the pages after it, unmapped when the owner goes.
@safe struct RunMapping: ~Copyable {
    let run: UnsafeMutablePointer<kvm_run>
    /// Bytes, at least the size of `struct kvm_run`.
    let size: Int

    init(
        virtualCPU: borrowing OwnedFileDescriptor,
        size: Int,
        hint: UnsafeMutableRawPointer?
    ) throws(Errno) {
        guard size >= MemoryLayout<kvm_run>.size else { throw Errno.invalidArgument }
        var error: CInt = 0
        // Safe: the kernel maps at least a page and the size was checked; nothing else unmaps it but deinit.
        guard let address = unsafe shim_kvm_map_run(virtualCPU.rawValue, hint, size, &error) else {
            throw Errno(rawValue: error)
        }
        unsafe self.run = address.bindMemory(to: kvm_run.self, capacity: 1)
        self.size = size
    }

    deinit {
        // Safe: the mapping was made in init, with this size.
        unsafe shim_kvm_unmap_run(run, size)
    }

    /// The bytes from `offset`, `count` of them, or nil where they would leave the mapping.
    func bytes(at offset: UInt64, count: UInt64) -> ExitBytes? {
        let (end, overflow) = offset.addingReportingOverflow(count)
        guard !overflow, end <= UInt64(size) else { return nil }
        // Safe: offset and count were just checked against the mapping.
        let start = unsafe UnsafeMutableRawPointer(run) + Int(offset)
        return unsafe ExitBytes(bytes: UnsafeMutableRawBufferPointer(start: start, count: Int(count)))
    }
}
