import CShims
import Glibc
import LinuxKVM
import SystemPackage

/// A guest's registers and memory as an ELF file that debuggers open (System V ABI, chapter 5, ET_CORE).
///
/// Headers and registers come first in the file, then the stack from its top frame on, then what the guest can write,
/// then the rest: where the size is limited, what is left out comes last. Pages of zeros are holes.
struct CoreDump {
    /// A stretch of the guest's memory, and where it is in the file.
    private struct Part {
        var range: Range<UInt64>
        var flags: UInt32
        var window: Int?
        var fileOffset: UInt64 = 0
        var fileSize: UInt64 = 0
    }

    private static let programHeaderSize = 56
    private static let headerSize = 64
    /// So many parts of an image are told apart; the image of a module with more of them is one part.
    private static let imagePartsMaximum = 1000
    private static let pagesAtOnce = 64

    let memory: GuestMemory
    let notes: CoreDumpNotes
    private var parts: [Part] = []
    /// The indices of the parts in the order in which they are written.
    private var order: [Int] = []
    private let written: [Range<Int>]?

    init(_ memory: GuestMemory, notes: CoreDumpNotes, stackPointer: UInt64) throws(SandboxError) {
        self.memory = memory
        self.notes = notes
        written = try Self.writtenPages(of: memory)
        parts = Self.parts(of: memory, stackPointer: stackPointer)
        let stack = memory.addressSpace.stack
        func rank(_ part: Part) -> Int {
            if stack.contains(part.range.lowerBound) { return part.range.upperBound == stack.upperBound ? 0 : 3 }
            if part.window != nil { return 4 }
            return part.flags & ELF.SegmentFlags.write != 0 ? 1 : 2
        }
        let ranks = parts.map(rank)
        order = parts.indices.sorted { (ranks[$0], $0) < (ranks[$1], $1) }
    }

    /// What the guest can access, by ascending address.
    private static func parts(of memory: GuestMemory, stackPointer: UInt64) -> [Part] {
        let addressSpace = memory.addressSpace
        let image = addressSpace.imageBase..<addressSpace.imageBase + addressSpace.imageSize
        let isImageOnePart =
            addressSpace.regions.count { image.contains($0.range.lowerBound) } > imagePartsMaximum
        var parts: [Part] = []
        for region in addressSpace.regions where region.isUser {
            var part = Part(range: region.range, flags: UInt32(region.permissions.rawValue))
            if let window = addressSpace.window(at: region.range.lowerBound) {
                guard let mapping = memory.windows[window] else { continue }
                part.window = window
                part.range = region.range.lowerBound..<region.range.lowerBound + mapping.size
                if mapping.access == .readOnly { part.flags = ELF.SegmentFlags.read }
            } else if region.range == addressSpace.heap {
                part.range = region.range.lowerBound..<memory.heapEnd
            } else if isImageOnePart, image.contains(region.range.lowerBound) {
                guard parts.last?.range != image else { continue }
                part.range = image
                part.flags = ELF.SegmentFlags.read | ELF.SegmentFlags.write | ELF.SegmentFlags.execute
            } else if region.range == addressSpace.stack {
                let page = stackPointer & ~(AddressSpace.pageSize - 1)
                if page > part.range.lowerBound, page < part.range.upperBound {
                    var unused = part
                    unused.range = part.range.lowerBound..<page
                    parts.append(unused)
                    part.range = page..<part.range.upperBound
                }
            }
            if !part.range.isEmpty { parts.append(part) }
        }
        return parts
    }

    // MARK: - Which pages are not zero

    /// The pages that are no file's, in ascending order; none where the kernel does not say.
    private static func writtenPages(of memory: GuestMemory) throws(SandboxError) -> [Range<Int>]? {
        var pages: [Range<Int>] = []
        let windows = zip(memory.addressSpace.windows, memory.windows).compactMap { window, mapping in
            mapping.map { window.lowerBound..<window.lowerBound + $0.size }
        }
        for range in [0..<memory.heapEnd] + windows {
            let first = Int(range.lowerBound) / GuestMemory.pageSize
            let bytes = unsafe UnsafeRawBufferPointer(memory.hostBytes(at: range.lowerBound, count: range.count))
            let isKnown = unsafe try WrittenPages.find(in: bytes) {
                pages.append($0.lowerBound + first..<$0.upperBound + first)
            }
            if !isKnown { return nil }
        }
        return pages
    }

    /// The pages of a part that may have something in them, in ascending order. Never those that would first have to be
    /// fetched.
    private func candidates(_ part: Part) throws(SandboxError) -> [Range<Int>] {
        let pageSize = UInt64(GuestMemory.pageSize)
        let pages = Int(part.range.lowerBound / pageSize)..<Int(part.range.upperBound / pageSize)
        var found: [Range<Int>] = []
        if let written {
            // There may be many parts, and many runs.
            var low = 0
            var high = written.count
            while low < high {
                let middle = (low + high) / 2
                if written[middle].upperBound <= pages.lowerBound { low = middle + 1 } else { high = middle }
            }
            found = written[low...].prefix { $0.lowerBound < pages.upperBound }.map { $0.clamped(to: pages) }
        } else if part.window == nil {
            return [pages]
        }
        if let window = part.window {
            if let (file, offset) = memory.windows[window]?.contents.file {
                found += Self.data(of: file, from: offset, pages: pages)
            }
        } else {
            try memory.image.pages.forEachPage(in: pages) { page throws(SandboxError) in
                if let last = found.indices.last, found[last].upperBound == page {
                    found[last] = found[last].lowerBound..<page + 1
                } else {
                    found.append(page..<page + 1)
                }
            }
        }
        found.sort { $0.lowerBound < $1.lowerBound }
        var merged: [Range<Int>] = []
        for run in found {
            if let last = merged.last, last.upperBound >= run.lowerBound {
                merged[merged.count - 1] = last.lowerBound..<max(last.upperBound, run.upperBound)
            } else {
                merged.append(run)
            }
        }
        return merged
    }

    /// The pages that a file which is mapped there has data for.
    private static func data(of file: FileDescriptor, from offset: Int, pages: Range<Int>) -> [Range<Int>] {
        let pageSize = GuestMemory.pageSize
        var found: [Range<Int>] = []
        var start = Int64(offset)
        var end = Int64(offset)
        while unsafe shim_file_data(file.rawValue, end, &start, &end) != 0 {
            let run = (Int(start) - offset) / pageSize..<(Int(end) - offset + pageSize - 1) / pageSize
            let moved = run.lowerBound + pages.lowerBound..<run.upperBound + pages.lowerBound
            guard moved.lowerBound < pages.upperBound else { break }
            found.append(moved.clamped(to: pages))
        }
        return found
    }

    // MARK: - Writing

    /// Writes all of it, or as much as fits.
    ///
    /// - Parameter maximumSize: of what the file takes on the disk.
    mutating func write(to file: CoreDumpFile, maximumSize: UInt64) throws(SandboxError) {
        let tableSize = Self.headerSize + Self.programHeaderSize * (parts.count + 1)
        let start = UInt64(tableSize + notes.bytes.count).roundedUp(to: AddressSpace.pageSize)
        let sizeLimit = CoreDumpFile.sizeLimit
        guard start <= min(maximumSize, sizeLimit) else {
            throw SandboxError(
                .systemCallFailed,
                "\(file.path) cannot be written: the registers alone take \(start) bytes, more than is allowed.",
                underlyingError: Errno.fileTooLarge
            )
        }
        // Where something goes wrong, the registers are there at least.
        try file.write(header + programHeaders(tableSize: tableSize) + notes.bytes, at: 0)
        var budget = maximumSize - start
        var offset = start
        for index in order {
            parts[index].fileOffset = offset
            let room = (max(sizeLimit, offset) - offset) & ~(AddressSpace.pageSize - 1)
            let size = min(room, UInt64(parts[index].range.count))
            parts[index].fileSize = try write(parts[index], size, &budget, to: file)
            offset += parts[index].fileSize
            // From where the limit was met on nothing more is written, so that nothing is missing in between.
            if parts[index].fileSize < UInt64(parts[index].range.count) { break }
        }
        // What is left out has to have a place as well: at 0, debuggers would take the dump for a module in itself.
        for index in parts.indices where parts[index].fileSize == 0 { parts[index].fileOffset = offset }
        try file.setSize(offset)
        try file.write(programHeaders(tableSize: tableSize), at: UInt64(Self.headerSize))
    }

    /// Writes the pages of a part that are not zero.
    ///
    /// - Returns: how many bytes of the part are in the file then, holes included.
    private func write(
        _ part: Part,
        _ size: UInt64,
        _ budget: inout UInt64,
        to file: CoreDumpFile
    ) throws(SandboxError) -> UInt64 {
        let pageSize = GuestMemory.pageSize
        let end = part.range.lowerBound + size
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.pagesAtOnce * pageSize, alignment: 16)
        defer { unsafe buffer.deallocate() }
        for run in try candidates(part) {
            var page = run.lowerBound
            while page < run.upperBound, UInt64(page * pageSize) < end {
                let last = min(run.upperBound, page + Self.pagesAtOnce, Int(end) / pageSize)
                let contents = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[..<((last - page) * pageSize)])
                unsafe read(page..<last, into: contents)
                for (index, page) in (page..<last).enumerated() {
                    let bytes = unsafe UnsafeRawBufferPointer(
                        rebasing: contents[index * pageSize..<(index + 1) * pageSize]
                    )
                    guard unsafe !Self.isZero(bytes) else { continue }
                    let distance = UInt64(page * pageSize) - part.range.lowerBound
                    guard budget >= UInt64(pageSize) else {
                        budget = 0
                        return distance
                    }
                    budget -= UInt64(pageSize)
                    unsafe try file.write(bytes, at: part.fileOffset + distance)
                }
                page = last
            }
        }
        return size
    }

    /// Copies pages by way of the kernel, because those of a file can be gone; what cannot be had is zero.
    private func read(_ pages: Range<Int>, into buffer: UnsafeMutableRawBufferPointer) {
        let pageSize = GuestMemory.pageSize
        let address = UInt64(pages.lowerBound * pageSize)
        guard unsafe (try? memory.copyOut(address, into: buffer)) == nil else { return }
        for index in 0..<pages.count {
            let page = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[index * pageSize..<(index + 1) * pageSize])
            if unsafe (try? memory.copyOut(address + UInt64(index * pageSize), into: page)) == nil {
                unsafe page.initializeMemory(as: UInt8.self, repeating: 0)
            }
        }
    }

    private static func isZero(_ bytes: UnsafeRawBufferPointer) -> Bool {
        // It begins with a zero, and each byte is like the next.
        unsafe bytes[0] == 0 && memcmp(bytes.baseAddress!, bytes.baseAddress! + 1, bytes.count - 1) == 0
    }

    // MARK: - Headers

    private var header: [UInt8] {
        var bytes: [UInt8] = []
        bytes.append(ELF.magic)
        bytes += [ELF.class64, ELF.littleEndian, ELF.currentVersion] + [UInt8](repeating: 0, count: 9)
        bytes.append(ELF.FileType.core)
        bytes.append(ELF.machineAMD64)
        bytes.append(UInt32(ELF.currentVersion))
        bytes.append(UInt64(0))
        bytes.append(UInt64(Self.headerSize))
        bytes.append(UInt64(0))
        bytes.append(UInt32(0))
        for field in [Self.headerSize, Self.programHeaderSize, parts.count + 1, 0, 0, 0] { bytes.append(UInt16(field)) }
        return bytes
    }

    private func programHeaders(tableSize: Int) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.append(ELF.SegmentType.note)
        bytes.append(UInt32(0))
        for field in [tableSize, 0, 0, notes.bytes.count, 0, 4] { bytes.append(UInt64(field)) }
        for part in parts {
            bytes.append(ELF.SegmentType.load)
            bytes.append(part.flags)
            let fields = [
                // In memory as in the file, or what is left out would be shown as zeros.
                part.fileOffset, part.range.lowerBound, 0, part.fileSize, part.fileSize, AddressSpace.pageSize,
            ]
            for field in fields { bytes.append(field) }
        }
        return bytes
    }
}
