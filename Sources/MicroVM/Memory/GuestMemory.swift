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
    static let pageSize = Int(AddressSpace.pageSize)

    /// Guest physical address 0. Valid for `count` bytes until `deinit`; nothing keeps it beyond this object.
    let base: UnsafeMutableRawPointer
    let count: Int
    let addressSpace: AddressSpace
    private let place: MemoryPlace

    /// What the memory was last made to be: pages that were not written since have these contents.
    private(set) var image: MemoryImage
    /// What lies behind the pages, and comes to light where one is dropped.
    let backing: MemoryImage
    let plan: MappingPlan
    /// Where the heap ends for now.
    private(set) var heapEnd: UInt64
    /// What is mapped into each window.
    var windows: [WindowMapping?]
    /// Who serves the pages of lazily loaded windows; the shared one unless it is given.
    var pageFaultHandler: PageFaultHandler?
    /// The windows whose pages come from a source.
    var served: [ServedMemory?]
    /// Copies of bytes that have been lent instead of the bytes themselves, until the guest runs again.
    @exclusivity(unchecked) private var lentCopies: [UnsafeMutableRawBufferPointer] = unsafe []
    /// From this page on nothing lies behind the heap any more, because it has been cut off since.
    private(set) var backingEnd = Int.max
    /// The pages that were found to be written, at the last restore that has asked the kernel.
    var written = WrittenPages.Found()
    /// Whether they are still all there are unless the virtual CPU's thread has had a page fault since.
    var knowsWritten = false
    /// Whether a debugger may have written where neither the guest nor anybody else can, since the last restore.
    var isPatched = false
    /// For how many restores in a row most of the written pages had their old contents all the same.
    var idleRestores = 0

    /// Makes a memory with the contents of an image, in a reservation of its own or in one of a pool's places. Pages
    /// come as they are touched.
    init(
        addressSpace: AddressSpace,
        image: MemoryImage,
        reservation: MemoryReservation? = nil,
        pageFaultHandler: PageFaultHandler? = nil
    ) throws(SandboxError) {
        plan = try image.mappingPlan(for: addressSpace)
        backing = image
        self.image = image
        self.addressSpace = addressSpace
        count = Int(addressSpace.size)
        place = try MemoryPlace(for: addressSpace, plan.stretches, in: reservation)
        unsafe base = place.base
        heapEnd = image.heapEnd
        windows = Array(repeating: nil, count: addressSpace.windows.count)
        served = Array(repeating: nil, count: addressSpace.windows.count)
        self.pageFaultHandler = pageFaultHandler
        // From here on `deinit` gives back what has been mapped when something fails.
        for (index, mapping) in image.windows.enumerated() { try setWindow(index, mapping) }
        for run in plan.copied { try copy(run) }
        try image.pages.forEachPage(in: image.windowPages) { page throws(SandboxError) in
            try restoreWindowPage(page, to: image)
        }
        for page in plan.cleared.joined() { try clear(page) }
    }

    deinit {
        returnLentCopies()
        // Before its addresses are anybody else's.
        for served in served { served?.remove() }
    }

    /// Where the page that the virtual CPU shares is best mapped.
    var neighbour: UnsafeMutableRawPointer? { unsafe place.neighbour(size: count) }

    private func copy(_ run: PageMap.Run) throws(SandboxError) {
        for (offset, page) in run.pages.enumerated() {
            let destination = unsafe bytes(ofPages: page..<page + 1)
            unsafe try run.store.read(page: run.firstIndex + offset, into: destination, byKernel: plan.isForeign)
        }
    }

    /// Makes a page zero.
    ///
    /// - Parameter isPrivate: whether the page is known to be no file's.
    func clear(_ page: Int, isPrivate: Bool = false) throws(SandboxError) {
        let destination = unsafe bytes(ofPages: page..<page + 1)
        guard plan.isForeign, !isPrivate else {
            unsafe _ = memset(destination.baseAddress!, 0, destination.count)
            return
        }
        let zeros = [UInt8](repeating: 0, count: Self.pageSize)
        unsafe try zeros.span.bytes.withUnsafeBytes { zeros throws(SandboxError) in
            unsafe try copyIn(zeros, to: UInt64(page * Self.pageSize))
        }
    }

    private func setAccess(_ range: Range<Int>, _ protection: Int32) throws(SandboxError) {
        guard !range.isEmpty, unsafe mprotect(base + range.lowerBound, range.count, protection) != 0 else { return }
        throw Self.failure("change the access to \(range.count) bytes of guest memory")
    }

    static func failure(_ action: String) -> SandboxError {
        SandboxError(.systemCallFailed, "Could not \(action).", underlyingError: Errno(rawValue: errno))
    }

    /// The host's view of pages, by their numbers; traps when they are not inside the memory.
    func bytes(ofPages pages: Range<Int>) -> UnsafeMutableRawBufferPointer {
        unsafe hostBytes(at: UInt64(pages.lowerBound * Self.pageSize), count: pages.count * Self.pageSize)
    }

    /// Tells that pages may be written by a thread other than the virtual CPU's: not what its page faults say, only the
    /// kernel can say then which. From any thread that the virtual CPU's waits for.
    func forgetWritten() { knowsWritten = false }

    // MARK: - The heap's end

    /// Moves the heap's end. What lies beyond it is inaccessible, and zero when it becomes accessible again.
    ///
    /// - Parameter end: a page boundary within the heap.
    func setHeapEnd(_ end: UInt64) throws(SandboxError) {
        precondition(end % AddressSpace.pageSize == 0 && end >= addressSpace.heap.lowerBound)
        precondition(end <= addressSpace.heap.upperBound)
        forgetWritten()
        if end > heapEnd {
            try setAccess(Int(heapEnd)..<Int(end), PROT_READ | PROT_WRITE)
            // As for the heap there was.
            unsafe madvise(base + Int(heapEnd), Int(end - heapEnd), MADV_NOHUGEPAGE)
        } else if end < heapEnd {
            // A fresh mapping, so that not even a file's pages are left of what was there.
            let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
            if unsafe mmap(base + Int(end), Int(heapEnd - end), PROT_NONE, flags, -1, 0) == MAP_FAILED {
                throw Self.failure("take back guest memory")
            }
            backingEnd = min(backingEnd, Int(end) / Self.pageSize)
        }
        heapEnd = end
    }

    /// Moves the heap's end up by whole pages.
    ///
    /// - Throws: ``SandboxError/Code/outOfMemory``.
    func growHeap(by count: UInt64) throws(SandboxError) {
        let left = addressSpace.heap.upperBound - heapEnd
        guard count <= left else {
            throw SandboxError(
                .outOfMemory,
                "The heap cannot grow by \(count) bytes: memoryLimit leaves \(left)."
            )
        }
        try setHeapEnd(heapEnd + count.roundedUp(to: AddressSpace.pageSize))
    }

    /// The pages a guest may write at all, as far as they are accessible.
    var writable: Range<Int> { Int(AddressSpace.lowestPage) / Self.pageSize..<Int(heapEnd) / Self.pageSize }

    /// Everything is as in an image again.
    func didRestore(_ image: MemoryImage) {
        self.image = image
        isPatched = false
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
        forgetWritten()
        unsafe hostBytes(at: address, count: 8).storeBytes(of: value, as: UInt64.self)
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
        try check(access, address: address, count: count)
        // An asynchronous host function writes on a thread of its own.
        if access.contains(.write) { forgetWritten() }
        // Regions lie inside the mapping, so this count fits an Int.
        if isLasting(address) { return unsafe hostBytes(at: address, count: Int(count)) }
        guard !access.contains(.write) else {
            throw SandboxError(
                .invalidPointer,
                "Bytes of a file that is mapped cannot be lent for writing, only stored."
            )
        }
        // A copy, because pages of a file can be gone from one moment to the next.
        let copy = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(count), alignment: 16)
        unsafe lentCopies.append(copy)
        unsafe try copyOut(address, into: copy)
        return unsafe copy
    }

    /// Throws `.invalidPointer` unless the guest may use all of these bytes that way itself.
    func check(
        _ access: GuestModule.Permissions,
        address: UInt64,
        count: UInt64
    ) throws(SandboxError) {
        guard count > 0, !permits(access, address: address, count: count) else { return }
        let violation = GuestPointerViolation(
            address: address,
            count: count,
            access: access.contains(.write) ? .write : .read
        )
        throw SandboxError(.invalidPointer, violation.description, underlyingError: violation)
    }

    /// The guest runs again: what was lent has gone back.
    func returnLentCopies() {
        guard unsafe !lentCopies.isEmpty else { return }
        for index in unsafe lentCopies.indices { unsafe lentCopies[index].deallocate() }
        unsafe lentCopies.removeAll()
    }

    /// Whether the guest itself may use all of these bytes that way, now.
    func permits(_ access: GuestModule.Permissions, address: UInt64, count: UInt64) -> Bool {
        guard addressSpace.permits(access, address: address, count: count) else { return false }
        if count == 0 { return true }
        if addressSpace.heap.contains(address) { return address + count <= heapEnd }
        guard let index = addressSpace.window(at: address) else { return true }
        guard let mapping = windows[index] else { return false }
        return address + count <= addressSpace.windows[index].lowerBound + mapping.size
            && (mapping.access == .copyOnWrite || !access.contains(.write))
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
        try unsafe withUnsafeBytes(of: value) { bytes throws(SandboxError) in
            unsafe try store(bytes, at: pointer.address)
        }
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
        unsafe try bytes.span.bytes.withUnsafeBytes { bytes throws(SandboxError) in
            unsafe try store(bytes, at: buffer.address)
        }
    }

    /// Copies bytes to where the guest may write them itself, or throws `.invalidPointer`.
    func store(_ bytes: UnsafeRawBufferPointer, at address: UInt64) throws(SandboxError) {
        guard unsafe !bytes.isEmpty else { return }
        try check(.write, address: address, count: UInt64(bytes.count))
        forgetWritten()
        if isLasting(address) {
            unsafe hostBytes(at: address, count: bytes.count).copyMemory(from: bytes)
        } else {
            unsafe try copyIn(bytes, to: address)
        }
    }

    /// Lends the bytes of a buffer without copying them, but for those of a file that is mapped.
    ///
    /// - Throws: ``SandboxError/Code/invalidPointer`` when the guest could not read all of them itself, or what the
    ///   closure throws.
    public func withBytes<Result>(of buffer: GuestBuffer, _ body: (RawSpan) throws -> Result) throws -> Result {
        let bytes = unsafe try guestBytes(at: buffer.address, count: buffer.count, for: .read)
        return try body(unsafe UnsafeRawBufferPointer(bytes).bytes)
    }

    /// Lends the bytes of a buffer for changing them in place.
    ///
    /// Of a file that is mapped, a copy is lent and written back.
    ///
    /// - Throws: ``SandboxError/Code/invalidPointer`` when the guest could not write all of them itself, or what the
    ///   closure throws.
    public func withMutableBytes<Result>(
        of buffer: GuestBuffer,
        _ body: (inout MutableRawSpan) throws -> Result
    ) throws -> Result {
        guard buffer.count == 0 || isLasting(buffer.address) else {
            var copy = try load(buffer)
            var span = copy.mutableSpan
            var bytes = unsafe span.mutableBytes
            let result = try body(&bytes)
            try store(copy, to: buffer)
            return result
        }
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
