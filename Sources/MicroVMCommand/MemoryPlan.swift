import MicroVM

/// How a sandbox's memory is shared out between image, stack, arguments and heap.
struct MemoryPlan: Equatable {
    private(set) var memory: UInt64
    private(set) var stack: UInt64
    private(set) var arena: UInt64

    static let page: UInt64 = 4096
    static let greatest: UInt64 = 64 << 30
    static let usualMemory: UInt64 = 64 << 20
    static let usualStack: UInt64 = 1 << 20
    /// What is left for the heap, at least, where nobody has said how much memory there is.
    static let leastHeap: UInt64 = 32 << 20
    /// How large the arguments may be, where nobody has said how much memory there is.
    static let usualArguments: UInt64 = 1 << 30

    /// - Parameters:
    ///   - image: the size of the module in memory, in bytes.
    ///   - arguments: the size of the arguments' bytes in memory.
    ///   - memory: the limit that was asked for; it is kept.
    /// - Throws: ``CommandFailure`` when it does not all fit.
    init(image: UInt64, arguments: UInt64, memory: ByteCount?, stack: ByteCount?) throws(CommandFailure) {
        let stack = stack?.bytes ?? Self.usualStack
        guard (Self.page...Self.greatest).contains(stack) else {
            throw Self.misfit("--stack \(ByteCount(stack)) is not between 4KiB and 64GiB.")
        }
        if let memory, memory.bytes > Self.greatest {
            throw Self.misfit("--memory \(memory) is more than 64GiB, the most a sandbox can have.")
        }
        self.stack = Self.roundedUp(stack)
        arena = Self.roundedUp(max(arguments, 1))
        let needed = image + self.stack + arena
        self.memory = memory?.bytes ?? max(Self.usualMemory, needed + Self.leastHeap)
        guard needed + Self.page <= self.memory, self.memory <= Self.greatest else {
            let parts = """
                the module (\(ByteCount(image))), the stack (\(ByteCount(self.stack))) and the arguments \
                (\(ByteCount(arena)))
                """
            throw Self.misfit(
                memory.map {
                    "--memory \($0) is too little for \(parts); it must be \(ByteCount(needed + Self.page)) or more."
                } ?? "No sandbox can be as large as \(parts) together; 64GiB is the most."
            )
        }
    }

    private static func roundedUp(_ size: UInt64) -> UInt64 { (size + page - 1) / page * page }

    private static func misfit(_ message: String) -> CommandFailure {
        CommandFailure(.usage, "invalidConfiguration", message)
    }
}
