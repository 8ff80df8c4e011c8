import CShims

/// Calls of one function that are made with one entry of the guest: first their arguments, then their results.
///
/// They lie here as they shall lie in the argument arena, so that whoever writes the arguments need not be on the
/// sandbox's thread. A batch belongs to one side at a time: to the stream that fills it and takes the results, and to
/// the sandbox's thread while the stream waits for that.
@safe @usableFromInline final class CallBatch: ArgumentMemory, @unchecked Sendable {
    /// Bytes of a frame, and where in it the registers of the arguments begin.
    private static let frameSize = Int(SHIM_FRAME_SIZE)
    private static let argumentsOffset = Int(SHIM_FRAME_INTEGERS)
    private static let argumentsSize = frameSize - argumentsOffset

    let arena: Range<UInt64>
    private let capacity: Int
    /// Where the frames end, a multiple of 16.
    private let bytesOffset: Int
    /// What the arena shall begin with: a frame for each call that there is room for, then what their pointers name.
    private var contents: UnsafeMutableRawBufferPointer
    /// One call's arguments or results, as in the mailbox.
    private let page: UnsafeMutableRawPointer
    /// The first address in the arena that is free.
    private var arenaPosition: UInt64
    /// How many calls there are.
    @usableFromInline private(set) var count = 0
    /// How many of them have returned.
    @usableFromInline private(set) var doneCount = 0
    /// How many words the only call passes on the stack; a batch has no stack.
    private var stackArgumentCount = 0
    /// How many calls the next batch may have: more as long as batches are quick, so that neither a slow function's
    /// results nor other callers wait for long.
    private var limit = 16

    /// - Parameters:
    ///   - arena: of the sandbox, whole pages.
    ///   - maximum: how many calls a batch may have, at least one.
    init(arena: Range<UInt64>, maximum: Int) {
        self.arena = arena
        // Half of the arena stays for what pointers name.
        capacity = min(maximum, max(1, arena.count / 2 / Self.frameSize))
        let mailboxSize = Int(AddressSpace.pageSize)
        unsafe page = .allocate(byteCount: mailboxSize, alignment: 16)
        unsafe page.initializeMemory(as: UInt8.self, repeating: 0, count: mailboxSize)
        bytesOffset = (capacity * Self.frameSize + 15) & ~15
        unsafe contents = .allocate(byteCount: bytesOffset, alignment: 16)
        unsafe contents.initializeMemory(as: UInt8.self, repeating: 0)
        arenaPosition = arena.lowerBound + UInt64(bytesOffset)
    }

    deinit {
        unsafe contents.deallocate()
        unsafe page.deallocate()
    }

    private var mailbox: Mailbox { unsafe Mailbox(imitatedBy: page) }

    // MARK: The stream's side

    /// Forgets all calls.
    @usableFromInline func removeAll() {
        count = 0
        doneCount = 0
        stackArgumentCount = 0
        arenaPosition = arena.lowerBound + UInt64(bytesOffset)
    }

    /// Whether another call may be added: one with words for the stack has a batch to itself.
    @usableFromInline var hasRoom: Bool { count < min(limit, capacity) && stackArgumentCount == 0 }

    /// Where the next call's arguments go; ``add(_:)`` must follow.
    @usableFromInline func argumentWriter() -> GuestValueWriter {
        .arguments(mailbox: mailbox, memory: self, arenaPosition: arenaPosition)
    }

    /// Adds the call whose arguments have been written. Whether it may be one of this batch; else it is not there.
    @usableFromInline func add(_ arguments: borrowing GuestValueWriter) -> Bool {
        guard arguments.stackArgumentCount == 0 || count == 0 else { return false }
        stackArgumentCount = arguments.stackArgumentCount
        arenaPosition = arguments.arenaPosition
        unsafe (contents.baseAddress! + count * Self.frameSize + Self.argumentsOffset)
            .copyMemory(from: page + Int(SHIM_MAILBOX_INTEGERS), byteCount: Self.argumentsSize)
        count += 1
        return true
    }

    func argumentBytes(at address: UInt64, count: Int) -> UnsafeMutableRawBufferPointer {
        // Both are the writer's, which keeps inside the arena.
        let offset = Int(address - arena.lowerBound)
        if unsafe offset + count > contents.count { grow(to: offset + count) }
        return unsafe UnsafeMutableRawBufferPointer(rebasing: contents[offset..<offset + count])
    }

    private func grow(to size: Int) {
        let grown = unsafe UnsafeMutableRawBufferPointer.allocate(
            byteCount: min(max(size, contents.count * 2), arena.count),
            alignment: 16
        )
        unsafe grown.copyMemory(from: UnsafeRawBufferPointer(contents))
        unsafe grown[contents.count...].initializeMemory(as: UInt8.self, repeating: 0)
        unsafe contents.deallocate()
        unsafe contents = grown
    }

    /// The results of a call that has returned.
    @usableFromInline func resultReader(_ index: Int) -> GuestValueReader {
        // The stream asks for those that are done; the guest's word for that is `finish`'s to check.
        precondition(index < doneCount, "a result that there is not")
        unsafe (page + Int(SHIM_MAILBOX_RESULTS))
            .copyMemory(from: contents.baseAddress! + index * Self.frameSize, byteCount: Self.argumentsOffset)
        return .result(mailbox: mailbox, memory: nil)
    }

    /// The batch is over, and took so long.
    func adapt(to duration: Duration) {
        if duration < .milliseconds(1), count >= limit { limit = min(limit * 2, capacity) }
        if duration > .milliseconds(4) { limit = max(limit / 2, 1) }
    }

    // MARK: The sandbox's side

    /// Whether there is just one call, which needs the stack, and so goes the way of calls that are made by themselves.
    var isSingle: Bool { stackArgumentCount > 0 }

    /// Puts the arguments into the mailbox. What to call with.
    func passSingle(_ memory: GuestMemory, _ mailbox: Mailbox) -> GuestValueWriter {
        passBytes(memory)
        return .arguments(copying: self.mailbox, stackArgumentCount, to: mailbox, memory, arenaPosition: arenaPosition)
    }

    func finishSingle(_ mailbox: Mailbox) {
        for index in 0..<2 { storeResult(mailbox.result(at: index), at: index * 8) }
        storeResult(mailbox.vectorResult, at: Int(SHIM_FRAME_RESULT_VECTOR))
        doneCount = 1
    }

    private func storeResult(_ word: UInt64, at offset: Int) {
        unsafe contents.storeBytes(of: word, toByteOffset: offset, as: UInt64.self)
    }

    /// Puts frames, and what their pointers name, into the arena, and says so in the mailbox. The first address in the
    /// arena that is free.
    func pass(_ function: UInt64, _ memory: GuestMemory, _ mailbox: Mailbox) -> UInt64 {
        let size = count * Self.frameSize
        unsafe memory.hostBytes(at: arena.lowerBound, count: size)
            .copyMemory(from: UnsafeRawBufferPointer(rebasing: contents[..<size]))
        passBytes(memory)
        mailbox.setBatch(of: function, UInt32(count), frames: arena.lowerBound)
        return arenaPosition
    }

    private func passBytes(_ memory: GuestMemory) {
        let size = Int(arenaPosition - arena.lowerBound) - bytesOffset
        guard size > 0 else { return }
        // What follows the last bytes up to the next multiple of 16 may not be here.
        let end = unsafe min(bytesOffset + size, contents.count)
        let bytes = unsafe UnsafeRawBufferPointer(rebasing: contents[bytesOffset..<end])
        unsafe memory.hostBytes(at: arena.lowerBound + UInt64(bytesOffset), count: bytes.count).copyMemory(from: bytes)
    }

    /// The batch has returned, so all of its calls must have. Else a stream would lose results without a word, or ask
    /// for ever for the first.
    func checkIsWhole() throws(SandboxError) {
        guard doneCount < count else { return }
        throw SandboxError(.invalidResult, "The guest says that \(doneCount) of \(count) calls at once have returned.")
    }

    /// Takes the results of the calls that have returned, however the batch has ended.
    func finish(_ memory: GuestMemory, _ mailbox: Mailbox) {
        // The guest's word, and its results: at most as many as calls were made, and nothing but numbers.
        doneCount = min(count, Int(mailbox.batchDone))
        let size = doneCount * Self.frameSize
        unsafe contents.copyMemory(
            from: UnsafeRawBufferPointer(memory.hostBytes(at: arena.lowerBound, count: size))
        )
    }
}
