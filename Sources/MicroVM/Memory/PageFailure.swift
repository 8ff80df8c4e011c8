/// An access to served memory that could not be served, and therefore failed.
struct PageFailure: Sendable {
    enum Reason: Sendable {
        /// There is no accessible memory.
        case outOfBounds
        /// The page source had no page, and said why.
        case sourceFailed(any Error)
        /// A kill did not wait for the page.
        case abandoned
    }

    /// Where in this process the access was; the kernel tells no more than its page of 4 KiB.
    var address: UInt
    /// Which of the sandbox's regions that is in.
    var region: Int
    /// How many bytes behind the region's beginning.
    var offset: Int
    var reason: Reason
}
