import CShims
import Synchronization

/// The page through which calls travel in both directions (the article GuestABI has its layout).
///
/// The guest can write all of it at any time it runs. So the host takes each word once, checks what it took, and keeps
/// nothing of its own here.
@safe struct Mailbox {
    /// The page in the host's mapping. The guest memory it belongs to outlives the run loop that owns this value.
    private let page: UnsafeMutableRawPointer

    init(in memory: GuestMemory) {
        unsafe page = memory.hostBytes(at: UInt64(SHIM_MAILBOX), count: Int(AddressSpace.pageSize)).baseAddress!
    }

    /// A page that is laid out like the mailbox, but is the host's own.
    ///
    /// - Parameter page: as large as what is used of the mailbox; must outlive this.
    init(imitatedBy page: UnsafeMutableRawPointer) { unsafe self.page = page }

    private func load<Value: BitwiseCopyable>(_ offset: Int32, as type: Value.Type = Value.self) -> Value {
        // All offsets are constants of guest_layout.h, aligned and inside the page.
        unsafe page.load(fromByteOffset: Int(offset), as: type)
    }

    private func store<Value: BitwiseCopyable>(_ value: Value, _ offset: Int32) {
        unsafe page.storeBytes(of: value, toByteOffset: Int(offset), as: Value.self)
    }

    private var owner: UnsafePointer<Atomic<UInt32>> {
        // Atomic<UInt32> has the layout of the word it wraps.
        unsafe UnsafePointer(page.assumingMemoryBound(to: Atomic<UInt32>.self))
    }

    /// Hands the mailbox to the guest: everything written before is seen by whoever finds its turn come.
    ///
    /// Releasing; the partner is the trampoline's load of the owner word, ordered before its other loads on x86.
    func giveToGuest() {
        unsafe owner.pointee.store(UInt32(SHIM_OWNER_GUEST), ordering: .releasing)
    }

    // MARK: Polling

    /// Lets the guest poll for a call when it is entered now, and offer its host calls.
    ///
    /// - Parameters:
    ///   - callPolls: how often it looks for a call before it leaves; at least once.
    ///   - hostCallPolls: how often it looks for a host call's answer before it leaves for that; at least once.
    func setIdle(callPolls: UInt32, hostCallPolls: UInt32) {
        store(max(callPolls, 1), SHIM_MAILBOX_CALL_POLLS)
        store(max(hostCallPolls, 1), SHIM_MAILBOX_HOST_CALL_POLLS)
        // Nobody polls before the guest is entered, which orders this for the guest.
        unsafe owner.pointee.store(UInt32(SHIM_OWNER_IDLE), ordering: .releasing)
    }

    /// Everything is as if the guest had never polled.
    func endIdle() {
        store(UInt32(0), SHIM_MAILBOX_CALL_POLLS)
        store(UInt32(0), SHIM_MAILBOX_HOST_CALL_POLLS)
        store(UInt64(0), SHIM_MAILBOX_SCRATCH)
        store(UInt32(SHIM_OWNER_HOST), SHIM_MAILBOX_OWNER)
    }

    /// Whose turn it is, says the guest, when it is no longer the guest's with a caller who polls; or after so many
    /// looks.
    @inline(__always) func poll(_ looks: UInt32) -> UInt32 {
        // Acquiring; partners: the guest's exchanges, which come after all that it has stored.
        unsafe owner.withMemoryRebound(to: UInt32.self, capacity: 1) {
            unsafe shim_poll($0, UInt32(SHIM_OWNER_GUEST_POLLED), looks)
        }
    }

    /// Whose turn it is, says the guest.
    var turn: UInt32 { unsafe owner.pointee.load(ordering: .acquiring) }

    /// Changes whose turn it is, in one step; whether it was as expected. Whoever gives something away has stored all
    /// that belongs to it before.
    ///
    /// Acquiring and releasing; partners: the guest's exchanges and loads.
    @inline(__always) func change(_ turn: Int32, to next: Int32) -> Bool {
        unsafe owner.pointee.compareExchange(
            expected: UInt32(turn),
            desired: UInt32(next),
            ordering: .acquiringAndReleasing
        ).exchanged
    }

    /// Hands a call to a guest that polls for one. Whether it still did.
    ///
    /// - Parameters:
    ///   - page: laid out like the mailbox, with function and arguments. What the guest looks at all the time is
    ///     written in one go: to write it between two of its looks costs as much as to hand it over.
    ///   - arguments: what has been written to the page.
    @inline(__always) func request(_ page: Mailbox, _ arguments: borrowing GuestValueWriter) -> Bool {
        if arguments.vectorCount > 0 { copy(page, Int(SHIM_MAILBOX_VECTORS), count: 64) }
        let words = arguments.stackArgumentCount
        if words > 0 { copy(page, Int(SHIM_MAILBOX_STACK), count: words * 8) }
        // Up to the vectors, all but the word whose turn it is.
        store(page.load(SHIM_MAILBOX_COMMAND, as: UInt32.self), SHIM_MAILBOX_COMMAND)
        unsafe shim_copy_words(
            self.page + Int(SHIM_MAILBOX_FUNCTION),
            page.page + Int(SHIM_MAILBOX_FUNCTION),
            Int(SHIM_MAILBOX_VECTORS - SHIM_MAILBOX_FUNCTION) / 8
        )
        // model: polled_request
        return change(SHIM_OWNER_IDLE, to: SHIM_OWNER_GUEST_POLLED)
    }

    /// Takes over a host call's result, or whatever it is answered with; written in one go as well.
    @inline(__always) func setAnswer(_ page: Mailbox) {
        unsafe shim_copy_words(
            self.page + Int(SHIM_MAILBOX_RESULTS),
            page.page + Int(SHIM_MAILBOX_RESULTS),
            Int(SHIM_MAILBOX_RESULT_VECTOR - SHIM_MAILBOX_RESULTS) / 8 + 1
        )
        store(page.load(SHIM_MAILBOX_COMMAND, as: UInt32.self), SHIM_MAILBOX_COMMAND)
    }

    @inline(__always) private func copy(_ other: Mailbox, _ offset: Int, count: Int) {
        unsafe (page + offset).copyMemory(from: other.page + offset, byteCount: count)
    }

    // MARK: Guest calls

    func setFunction(_ address: UInt64) { store(address, SHIM_MAILBOX_FUNCTION) }
    func setStackArgumentCount(_ count: Int) { store(UInt32(count), SHIM_MAILBOX_COMMAND) }
    func setInteger(_ value: UInt64, at index: Int) { store(value, SHIM_MAILBOX_INTEGERS + Int32(index) * 8) }
    func setVector(_ value: UInt64, at index: Int) { store(value, SHIM_MAILBOX_VECTORS + Int32(index) * 8) }
    func setStackArgument(_ value: UInt64, at index: Int) { store(value, SHIM_MAILBOX_STACK + Int32(index) * 8) }
    func stackArgument(at index: Int) -> UInt64 { load(SHIM_MAILBOX_STACK + Int32(index) * 8) }

    // MARK: Many calls for one entry

    func setBatch(of function: UInt64, _ count: UInt32, frames address: UInt64) {
        store(function, SHIM_MAILBOX_BATCH_FUNCTION)
        store(UInt32(SHIM_COMMAND_BATCH), SHIM_MAILBOX_COMMAND)
        store(count, SHIM_MAILBOX_BATCH_COUNT)
        store(address, SHIM_MAILBOX_BATCH_FRAME)
        store(UInt32(0), SHIM_MAILBOX_BATCH_DONE)
    }

    /// How many calls of the batch have returned, says the guest.
    var batchDone: UInt32 { load(SHIM_MAILBOX_BATCH_DONE) }

    // MARK: Host calls

    /// The import's result is there.
    func setReturn() { store(UInt32(SHIM_COMMAND_RETURN), SHIM_MAILBOX_COMMAND) }
    var importIndex: UInt64 { load(SHIM_MAILBOX_IMPORT) }
    var stackPointer: UInt64 { load(SHIM_MAILBOX_STACK_POINTER) }
    func integer(at index: Int) -> UInt64 { load(SHIM_MAILBOX_INTEGERS + Int32(index) * 8) }
    func vector(at index: Int) -> UInt64 { load(SHIM_MAILBOX_VECTORS + Int32(index) * 8) }

    // MARK: Results, in both directions

    func result(at index: Int) -> UInt64 { load(SHIM_MAILBOX_RESULTS + Int32(index) * 8) }
    var vectorResult: UInt64 { load(SHIM_MAILBOX_RESULT_VECTOR) }
    func setResult(_ value: UInt64, at index: Int) { store(value, SHIM_MAILBOX_RESULTS + Int32(index) * 8) }
    func setVectorResult(_ value: UInt64) { store(value, SHIM_MAILBOX_RESULT_VECTOR) }
}
