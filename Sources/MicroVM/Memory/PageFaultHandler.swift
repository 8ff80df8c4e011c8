/// Serves the page faults of lazily loaded guest memory, on one thread for as many sandboxes as there are.
///
/// A guest that accesses a page which is not there yet stands still until its ``PageSource`` has answered. Files and
/// bytes are read on the handler's own thread, functions of the embedder run as tasks beside one another.
///
/// The thread lives from the first memory that is served to the last; it, and all descriptors, are gone when the
/// handler is. The mechanism is described in userfaultfd(2).
public final class PageFaultHandler: Sendable {
    /// What a handler has done so far. Pages are those of the processor, of 4,096 bytes.
    public struct Statistics: Hashable, Sendable {
        /// Faults the kernel has told of. One access can fault more than once, and several can share a page.
        public var faults = 0
        /// Pages filled with bytes of their source.
        public var copiedPages = 0
        /// Pages filled with zeros, because their source had nothing for them.
        public var zeroPages = 0
        /// Accesses that failed because there was no accessible memory.
        public var outOfBoundsAccesses = 0
        /// Accesses that failed because the source did.
        public var sourceFailures = 0
        /// Accesses that failed because a kill did not wait for their page.
        public var abandonedAccesses = 0
    }

    private let service: PageFaultService
    private static let sharedHandler = Locked<WeakHandler>(WeakHandler())

    private struct WeakHandler {
        weak var handler: PageFaultHandler?
    }

    /// The one that serves everybody who has none of their own; it lives as long as somebody holds it.
    static func shared() throws(SandboxError) -> PageFaultHandler {
        try sharedHandler.withLock { shared throws(SandboxError) in
            if let handler = shared.handler { return handler }
            let handler = try PageFaultHandler()
            shared.handler = handler
            return handler
        }
    }

    /// Gets a descriptor for page faults; the thread begins later.
    ///
    /// - Throws: ``SandboxError/Code/systemCallFailed`` where userfaultfd is not there, or not permitted: the message
    ///   says which setting to change.
    public init() throws(SandboxError) {
        service = try PageFaultService()
    }

    deinit { service.shutDown() }

    /// What has been done so far: of every access that has ended, its page or its failure is counted.
    public var statistics: Statistics { service.currentStatistics }

    /// Begins to serve private memory of this process. Until sources are attached to its regions nobody can access
    /// them.
    ///
    /// The memory must stay mapped until ``ServedMemory/remove()`` has returned. Unmapping it earlier is noticed, a
    /// moment later than whoever maps something else there.
    ///
    /// - Throws: ``SandboxError/Code/systemCallFailed`` when the memory is of another kind, or served already, or when
    ///   there can be no more threads or mappings.
    func add(_ locator: FaultLocator) throws(SandboxError) -> ServedMemory {
        try service.add(locator)
    }
}
