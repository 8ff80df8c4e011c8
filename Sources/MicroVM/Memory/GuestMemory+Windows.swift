import CShims
import Glibc
import SystemPackage

extension GuestMemory {
    /// Shows something in a window that is free.
    ///
    /// - Throws: ``SandboxError/Code/outOfMemory`` when there is no free window or it is too small.
    func map(_ contents: WindowContents, _ access: WindowContents.Access) throws(SandboxError) -> GuestBuffer {
        guard let index = windows.firstIndex(where: { $0 == nil }) else {
            throw SandboxError(.outOfMemory, "All of the \(windows.count) windows are in use; see windowCount.")
        }
        let window = addressSpace.windows[index]
        let mapping = WindowMapping(contents, access)
        guard mapping.size <= UInt64(window.count) else {
            throw SandboxError(
                .outOfMemory,
                "\(contents.count) bytes do not fit into a window of \(window.count); see windowSize."
            )
        }
        try setWindow(index, mapping)
        return GuestBuffer(address: window.lowerBound, count: UInt64(contents.count))
    }

    /// Closes a window.
    ///
    /// - Throws: ``SandboxError/Code/invalidArgument`` when nothing is mapped there.
    func unmap(_ buffer: GuestBuffer) throws(SandboxError) {
        guard let index = addressSpace.window(at: buffer.address), windows[index] != nil,
            addressSpace.windows[index].lowerBound == buffer.address
        else {
            throw SandboxError(
                .invalidArgument,
                "Nothing is mapped at 0x\(String(buffer.address, radix: 16)) that could be unmapped."
            )
        }
        try setWindow(index, nil)
    }

    /// Replaces what is in a window by something else, or by inaccessible pages.
    func setWindow(_ index: Int, _ mapping: WindowMapping?) throws(SandboxError) {
        let window = addressSpace.windows[index]
        let memory = unsafe hostBytes(at: window.lowerBound, count: window.count)
        let nothing = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
        if windows[index] != nil {
            // Before anything else lies there: no page that is still under way gets into that.
            served[index]?.remove()
            served[index] = nil
            // Inside this memory's own place; nothing is left of what was mapped there.
            guard unsafe mmap(memory.baseAddress, memory.count, PROT_NONE, nothing, -1, 0) != MAP_FAILED else {
                throw Self.failure("unmap a window")
            }
            windows[index] = nil
        }
        guard let mapping else { return }
        let isPrivate = mapping.access == .copyOnWrite
        if case .lazy(let source) = mapping.contents.kind {
            served[index] = try serve(source, isPrivate, window: index)
        } else if let (file, offset) = mapping.contents.file {
            let flags = MAP_FIXED | MAP_NORESERVE | (isPrivate ? MAP_PRIVATE : MAP_SHARED)
            let protection = isPrivate ? PROT_READ | PROT_WRITE : PROT_READ
            let size = Int(mapping.size)
            let result = unsafe mmap(memory.baseAddress, size, protection, flags, file.rawValue, off_t(offset))
            guard unsafe result != MAP_FAILED else { throw Self.failure("map something into a window") }
        }
        windows[index] = mapping
    }

    private func serve(_ source: PageSource, _ isPrivate: Bool, window: Int) throws(SandboxError) -> ServedMemory {
        let granularity = source.granularity.rawValue
        let addresses = addressSpace.windows[window]
        let size = source.size.roundedUp(to: UInt64(granularity))
        guard size <= UInt64(addresses.count) else {
            throw SandboxError(
                .outOfMemory,
                "\(size) bytes do not fit into a window of \(addresses.count); see windowSize."
            )
        }
        let handler: PageFaultHandler
        if let pageFaultHandler { handler = pageFaultHandler } else { handler = try PageFaultHandler.shared() }
        // Nobody else keeps the shared one.
        pageFaultHandler = handler
        let memory = unsafe hostBytes(at: addresses.lowerBound, count: Int(size))
        let served = try handler.add(
            FaultLocator(
                start: UInt(bitPattern: memory.baseAddress),
                sandboxCount: 1,
                stride: Int(size),
                regionSize: Int(size),
                granularity: granularity
            )
        )
        do throws(SandboxError) {
            try served.attach(
                source,
                accessibleCount: Int(source.size.roundedUp(to: AddressSpace.pageSize)),
                protection: isPrivate ? .readWrite : .readOnly,
                sandbox: 0
            )
        } catch {
            served.remove()
            throw error
        }
        return served
    }

    /// The access to a lazily loaded window that has just failed, if that is what has happened. Its pages can be
    /// accessed again afterwards.
    func takeServedFailure() -> (Misbehaviour?, wasAbandoned: Bool)? {
        for (index, served) in served.enumerated() {
            guard let failure = served?.takeFault(sandbox: 0) else { continue }
            let address = addressSpace.windows[index].lowerBound + UInt64(failure.offset)
            switch failure.reason {
            case .abandoned:
                return (nil, true)
            case .outOfBounds:
                return (Misbehaviour(.outOfBounds, address: address, message: "Nothing is mapped there."), false)
            case .sourceFailed(let error):
                var misbehaviour = Misbehaviour(
                    .memoryUnavailable,
                    address: address,
                    message: "The page source failed: \(error)"
                )
                misbehaviour.underlyingError = error
                return (misbehaviour, false)
            }
        }
        return nil
    }

    /// The pages of the windows whose contents a guest can have changed.
    var writableWindowPages: [Range<Int>] {
        zip(windows, addressSpace.windows).compactMap { mapping, window in
            guard let mapping, mapping.access == .copyOnWrite else { return nil }
            let first = Int(window.lowerBound) / Self.pageSize
            return first..<first + Int(mapping.size) / Self.pageSize
        }
    }

    /// Copies a page that was written since into a window, by way of the kernel: the file behind it may be gone.
    func restoreWindowPage(_ page: Int, to image: MemoryImage) throws(SandboxError) {
        guard let (store, index) = image.pages.location(ofPage: page) else { return }
        unsafe try store.read(page: index, into: bytes(ofPages: page..<page + 1), byKernel: true)
    }

    /// What is wrong with an access that the kernel could not carry out, at an address that may be known.
    func explain(_ address: UInt64?, _ access: GuestFault.Access?) -> Misbehaviour {
        guard let address else {
            return Misbehaviour(
                .memoryUnavailable,
                message:
                    "Memory beyond the heap's end, or of a window, that is not to be had; the address is not known."
            )
        }
        if (heapEnd..<max(heapEnd, addressSpace.heap.upperBound)).contains(address) {
            return Misbehaviour(
                .outOfBounds,
                address: address,
                access: access,
                message: "The heap ends at 0x\(String(heapEnd, radix: 16)) as long as it does not grow."
            )
        }
        guard let index = addressSpace.window(at: address) else {
            return Misbehaviour(.hypervisor, address: address, message: "KVM could not reach the guest's memory.")
        }
        guard let mapping = windows[index], address - addressSpace.windows[index].lowerBound < mapping.size else {
            return Misbehaviour(
                .outOfBounds,
                address: address,
                access: access,
                message: "Nothing is mapped there in the window."
            )
        }
        if mapping.contents.hasShrunk {
            return Misbehaviour(
                .memoryUnavailable,
                address: address,
                access: access,
                message: "The file that is mapped there has become shorter."
            )
        }
        if mapping.access == .readOnly {
            return Misbehaviour(.memoryAccess, address: address, access: access ?? .write)
        }
        return Misbehaviour(.memoryUnavailable, address: address, access: access)
    }

    /// The stretches that are there, for a memory slot each.
    var accessible: [Range<UInt64>] {
        var ranges = [0..<heapEnd]
        for (mapping, window) in zip(windows, addressSpace.windows) {
            guard let mapping, !mapping.contents.hasShrunk, mapping.access == .copyOnWrite else { continue }
            ranges.append(window.lowerBound..<window.lowerBound + mapping.size)
        }
        return ranges + [addressSpace.pageTables]
    }

    // MARK: - Access by the host

    /// Whether host code may use a pointer to bytes that the guest may use: not where the pages can go away under it.
    func isLasting(_ address: UInt64) -> Bool {
        if plan.isForeign, !addressSpace.arena.contains(address) { return false }
        guard let index = addressSpace.window(at: address) else { return true }
        return windows[index]?.contents.isLasting ?? true
    }

    /// Copies bytes that the guest may read itself.
    func copyOut(_ address: UInt64, into destination: UnsafeMutableRawBufferPointer) throws(SandboxError) {
        guard let start = destination.baseAddress, destination.count > 0 else { return }
        let source = unsafe hostBytes(at: address, count: destination.count)
        let error = unsafe shim_copy(start, source.baseAddress!, source.count)
        if error != 0 { throw Self.unavailable(address, error) }
    }

    /// Copies bytes to where the guest may write itself.
    func copyIn(_ source: UnsafeRawBufferPointer, to address: UInt64) throws(SandboxError) {
        guard let start = source.baseAddress, source.count > 0 else { return }
        forgetWritten()
        let destination = unsafe hostBytes(at: address, count: source.count)
        let error = unsafe shim_copy(destination.baseAddress!, start, source.count)
        if error != 0 { throw Self.unavailable(address, error) }
    }

    private static func unavailable(_ address: UInt64, _ error: Int32) -> SandboxError {
        SandboxError(
            .invalidPointer,
            "The memory that is mapped at 0x\(String(address, radix: 16)) is not to be had.",
            underlyingError: Errno(rawValue: error)
        )
    }
}
