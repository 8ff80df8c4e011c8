import CShims
import Synchronization

/// The page through which calls travel in both directions (the article GuestABI has its layout).
///
/// The guest can write all of it at any time it runs. So the host takes each word once, checks what it took, and keeps
/// nothing of its own here.
@safe struct Mailbox {
    /// What an import's thunk is to do next.
    enum Command: UInt32 {
        case returnResult
        case callFunction
    }

    /// The page in the host's mapping. The guest memory it belongs to outlives the run loop that owns this value.
    private let page: UnsafeMutableRawPointer

    init(in memory: GuestMemory) {
        unsafe page = memory.hostBytes(at: UInt64(SHIM_MAILBOX), count: Int(AddressSpace.pageSize)).baseAddress!
    }

    /// A page that is laid out like the mailbox, but is the host's own.
    ///
    /// - Parameter page: as large as the mailbox; must outlive this.
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

    // MARK: Guest calls

    func setFunction(_ address: UInt64) { store(address, SHIM_MAILBOX_FUNCTION) }
    func setStackArgumentCount(_ count: UInt32) { store(count, SHIM_MAILBOX_STACK_COUNT) }
    func setInteger(_ value: UInt64, at index: Int) { store(value, SHIM_MAILBOX_INTEGERS + Int32(index) * 8) }
    func setVector(_ value: UInt64, at index: Int) { store(value, SHIM_MAILBOX_VECTORS + Int32(index) * 8) }
    func setStackArgument(_ value: UInt64, at index: Int) { store(value, SHIM_MAILBOX_STACK + Int32(index) * 8) }
    func stackArgument(at index: Int) -> UInt64 { load(SHIM_MAILBOX_STACK + Int32(index) * 8) }

    // MARK: Many calls for one entry

    /// The next call is by itself, whatever the guest has left in the mailbox.
    func setNoBatch() { store(UInt32(0), SHIM_MAILBOX_BATCH_COUNT) }

    func setBatch(_ count: UInt32, frames address: UInt64) {
        store(count, SHIM_MAILBOX_BATCH_COUNT)
        store(address, SHIM_MAILBOX_BATCH_FRAME)
        store(UInt32(0), SHIM_MAILBOX_BATCH_DONE)
    }

    /// How many calls of the batch have returned, says the guest.
    var batchDone: UInt32 { load(SHIM_MAILBOX_BATCH_DONE) }

    // MARK: Host calls

    func setCommand(_ command: Command) { store(command.rawValue, SHIM_MAILBOX_COMMAND) }
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
