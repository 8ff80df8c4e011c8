import CShims
import Glibc
import LinuxKVM
public import SystemPackage

extension Snapshot {
    /// Writes the snapshot to a file, with its module: all that ``init(contentsOf:configuration:verifyingPages:)``
    /// needs to make sandboxes of it again, on this machine or another one whose processor can do as much.
    ///
    /// The file is written under another name and renamed when it is complete.
    ///
    /// - Parameter path: the file to make or to replace.
    /// - Throws: ``SandboxError``: `.systemCallFailed` when it cannot be written; `.invalidArgument` while something is
    ///   mapped into a window, which the file could not bring back; `.busy` when the call was caught at the very moment
    ///   of an exception, so that it has to be caught again.
    public func write(to path: FilePath) throws(SandboxError) {
        guard memory.windows.allSatisfy({ $0 == nil }) else {
            throw SandboxError(
                .invalidArgument,
                "Something is mapped into a window; unmap it before the snapshot that is to be written."
            )
        }
        let runs = try writtenRuns()
        var description = ByteWriter()
        describe(&description)
        try describeCall(&description)
        description.append(UInt64(runs.count))
        for run in runs {
            description.append(UInt64(run.pages.lowerBound))
            description.append(UInt64(run.pages.count))
        }
        let temporary = FilePath(path.string + ".\(getpid()).\(UInt64.random(in: 0...(.max)))")
        do throws(SandboxError) {
            let file: FileDescriptor
            do {
                file = try .open(
                    temporary,
                    .writeOnly,
                    options: [.create, .exclusiveCreate, .closeOnExec],
                    permissions: [.ownerReadWrite, .groupRead, .otherRead]
                )
            } catch {
                throw SandboxError(.systemCallFailed, "\(path) cannot be written.", underlyingError: error)
            }
            defer { try? file.close() }
            try write(runs, description, to: file)
        } catch {
            unsafe _ = unlink(temporary.string)
            throw error
        }
        if unsafe rename(temporary.string, path.string) != 0 {
            let error = Errno(rawValue: errno)
            unsafe _ = unlink(temporary.string)
            throw SandboxError(.systemCallFailed, "\(path) cannot be written.", underlyingError: error)
        }
    }

    private func write(
        _ runs: [PageMap.Run],
        _ description: ByteWriter,
        to file: FileDescriptor
    ) throws(SandboxError) {
        var description = description
        // One page of memory at a time; the checksums come into the description before it is written.
        let page = UnsafeMutableRawBufferPointer.allocate(byteCount: GuestMemory.pageSize, alignment: 16)
        defer { unsafe page.deallocate() }
        let pageCount = runs.reduce(0) { $0 + $1.pages.count }
        let checksumCount = (pageCount + SnapshotFileLayout.pagesPerChecksum - 1) / SnapshotFileLayout.pagesPerChecksum
        let descriptionSize = description.bytes.count + 8 + checksumCount * 4
        let moduleOffset = SnapshotFileLayout.headerSize + descriptionSize
        let pagesOffset = Int(UInt64(moduleOffset + module.bytes.count).roundedUp(to: AddressSpace.pageSize))
        let writer = PageWriter(file: file, fileOffset: pagesOffset)
        var index = 0
        var checksum: UInt32 = 0
        description.append(UInt64(checksumCount))
        for run in runs {
            for offset in 0..<run.pages.count {
                unsafe try run.store.read(page: run.firstIndex + offset, into: page)
                unsafe try writer.write(UnsafeRawBufferPointer(page), atPage: index)
                unsafe checksum = shim_checksum(checksum, page.baseAddress!, page.count)
                index += 1
                if index % SnapshotFileLayout.pagesPerChecksum == 0 || index == pageCount {
                    description.append(checksum)
                    checksum = 0
                }
            }
        }
        var header = ByteWriter()
        header.append(SnapshotFileLayout.magic)
        header.append(SnapshotFileLayout.version)
        header.append(description.checksum)
        header.append(UInt64(description.bytes.count))
        header.append(UInt64(module.bytes.count))
        header.append(SnapshotFileLayout.checksum(module.bytes))
        header.append(UInt32(0))
        header.append(UInt64(pagesOffset))
        header.append(UInt64(pageCount))
        header.append(UInt32(0))
        header.append(header.checksum)
        precondition(header.bytes.count == SnapshotFileLayout.headerSize)
        do {
            try file.writeAll(toAbsoluteOffset: 0, header.bytes)
            try file.writeAll(toAbsoluteOffset: Int64(SnapshotFileLayout.headerSize), description.bytes)
            try file.writeAll(toAbsoluteOffset: Int64(moduleOffset), module.bytes)
            // The last page may be the end of the file's pages only by its size.
            guard ftruncate(file.rawValue, off_t(pagesOffset + pageCount * GuestMemory.pageSize)) == 0 else {
                throw Errno(rawValue: errno)
            }
        } catch {
            throw SandboxError(.systemCallFailed, "The snapshot cannot be written.", underlyingError: error)
        }
    }

    /// The pages that are not those of the module's image, as far as the guest can write them.
    private func writtenRuns() throws(SandboxError) -> [PageMap.Run] {
        let writable = image.addressSpace.pagesWritableByGuest
        var runs: [PageMap.Run] = []
        var zeroPages: PageStore?
        try memory.pages.forEachDifference(from: image.memory.pages) { page throws(SandboxError) in
            guard writable.contains(where: { $0.contains(page) }) else { return }
            let place: (store: PageStore, index: Int)
            if let location = memory.pages.location(ofPage: page) {
                place = location
            } else {
                // Zero where the image is not.
                if zeroPages == nil { zeroPages = try PageStore(pageCount: 1) { _ in } }
                guard let zeroPages else { return }
                place = (zeroPages, 0)
            }
            if let last = runs.last, last.pages.upperBound == page, last.store === place.store,
                last.firstIndex + last.pages.count == place.index
            {
                runs[runs.count - 1].pages = last.pages.lowerBound..<page + 1
            } else {
                runs.append(PageMap.Run(pages: page..<page + 1, store: place.store, firstIndex: place.index))
            }
        }
        return runs
    }

    private func describe(_ writer: inout ByteWriter) {
        let sizes = image.addressSpace.sizes
        writer.append(UInt64(module.name.utf8.count))
        writer.bytes += Array(module.name.utf8)
        for value in [
            sizes.stackSize, sizes.arenaSize, sizes.memoryLimit, sizes.initialMemorySize ?? 0,
            UInt64(sizes.windowCount), sizes.windowSize, memory.heapEnd,
        ] { writer.append(value) }
        writer.append(UInt64(image.absentImports.count))
        writer.bytes += image.absentImports.map { $0 ? 1 : 0 }
        let features = ProcessorIdentity.features
        writer.append(UInt64(features.count))
        for word in features { writer.append(word) }
    }

    private func describeCall(_ writer: inout ByteWriter) throws(SandboxError) {
        guard let call = suspendedCall else { return writer.append(UInt64(0)) }
        let registers = call.registers
        let fsBase, gsBase: UInt64
        let selectors: [UInt16]
        switch registers.system {
        case .user(let fs, let gs, let all): (fsBase, gsBase, selectors) = (fs, gs, all)
        case .whole(let special, let events)
        where Supervisor.isUserMode(special) && !events.exception.injected && !events.exception.pending:
            (fsBase, gsBase) = (special.fs.base, special.gs.base)
            selectors = [special.ds, special.es, special.fs, special.gs].map(\.selector)
        case .whole:
            throw SandboxError(
                .busy,
                "The call was caught at the moment of an exception, and cannot be written; take another snapshot."
            )
        }
        writer.append(UInt64(1))
        for register in Registers.inOrder { writer.append(registers.general[keyPath: register]) }
        writer.append(fsBase)
        writer.append(gsBase)
        for selector in selectors { writer.append(selector) }
        writer.append(call.function)
        writer.append(call.arenaPosition)
        writer.append(UInt64(registers.extendedState.count))
        writer.bytes += registers.extendedState
    }

    /// Reads a snapshot from a file: its description, that is. Pages are mapped, and come from the file when somebody
    /// touches them, so that this takes as long for a small memory as for a large one.
    ///
    /// Nothing in the file is trusted: whatever it says, sandboxes made from it can do no more than others. It must not
    /// be changed while the snapshot or a sandbox made from it is there: replace it by another one instead. When it is
    /// truncated, guest calls end in faults (``GuestFault/Kind/memoryUnavailable``).
    ///
    /// - Parameters:
    ///   - path: what ``write(to:)`` has written.
    ///   - configuration: limits and output of the sandboxes to come; memory sizes are those of the file.
    ///   - verifyingPages: whether to read all pages and to compare their checksums. Those of everything else are
    ///     always compared.
    /// - Throws: ``SandboxError``: `.systemCallFailed` when the file cannot be read; `.invalidSnapshot` when it is
    ///   none, not whole, damaged, of another version, or of a processor that could do more; `.invalidModule`,
    ///   `.invalidConfiguration`.
    public convenience init(
        contentsOf path: FilePath,
        configuration: SandboxConfiguration = SandboxConfiguration(),
        verifyingPages: Bool = false
    ) throws(SandboxError) {
        let file: FileDescriptor
        do {
            file = try .open(path, .readOnly, options: [.closeOnExec, .nonBlocking])
        } catch {
            throw SandboxError(.systemCallFailed, "\(path) cannot be opened.", underlyingError: error)
        }
        let contents: SnapshotContents
        do throws(SandboxError) {
            contents = try SnapshotContents(file, path: path, configuration, verifyingPages: verifyingPages)
        } catch {
            try? file.close()
            throw error
        }
        // From here on the store has the descriptor.
        let store = try PageStore(
            file: file,
            fileOffset: contents.pagesOffset,
            pageCount: contents.pageCount,
            isForeign: true
        )
        var pages = contents.image.memory.pages
        var index = 0
        for run in contents.runs {
            pages.replace(run, with: store, firstIndex: index)
            index += run.count
        }
        let memory = MemoryImage(
            pages: pages,
            heapEnd: contents.heapEnd,
            windows: contents.image.memory.windows,
            windowPages: contents.image.memory.windowPages
        )
        self.init(
            module: contents.module,
            image: contents.image,
            memory: memory,
            suspendedCall: contents.suspendedCall,
            configuration: contents.configuration
        )
    }
}
