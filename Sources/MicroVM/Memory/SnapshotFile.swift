import CShims
import Glibc
import LinuxKVM
public import SystemPackage

// The layout of a snapshot's file, all numbers little endian:
//
// - 64 bytes of header: the magic number, the version, where and how long the description, the module and the pages
//   are, and the CRC-32C of the two before and of the header itself;
// - the description: sizes, the processor's features, which pages there are, a CRC-32C for each 256 of them, and the
//   registers of a call;
// - the module, byte for byte as it was loaded;
// - from the next multiple of 4096 on the pages, one after the other.
//
// Only pages that the guest can write are there: the library's own come from the library, and code from the module.

private enum Layout {
    static let magic: UInt64 = 0x5053_4d56_4f52_434d  // "MCROVMSP"
    static let version: UInt32 = 1
    static let headerSize = 64
    static let pagesPerChecksum = 256
    static let descriptionMaximum = 1 << 30
}

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
        let checksumCount = (pageCount + Layout.pagesPerChecksum - 1) / Layout.pagesPerChecksum
        let descriptionSize = description.bytes.count + 8 + checksumCount * 4
        let moduleOffset = Layout.headerSize + descriptionSize
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
                if index % Layout.pagesPerChecksum == 0 || index == pageCount {
                    description.append(checksum)
                    checksum = 0
                }
            }
        }
        var header = ByteWriter()
        header.append(Layout.magic)
        header.append(Layout.version)
        header.append(description.checksum)
        header.append(UInt64(description.bytes.count))
        header.append(UInt64(module.bytes.count))
        header.append(Self.checksum(module.bytes))
        header.append(UInt32(0))
        header.append(UInt64(pagesOffset))
        header.append(UInt64(pageCount))
        header.append(UInt32(0))
        header.append(header.checksum)
        precondition(header.bytes.count == Layout.headerSize)
        do {
            try file.writeAll(toAbsoluteOffset: 0, header.bytes)
            try file.writeAll(toAbsoluteOffset: Int64(Layout.headerSize), description.bytes)
            try file.writeAll(toAbsoluteOffset: Int64(moduleOffset), module.bytes)
            // The last page may be the end of the file's pages only by its size.
            guard ftruncate(file.rawValue, off_t(pagesOffset + pageCount * GuestMemory.pageSize)) == 0 else {
                throw Errno(rawValue: errno)
            }
        } catch {
            throw SandboxError(.systemCallFailed, "The snapshot cannot be written.", underlyingError: error)
        }
    }

    fileprivate static func checksum(_ bytes: [UInt8]) -> UInt32 {
        // The array outlives the call.
        unsafe bytes.withUnsafeBytes { unsafe shim_checksum(0, $0.baseAddress, $0.count) }
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

/// What a file says, checked.
private struct SnapshotContents {
    var module: GuestModule
    var image: GuestImage
    var configuration: SandboxConfiguration
    var heapEnd: UInt64
    var runs: [Range<Int>] = []
    var pagesOffset: Int
    var pageCount: Int
    var suspendedCall: SuspendedCall?

    init(
        _ file: FileDescriptor,
        path: FilePath,
        _ given: SandboxConfiguration,
        verifyingPages: Bool
    ) throws(SandboxError) {
        func invalid(_ what: String) -> SandboxError { SandboxError(.invalidSnapshot, "\(path) \(what).") }
        var status = stat()
        guard unsafe fstat(file.rawValue, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw invalid("is not a regular file")
        }
        let size = Int(status.st_size)
        func read(_ offset: Int, _ count: Int) throws(SandboxError) -> [UInt8] {
            guard offset >= 0, count >= 0, count <= size, offset <= size - count else {
                throw invalid("is shorter than it says")
            }
            do {
                return try unsafe [UInt8](unsafeUninitializedCapacity: count) { buffer, read in
                    let raw = UnsafeMutableRawBufferPointer(buffer)
                    while read < count {
                        let rest = unsafe UnsafeMutableRawBufferPointer(rebasing: raw[read..<count])
                        let result = unsafe try file.read(fromAbsoluteOffset: Int64(offset + read), into: rest)
                        guard result > 0 else { throw Errno.badFileDescriptor }
                        read += result
                    }
                }
            } catch {
                throw SandboxError(.systemCallFailed, "\(path) cannot be read.", underlyingError: error)
            }
        }
        guard size >= Layout.headerSize else { throw invalid("is no snapshot") }
        let headerBytes = try read(0, Layout.headerSize)
        var header = ByteReader(headerBytes) { invalid("is damaged") }
        guard try header.next(UInt64.self) == Layout.magic else { throw invalid("is no snapshot") }
        let version = try header.next(UInt32.self)
        guard version == Layout.version else {
            throw invalid("is a snapshot of version \(version), and not of \(Layout.version)")
        }
        guard
            Snapshot.checksum(Array(headerBytes.dropLast(4)))
                == headerBytes.suffix(4).reversed().reduce(0, { $0 << 8 | UInt32($1) })
        else { throw invalid("is damaged") }
        let descriptionChecksum = try header.next(UInt32.self)
        let descriptionSize = try header.nextCount(Layout.descriptionMaximum)
        let moduleSize = try header.nextCount(1 << 30)
        let moduleChecksum = try header.next(UInt32.self)
        _ = try header.next(UInt32.self)
        pagesOffset = try header.nextCount(1 << 40)
        pageCount = try header.nextCount(1 << 30)
        guard pagesOffset % GuestMemory.pageSize == 0,
            pagesOffset >= Layout.headerSize + descriptionSize + moduleSize,
            size == pagesOffset + pageCount * GuestMemory.pageSize
        else { throw invalid("is not as long as it says") }
        let descriptionBytes = try read(Layout.headerSize, descriptionSize)
        guard Snapshot.checksum(descriptionBytes) == descriptionChecksum else { throw invalid("is damaged") }
        let moduleBytes = try read(Layout.headerSize + descriptionSize, moduleSize)
        guard Snapshot.checksum(moduleBytes) == moduleChecksum else { throw invalid("is damaged") }

        var reader = ByteReader(descriptionBytes) { invalid("is damaged") }
        let name = String(decoding: try reader.nextBytes(), as: UTF8.self)
        var sizes: [UInt64] = []
        for _ in 0..<7 { sizes.append(try reader.next(UInt64.self)) }
        let absent = try reader.nextBytes()
        let featureCount = try reader.nextCount(64)
        var features: [UInt32] = []
        for _ in 0..<featureCount { features.append(try reader.next(UInt32.self)) }
        guard ProcessorIdentity.hasAll(features) else {
            throw invalid("was made on a processor that has features which this one lacks")
        }

        module = try GuestModule(moduleBytes, name: name)
        var configuration = given
        configuration.stackSize = sizes[0]
        configuration.argumentArenaSize = sizes[1]
        configuration.memoryLimit = sizes[2]
        configuration.initialMemorySize = sizes[3] == 0 ? nil : sizes[3]
        guard sizes[4] <= 64 else { throw invalid("is damaged") }
        configuration.windowCount = Int(sizes[4])
        configuration.windowSize = configuration.windowCount == 0 ? given.windowSize : sizes[5]
        self.configuration = try configuration.validated()
        guard absent.count == module.imports.count else { throw invalid("is damaged") }
        let targets = zip(module.imports, absent).map { needed, absent -> GuestImage.ImportTarget in
            if absent != 0 { return .absent }
            return needed.name == LibraryFunction.threadLocalAddress ? .threadLocalAddress : .thunk
        }
        image = try module.image(self.configuration, imports: targets)
        let addressSpace = image.addressSpace
        heapEnd = sizes[6]
        guard heapEnd % AddressSpace.pageSize == 0, heapEnd >= addressSpace.heap.lowerBound,
            heapEnd <= addressSpace.heap.upperBound
        else { throw invalid("is damaged") }

        suspendedCall = try Self.suspendedCall(&reader, addressSpace)
        let runCount = try reader.nextCount(pageCount)
        let writable = addressSpace.pagesWritableByGuest
        var total = 0
        for _ in 0..<runCount {
            let first = try reader.nextCount(Int(addressSpace.size) / GuestMemory.pageSize)
            let count = try reader.nextCount(pageCount - total)
            let run = first..<first + count
            // In order, and nowhere but where the guest could have written it.
            guard count > 0, first >= runs.last?.upperBound ?? 0,
                writable.contains(where: { $0.lowerBound <= run.lowerBound && run.upperBound <= $0.upperBound })
            else { throw invalid("is damaged") }
            runs.append(run)
            total += count
        }
        let checksumCount = try reader.nextCount(pageCount)
        guard total == pageCount,
            checksumCount == (pageCount + Layout.pagesPerChecksum - 1) / Layout.pagesPerChecksum
        else { throw invalid("is damaged") }
        guard verifyingPages else { return }
        for index in 0..<checksumCount {
            let first = index * Layout.pagesPerChecksum
            let count = min(Layout.pagesPerChecksum, pageCount - first)
            let pages = try read(pagesOffset + first * GuestMemory.pageSize, count * GuestMemory.pageSize)
            guard try reader.next(UInt32.self) == Snapshot.checksum(pages) else { throw invalid("is damaged") }
        }
    }

    private static func suspendedCall(
        _ reader: inout ByteReader,
        _ addressSpace: AddressSpace
    ) throws(SandboxError) -> SuspendedCall? {
        guard try reader.next(UInt64.self) != 0 else { return nil }
        var general = Registers()
        for register in Registers.inOrder { general[keyPath: register] = try reader.next(UInt64.self) }
        let fsBase = try reader.next(UInt64.self)
        let gsBase = try reader.next(UInt64.self)
        var selectors: [UInt16] = []
        for _ in 0..<4 { selectors.append(try reader.next(UInt16.self)) }
        let function = try reader.next(UInt64.self)
        let arenaPosition = try reader.next(UInt64.self)
        let state = try reader.nextBytes()
        guard arenaPosition >= addressSpace.arena.lowerBound, arenaPosition <= addressSpace.arena.upperBound,
            state.count <= AddressSpace.vectorState.count
        else { throw reader.failure() }
        return SuspendedCall(
            registers: GuestMachine.CallRegisters(
                general: general,
                system: .user(fsBase: fsBase, gsBase: gsBase, selectors: selectors),
                extendedState: state
            ),
            function: function,
            arenaPosition: arenaPosition
        )
    }
}

extension Registers {
    /// All of them, in the order in which a file has them.
    fileprivate static var inOrder: [WritableKeyPath<Registers, UInt64>] {
        [
            \.rax, \.rbx, \.rcx, \.rdx, \.rsi, \.rdi, \.rbp, \.rsp, \.r8, \.r9, \.r10, \.r11, \.r12, \.r13, \.r14,
            \.r15, \.rip,
            \.rflags,
        ]
    }
}

/// What a guest can find out of the processor that it might rely on later.
enum ProcessorIdentity {
    /// Features by CPUID of the processor itself, which guests see where KVM does not filter it.
    static let features: [UInt32] = {
        func registers(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> [UInt32] {
            var registers: (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
            let isThere = unsafe withUnsafeMutableBytes(of: &registers) { bytes in
                unsafe shim_cpuid(leaf, subleaf, bytes.baseAddress!.assumingMemoryBound(to: UInt32.self)) != 0
            }
            return isThere ? [registers.0, registers.1, registers.2, registers.3] : [0, 0, 0, 0]
        }
        let basic = registers(1)
        let structured = registers(7)
        let extended = registers(0x8000_0001)
        // Not OSXSAVE and OSPKE, which are the operating system's, nor that there is a hypervisor.
        return [
            basic[2] & ~(1 << 27 | 1 << 31), basic[3], structured[1], structured[2] & ~(1 << 4), structured[3],
            registers(7, 1)[0], registers(0xd)[0], registers(0xd)[3], registers(0xd, 1)[0], extended[2], extended[3],
        ]
    }()

    static func hasAll(_ wanted: [UInt32]) -> Bool {
        wanted.count == features.count && zip(wanted, features).allSatisfy { $0 & ~$1 == 0 }
    }
}

private struct ByteWriter {
    var bytes: [UInt8] = []

    var checksum: UInt32 { Snapshot.checksum(bytes) }

    mutating func append<Value: FixedWidthInteger>(_ value: Value) {
        for shift in stride(from: 0, to: Value.bitWidth, by: 8) {
            bytes.append(UInt8(truncatingIfNeeded: value >> shift))
        }
    }
}

private struct ByteReader {
    private let bytes: [UInt8]
    private var position = 0
    let failure: () -> SandboxError

    init(_ bytes: [UInt8], failure: @escaping () -> SandboxError) {
        self.bytes = bytes
        self.failure = failure
    }

    mutating func next<Value: FixedWidthInteger>(_ type: Value.Type) throws(SandboxError) -> Value {
        let size = Value.bitWidth / 8
        guard bytes.count - position >= size else { throw failure() }
        defer { position += size }
        return bytes[position..<position + size].reversed().reduce(0) { $0 << 8 | Value(truncatingIfNeeded: $1) }
    }

    /// A number from 0 to a maximum.
    mutating func nextCount(_ maximum: Int) throws(SandboxError) -> Int {
        let value = try next(UInt64.self)
        guard maximum >= 0, value <= UInt64(maximum) else { throw failure() }
        return Int(value)
    }

    /// A count, and so many bytes.
    mutating func nextBytes() throws(SandboxError) -> [UInt8] {
        let count = try nextCount(bytes.count)
        guard bytes.count - position >= count else { throw failure() }
        defer { position += count }
        return Array(bytes[position..<position + count])
    }
}
