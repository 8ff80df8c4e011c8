import CShims
import Glibc
import LinuxKVM
import SystemPackage

/// What a file says, checked.
struct SnapshotContents {
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
        guard size >= SnapshotFileLayout.headerSize else { throw invalid("is no snapshot") }
        let headerBytes = try read(0, SnapshotFileLayout.headerSize)
        var header = ByteReader(headerBytes) { invalid("is damaged") }
        guard try header.next(UInt64.self) == SnapshotFileLayout.magic else { throw invalid("is no snapshot") }
        let version = try header.next(UInt32.self)
        guard version == SnapshotFileLayout.version else {
            throw invalid("is a snapshot of version \(version), and not of \(SnapshotFileLayout.version)")
        }
        guard
            SnapshotFileLayout.checksum(Array(headerBytes.dropLast(4)))
                == headerBytes.suffix(4).reversed().reduce(0, { $0 << 8 | UInt32($1) })
        else { throw invalid("is damaged") }
        let descriptionChecksum = try header.next(UInt32.self)
        let descriptionSize = try header.nextCount(SnapshotFileLayout.descriptionMaximum)
        let moduleSize = try header.nextCount(1 << 30)
        let moduleChecksum = try header.next(UInt32.self)
        _ = try header.next(UInt32.self)
        pagesOffset = try header.nextCount(1 << 40)
        pageCount = try header.nextCount(1 << 30)
        guard pagesOffset % GuestMemory.pageSize == 0,
            pagesOffset >= SnapshotFileLayout.headerSize + descriptionSize + moduleSize,
            size == pagesOffset + pageCount * GuestMemory.pageSize
        else { throw invalid("is not as long as it says") }
        let descriptionBytes = try read(SnapshotFileLayout.headerSize, descriptionSize)
        guard SnapshotFileLayout.checksum(descriptionBytes) == descriptionChecksum else { throw invalid("is damaged") }
        let moduleBytes = try read(SnapshotFileLayout.headerSize + descriptionSize, moduleSize)
        guard SnapshotFileLayout.checksum(moduleBytes) == moduleChecksum else { throw invalid("is damaged") }

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
            checksumCount == (pageCount + SnapshotFileLayout.pagesPerChecksum - 1) / SnapshotFileLayout.pagesPerChecksum
        else { throw invalid("is damaged") }
        guard verifyingPages else { return }
        for index in 0..<checksumCount {
            let first = index * SnapshotFileLayout.pagesPerChecksum
            let count = min(SnapshotFileLayout.pagesPerChecksum, pageCount - first)
            let pages = try read(pagesOffset + first * GuestMemory.pageSize, count * GuestMemory.pageSize)
            guard try reader.next(UInt32.self) == SnapshotFileLayout.checksum(pages) else {
                throw invalid("is damaged")
            }
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
