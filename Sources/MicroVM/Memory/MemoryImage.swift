/// The contents of a guest's memory at one moment, for any number of memories to be made like it.
final class MemoryImage: Sendable {
    let pages: PageMap
    /// Where the heap ends.
    let heapEnd: UInt64
    private let plan = Locked<MappingPlan?>(nil)

    init(pages: PageMap, heapEnd: UInt64) {
        self.pages = pages
        self.heapEnd = heapEnd
    }

    /// How to bring it into a new memory, made when it is first needed.
    func mappingPlan() throws(SandboxError) -> MappingPlan {
        try plan.withLock { existing throws(SandboxError) in
            if let existing { return existing }
            let made = try MappingPlan(pages)
            existing = made
            return made
        }
    }
}
