extension ModuleParser {
    /// The program headers of which a module has at most one.
    struct SpecialHeaders {
        var dynamic: ELFProgramHeader?
        var threadLocalStorage: ELFProgramHeader?
        var readOnlyAfterRelocation: ELFProgramHeader?
    }

    /// Collects the segments, with the addresses that the file gives them.
    mutating func parseProgramHeaders(_ headers: Range<UInt64>) throws(SandboxError) -> SpecialHeaders {
        var special = SpecialHeaders()
        var offset = headers.lowerBound
        while offset < headers.upperBound {
            let header = ELFProgramHeader(file, at: offset)
            offset += ELF.programHeaderSize
            switch header.type {
            case ELF.SegmentType.load: try addSegment(header)
            case ELF.SegmentType.interpreter:
                throw refusal("it asks for a program interpreter (PT_INTERP), as executables do; link it with -shared")
            case ELF.SegmentType.stack:
                guard header.flags & ELF.SegmentFlags.execute == 0 else {
                    throw refusal("it asks for an executable stack (PT_GNU_STACK)")
                }
            case ELF.SegmentType.dynamic:
                guard special.dynamic == nil else { throw refusal("it has more than one dynamic section (PT_DYNAMIC)") }
                special.dynamic = header
            case ELF.SegmentType.threadLocalStorage:
                guard special.threadLocalStorage == nil else {
                    throw refusal("it has more than one block of thread-local variables (PT_TLS)")
                }
                special.threadLocalStorage = header
            case ELF.SegmentType.readOnlyAfterRelocation:
                guard special.readOnlyAfterRelocation == nil else {
                    throw refusal("it has more than one range to be read-only after relocation (PT_GNU_RELRO)")
                }
                special.readOnlyAfterRelocation = header
            case ELF.SegmentType.unwindTable: unwindHeader = header
            default: break  // The rest informs.
            }
        }
        return special
    }

    private mutating func addSegment(_ header: ELFProgramHeader) throws(SandboxError) {
        let segment = "its segment at \(hexadecimal(header.address))"
        guard header.memorySize >= header.fileSize else {
            throw refusal("\(segment) is larger in the file than in memory")
        }
        guard header.memorySize > 0 else { return }
        guard !header.permissions.isSuperset(of: [.write, .execute]) else {
            throw refusal("\(segment) is both writable and executable")
        }
        guard file.range(offset: header.offset, size: header.fileSize) != nil else {
            throw refusal("\(segment) is not all in the file")
        }
        guard let alignment = header.alignmentOrOne, alignment <= Self.maximumAlignment else {
            throw refusal(
                "\(segment) has an alignment of \(header.alignment), not a power of two up to \(Self.maximumAlignment)"
            )
        }
        guard header.address & (alignment - 1) == header.offset & (alignment - 1) else {
            throw refusal("\(segment) is misaligned")
        }
        guard !header.address.addingReportingOverflow(header.memorySize).overflow else {
            throw refusal("\(segment) reaches beyond the end of the address space")
        }
        imageAlignment = max(imageAlignment, alignment)
        segments.append(
            GuestModule.Segment(
                address: header.address,
                fileOffset: header.offset,
                fileSize: header.fileSize,
                memorySize: header.memorySize,
                permissions: header.permissions
            )
        )
    }

    /// Makes the segments' addresses relative to the image, and derives the permissions of each of its pages.
    mutating func layOutSegments() throws(SandboxError) {
        segments.sort { $0.address < $1.address }
        guard let first = segments.first else { throw refusal("it has no segment to load (PT_LOAD)") }
        var end = first.address
        for segment in segments {
            guard segment.address >= end else {
                throw refusal("its segments overlap at \(hexadecimal(segment.address))")
            }
            end = segment.end
        }
        base = first.address & ~(imageAlignment - 1)
        guard end - base <= Self.maximumImageSize else { throw refusal("its image is larger than 4 GiB") }
        imageSize = Self.roundedUpToPage(end - base)
        segments = segments.map {
            GuestModule.Segment(
                address: $0.address - base,
                fileOffset: $0.fileOffset,
                fileSize: $0.fileSize,
                memorySize: $0.memorySize,
                permissions: $0.permissions
            )
        }
        for segment in segments { try mapPages(of: segment) }
        mappings.removeAll { $0.permissions.isEmpty }
    }

    private mutating func mapPages(of segment: GuestModule.Segment) throws(SandboxError) {
        var start = Self.roundedDownToPage(segment.address)
        let end = Self.roundedUpToPage(segment.end)
        if let last = mappings.last, start < last.range.upperBound {
            // The segment begins in the page in which the one before it ends. A linker does this only when told to.
            // Code and constants may share it, the constants being executable then; what is writable may share it only
            // with its like, because else the guest could write what was declared to be constant, or even code.
            let union = last.permissions.union(segment.permissions)
            guard last.permissions == segment.permissions || !union.contains(.write) else {
                throw refusal(
                    "the page at \(hexadecimal(base &+ start)) is shared by segments with different permissions;"
                        + " link with -z max-page-size=4096"
                )
            }
            let shared = start..<start + Self.pageSize
            mappings[mappings.count - 1].range = last.range.lowerBound..<start
            if last.range.lowerBound == start { mappings.removeLast() }
            appendMapping(shared, union)
            start = shared.upperBound
        }
        appendMapping(start..<end, segment.permissions)
    }

    private mutating func appendMapping(_ range: Range<UInt64>, _ permissions: GuestModule.Permissions) {
        guard !range.isEmpty else { return }
        if let last = mappings.last, last.range.upperBound == range.lowerBound, last.permissions == permissions {
            mappings[mappings.count - 1].range = last.range.lowerBound..<range.upperBound
        } else {
            mappings.append(GuestModule.Mapping(range: range, permissions: permissions))
        }
    }

    /// Takes the permission to write from the pages that only relocations write.
    mutating func protect(_ header: ELFProgramHeader?) throws(SandboxError) {
        guard let header, header.memorySize > 0 else { return }
        let start = header.address &- base
        guard let index = segments.index(containing: start), segments[index].permissions.contains(.write),
            case let segment = segments[index],
            // Linkers may round the range up to the end of the segment's last page.
            header.memorySize <= Self.roundedUpToPage(segment.end) - start
        else { throw refusal("its PT_GNU_RELRO range is not inside a writable segment") }

        // Only whole pages can be protected, and none that holds anything else that is to stay writable. At the start
        // of a segment, what comes before in the same page is not used; at its end, what comes after.
        var lower = Self.roundedUpToPage(start)
        if start == segment.address, index == 0 || segments[index - 1].end <= Self.roundedDownToPage(start) {
            lower = Self.roundedDownToPage(start)
        }
        var end = start + header.memorySize
        if end > segment.end, index + 1 < segments.count,
            segments[index + 1].address < Self.roundedUpToPage(segment.end)
        {
            end = segment.end
        }
        let upper = Self.roundedDownToPage(end)
        guard lower < upper else { return }

        let range = lower..<upper
        readOnlyAfterRelocation = range
        let all = mappings
        mappings = []
        for mapping in all {
            let inside = mapping.range.clamped(to: range)
            guard !inside.isEmpty else {
                mappings.append(mapping)
                continue
            }
            appendMapping(mapping.range.lowerBound..<inside.lowerBound, mapping.permissions)
            appendMapping(inside, .read)
            appendMapping(inside.upperBound..<mapping.range.upperBound, mapping.permissions)
        }
    }

    /// Checks the thread-local variables' sizes and where their initial values are.
    mutating func parseThreadLocalStorage(_ header: ELFProgramHeader?) throws(SandboxError) {
        guard let header, header.memorySize > 0 || header.fileSize > 0 else { return }
        let block = "its block of thread-local variables (PT_TLS)"
        guard header.memorySize >= header.fileSize else {
            throw refusal("\(block) is larger in the file than in memory")
        }
        guard header.memorySize <= Self.maximumThreadLocalSize else {
            throw refusal("\(block) is larger than \(Self.maximumThreadLocalSize) bytes")
        }
        guard let alignment = header.alignmentOrOne, alignment <= Self.pageSize else {
            throw refusal("\(block) has an alignment of \(header.alignment), not a power of two up to \(Self.pageSize)")
        }
        var address: UInt64 = 0
        var fileOffset: UInt64 = 0
        if header.fileSize > 0 {
            address = header.address &- base
            guard let range = fileRange(address: address, size: header.fileSize) else {
                throw refusal("\(block) is not all in one segment of the file")
            }
            fileOffset = range.lowerBound
        }
        // The block begins at an address that is to its alignment what its address in the file is, and ends at or
        // before one that is aligned. Where linkers align the block itself, this is its size rounded up.
        let padding = (0 &- header.address &- header.memorySize) & (alignment - 1)
        threadLocalStorage = GuestModule.ThreadLocalStorage(
            address: address,
            fileOffset: fileOffset,
            fileSize: header.fileSize,
            memorySize: header.memorySize,
            alignment: alignment,
            distance: header.memorySize + padding
        )
    }

    static func roundedDownToPage(_ address: UInt64) -> UInt64 { address & ~(pageSize - 1) }

    /// For addresses in an image only, which are at most 4 GiB.
    static func roundedUpToPage(_ address: UInt64) -> UInt64 { (address + pageSize - 1) & ~(pageSize - 1) }
}
