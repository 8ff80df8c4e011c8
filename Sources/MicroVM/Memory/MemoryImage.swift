/// The contents of a guest's memory at one moment, for any number of memories to be made like it.
final class MemoryImage: Sendable {
    let pages: PageMap
    /// Where the heap ends.
    let heapEnd: UInt64
    /// What is mapped into each window. Pages of a window that are in ``pages`` have been written since; the others are
    /// what is mapped.
    let windows: [WindowMapping?]
    /// All pages that belong to windows.
    let windowPages: Range<Int>
    private let plan = Locked<MappingPlan?>(nil)

    init(pages: PageMap, heapEnd: UInt64, windows: [WindowMapping?] = [], windowPages: Range<Int> = 0..<0) {
        self.pages = pages
        self.heapEnd = heapEnd
        self.windows = windows
        self.windowPages = windowPages
    }

    /// How to bring it into a new memory, made when it is first needed.
    ///
    /// - Parameter addressSpace: the layout of the memory; always the same for one image.
    func mappingPlan(for addressSpace: AddressSpace) throws(SandboxError) -> MappingPlan {
        try plan.withLock { existing throws(SandboxError) in
            if let existing { return existing }
            let made = try MappingPlan(pages, excluding: windowPages, heapEnd: heapEnd, in: addressSpace)
            existing = made
            return made
        }
    }
}
