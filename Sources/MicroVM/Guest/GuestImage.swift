import CShims
import Glibc
import SystemPackage

/// A module as it lies in memory before any of its code has run: laid out, copied, linked, with the library's own pages
/// and the page tables around it. All sandboxes that are made alike share it.
final class GuestImage: Sendable {
    let addressSpace: AddressSpace
    /// For each import of the module, whether nobody provides it.
    let absentImports: [Bool]
    let memory: MemoryImage

    /// Where an import leads to in the guest.
    enum ImportTarget: Sendable {
        /// Nowhere: a null pointer.
        case absent
        /// Its thunk, which asks the host.
        case thunk
        /// Code in the trampoline.
        case threadLocalAddress
    }

    /// - Parameter module: the module; none for the guest that KVM is tried out with.
    init(_ module: GuestModule?, sizes: AddressSpace.Sizes, imports: [ImportTarget]) throws(SandboxError) {
        addressSpace = try AddressSpace(sizes)
        absentImports = imports.map { $0 == .absent }
        // Written through a shared mapping of a file in memory, in which every page lies at its guest address; then the
        // file is what sandboxes map.
        let size = Int(addressSpace.size)
        let descriptor = unsafe shim_memory_file("microvm-image")
        guard descriptor >= 0 else { throw PageWriter.failure(Errno(rawValue: -descriptor)) }
        let file = FileDescriptor(rawValue: descriptor)
        do throws(SandboxError) {
            guard ftruncate(descriptor, off_t(size)) == 0 else { throw PageWriter.failure(Errno(rawValue: errno)) }
            let mapping = unsafe mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
            guard let mapping = unsafe mapping, unsafe mapping != MAP_FAILED else {
                throw PageWriter.failure(Errno(rawValue: errno))
            }
            // Nobody keeps the mapping: the writer goes before it.
            defer { unsafe _ = munmap(mapping, size) }
            let writer = unsafe ImageWriter(memory: UnsafeMutableRawBufferPointer(start: mapping, count: size))
            Supervisor.install(in: writer)
            Trampoline.install(in: writer, addressSpace: addressSpace, importCount: imports.count)
            PageTables.write(for: addressSpace, into: writer)
            module?.load(into: writer, addressSpace: addressSpace, importAddresses: Self.addresses(of: imports))
        } catch {
            try? file.close()
            throw error
        }
        let written = Self.data(in: file)
        let store = try PageStore(
            file: file,
            fileOffset: 0,
            pageCount: size / GuestMemory.pageSize,
            isForeign: false,
            written: written
        )
        var pages = PageMap(memorySize: addressSpace.size)
        for run in written { pages.replace(run, with: store, firstIndex: run.lowerBound) }
        memory = MemoryImage(
            pages: pages,
            heapEnd: addressSpace.initialHeapEnd,
            windows: Array(repeating: nil, count: addressSpace.windows.count),
            windowPages: addressSpace.windowPages
        )
    }

    private static func addresses(of imports: [ImportTarget]) -> [UInt64] {
        imports.enumerated().map { index, target in
            switch target {
            case .absent: 0
            case .thunk: Trampoline.thunk(index)
            case .threadLocalAddress: Trampoline.threadLocalAddress
            }
        }
    }

    /// The pages that have been written, the page tables' among them.
    private static func data(in file: FileDescriptor) -> [Range<Int>] {
        var runs: [Range<Int>] = []
        let pageSize = Int64(GuestMemory.pageSize)
        var start: Int64 = 0
        var end: Int64 = 0
        while unsafe shim_file_data(file.rawValue, end, &start, &end) != 0 {
            runs.append(Int(start / pageSize)..<Int((end + pageSize - 1) / pageSize))
        }
        return runs
    }
}

/// Writes bytes to the guest addresses at which the library has laid them out.
@safe struct ImageWriter {
    /// All of a guest's memory; valid as long as whoever made this writer lets it be used.
    private let memory: UnsafeMutableRawBufferPointer

    init(memory: UnsafeMutableRawBufferPointer) { unsafe self.memory = memory }

    /// Traps when they are not inside the memory.
    func bytes(at address: UInt64, count: Int) -> UnsafeMutableRawBufferPointer {
        let size = unsafe UInt64(memory.count)
        precondition(
            count >= 0 && address <= size && UInt64(count) <= size - address,
            "the library laid out bytes outside of the guest's memory"
        )
        return unsafe UnsafeMutableRawBufferPointer(rebasing: memory[Int(address)..<Int(address) + count])
    }

    func storeWord(_ value: UInt64, at address: UInt64) {
        unsafe bytes(at: address, count: 8).storeBytes(of: value, as: UInt64.self)
    }

    func store(_ code: shim_code, at address: UInt64) {
        // A constant of this program, whole.
        let source = unsafe UnsafeRawBufferPointer(start: code.start, count: code.count)
        unsafe bytes(at: address, count: code.count).copyMemory(from: source)
    }
}
