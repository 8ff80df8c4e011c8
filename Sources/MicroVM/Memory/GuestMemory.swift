import CShims
import Glibc
import SystemPackage

/// A guest's memory, as the host sees it while the guest is not running.
///
/// A host function reaches it through ``HostCallContext/memory``, code isolated to a sandbox through
/// ``Sandbox/memory``. Every address that is given is checked against what the guest itself may do there: the
/// library's own pages are out of reach, and constants cannot be written. Copies are taken once; what was read cannot
/// change under the reader's hands, because the guest's only virtual CPU is waiting for the host.
@safe public final class GuestMemory {
    private static let guardSize = 1 << 20

    /// Guest physical address 0. Valid for `count` bytes until `deinit`; nothing keeps it beyond this object.
    private let base: UnsafeMutableRawPointer
    let count: Int
    let addressSpace: AddressSpace

    /// Reserves the memory, with inaccessible pages before and behind it; pages come as they are touched.
    init(addressSpace: AddressSpace) throws(SandboxError) {
        let count = Int(addressSpace.size)
        let reserved = count + 2 * Self.guardSize
        let mapping = unsafe mmap(nil, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let mapping = unsafe mapping, unsafe mapping != MAP_FAILED else {
            throw Self.failure("reserve \(reserved) bytes of address space for the guest's memory")
        }
        unsafe base = mapping + Self.guardSize
        self.count = count
        self.addressSpace = addressSpace
        guard unsafe mprotect(base, count, PROT_READ | PROT_WRITE) == 0 else {
            let error = Self.failure("make \(count) bytes of guest memory accessible")
            unsafe munmap(mapping, reserved)
            throw error
        }
    }

    deinit {
        // The whole reservation, which `init` made and nobody else has changed.
        unsafe munmap(base - Self.guardSize, count + 2 * Self.guardSize)
    }

    private static func failure(_ action: String) -> SandboxError {
        SandboxError(.systemCallFailed, "Could not \(action).", underlyingError: Errno(rawValue: errno))
    }

    // MARK: - Addresses of the library's own layout

    /// All of the memory, for the KVM memory slot.
    var bytes: UnsafeMutableRawBufferPointer { unsafe UnsafeMutableRawBufferPointer(start: base, count: count) }

    /// The host's view of bytes at an address that the library itself has laid out; traps when they are not inside the
    /// mapping. Whatever comes from a guest goes through ``guestBytes(at:count:for:)``.
    func hostBytes(at address: UInt64, count: Int) -> UnsafeMutableRawBufferPointer {
        precondition(
            count >= 0 && address <= UInt64(self.count) && UInt64(count) <= UInt64(self.count) - address,
            "the library laid out bytes outside of the guest's memory"
        )
        return unsafe UnsafeMutableRawBufferPointer(start: base + Int(address), count: count)
    }

    func loadWord(at address: UInt64) -> UInt64 {
        unsafe hostBytes(at: address, count: 8).loadUnaligned(as: UInt64.self)
    }

    func storeWord(_ value: UInt64, at address: UInt64) {
        unsafe hostBytes(at: address, count: 8).storeBytes(of: value, as: UInt64.self)
    }

    func store(_ code: shim_code, at address: UInt64) {
        // A constant of this program, whole.
        let source = unsafe UnsafeRawBufferPointer(start: code.start, count: code.count)
        unsafe hostBytes(at: address, count: code.count).copyMemory(from: source)
    }

    // MARK: - Addresses that come from a guest

    /// The host's view of bytes that the guest may use that way itself, or throws `.invalidPointer`.
    ///
    /// The result is for the moment: it must not be kept over an entry into the guest, nor beyond this object.
    func guestBytes(
        at address: UInt64,
        count: UInt64,
        for access: GuestModule.Permissions
    ) throws(SandboxError) -> UnsafeMutableRawBufferPointer {
        if count == 0 { return unsafe UnsafeMutableRawBufferPointer(start: nil, count: 0) }
        guard addressSpace.permits(access, address: address, count: count) else {
            let violation = GuestPointerViolation(
                address: address,
                count: count,
                access: access.contains(.write) ? .write : .read
            )
            throw SandboxError(.invalidPointer, violation.description, underlyingError: violation)
        }
        // Regions lie inside the mapping, so this count fits an Int.
        return unsafe hostBytes(at: address, count: Int(count))
    }

    /// Reads one value.
    ///
    /// - Throws: ``SandboxError/Code/invalidPointer`` when the guest could not read it there itself.
    public func load<Pointee: GuestScalar>(_ pointer: GuestPointer<Pointee>) throws(SandboxError) -> Pointee {
        let size = UInt64(MemoryLayout<Pointee>.size)
        return unsafe try guestBytes(at: pointer.address, count: size, for: .read).loadUnaligned(as: Pointee.self)
    }

    /// Writes one value.
    ///
    /// - Throws: ``SandboxError/Code/invalidPointer`` when the guest could not write it there itself.
    public func store<Pointee: GuestScalar>(
        _ value: Pointee,
        to pointer: GuestPointer<Pointee>
    ) throws(SandboxError) {
        let size = UInt64(MemoryLayout<Pointee>.size)
        unsafe try guestBytes(at: pointer.address, count: size, for: .write).storeBytes(of: value, as: Pointee.self)
    }

    /// Copies all bytes of a buffer.
    ///
    /// - Throws: ``SandboxError/Code/invalidPointer`` when the guest could not read all of them itself.
    public func load(_ buffer: GuestBuffer) throws(SandboxError) -> [UInt8] {
        unsafe Array(try guestBytes(at: buffer.address, count: buffer.count, for: .read))
    }

    /// Writes bytes to the beginning of a buffer.
    ///
    /// - Throws: ``SandboxError/Code/invalidPointer`` when they are more than the buffer holds, or when the guest could
    ///   not write them there itself.
    public func store(_ bytes: [UInt8], to buffer: GuestBuffer) throws(SandboxError) {
        guard UInt64(bytes.count) <= buffer.count else {
            throw SandboxError(
                .invalidPointer,
                "\(bytes.count) bytes do not fit into the guest's buffer of \(buffer.count) bytes."
            )
        }
        let destination = unsafe try guestBytes(at: buffer.address, count: UInt64(bytes.count), for: .write)
        unsafe bytes.withUnsafeBytes { unsafe destination.copyMemory(from: $0) }
    }

    /// Lends the bytes of a buffer without copying them.
    ///
    /// - Throws: ``SandboxError/Code/invalidPointer`` when the guest could not read all of them itself, or what the
    ///   closure throws.
    public func withBytes<Result>(of buffer: GuestBuffer, _ body: (RawSpan) throws -> Result) throws -> Result {
        let bytes = unsafe try guestBytes(at: buffer.address, count: buffer.count, for: .read)
        return try body(unsafe UnsafeRawBufferPointer(bytes).bytes)
    }

    /// Lends the bytes of a buffer for changing them in place.
    ///
    /// - Throws: ``SandboxError/Code/invalidPointer`` when the guest could not write all of them itself, or what the
    ///   closure throws.
    public func withMutableBytes<Result>(
        of buffer: GuestBuffer,
        _ body: (inout MutableRawSpan) throws -> Result
    ) throws -> Result {
        let bytes = unsafe try guestBytes(at: buffer.address, count: buffer.count, for: [.read, .write])
        var span = unsafe bytes.mutableBytes
        return try body(&span)
    }
}

/// A range of guest addresses that was used in a way the guest itself may not.
struct GuestPointerViolation: Error, CustomStringConvertible {
    var address: UInt64
    var count: UInt64
    var access: GuestFault.Access

    var description: String {
        let end = address.addingReportingOverflow(count).partialValue
        return "The guest may not \(access) 0x\(String(address, radix: 16)) to 0x\(String(end, radix: 16))."
    }
}
