import CShims
import Glibc
import SystemPackage

/// What a ``PageFaultHandler`` and its thread share.
///
/// The lock guards who reads messages: a message is read and acted upon under it, whichever thread does so. Therefore
/// whoever passes it knows that no message is on its way between the two. No source is asked under it.
final class PageFaultService: Sendable {
    private struct Job {
        let region: ServedRegion
        let work: ServedRegion.Work
    }

    private struct State {
        /// Nil when the handler is gone.
        var channel: FaultChannel?
        var memories: [ServedMemory] = []
        var jobs: [Job] = []
        /// Jobs for when other threads' unmapping has ended.
        var retries: [Job] = []
        /// The thread that was begun last, until somebody has joined it.
        var thread: pthread_t?
        var isThreadRunning = false
        /// Whether the thread waits for messages and for nothing else.
        var isThreadIdle = false
    }

    private enum Turn {
        case job(Job)
        case wait(FaultChannel, milliseconds: Int32)
    }

    /// How many messages are read before something else is done.
    private static let batch = 64

    let statistics = Locked(PageFaultHandler.Statistics())
    private let state: Locked<State>

    init() throws(SandboxError) {
        state = Locked(State(channel: try FaultChannel()))
    }

    // MARK: Memory

    func add(_ locator: FaultLocator) throws(SandboxError) -> ServedMemory {
        try state.withLock { state throws(SandboxError) in
            guard let channel = state.channel else { throw SandboxError(.closed, "The page fault handler is gone.") }
            var registered: [Range<UInt>] = []
            do throws(Errno) {
                for sandbox in 0..<locator.sandboxCount {
                    let addresses = locator.addresses(sandbox: sandbox)
                    // Nobody may access it before there is a source.
                    if let error = setProtection(nil, of: addresses) { throw error }
                    try channel.register(addresses)
                    registered.append(addresses)
                }
                try startThread(&state)
            } catch {
                for addresses in registered { channel.unregister(addresses) }
                throw SandboxError(
                    .systemCallFailed,
                    "Could not serve the page faults of \(locator.stretch.count) bytes.",
                    underlyingError: error
                )
            }
            let memory = ServedMemory(locator, channel: channel, service: self)
            state.memories.append(memory)
            return memory
        }
    }

    func remove(_ memory: ServedMemory) {
        // Regions first: as soon as they are closed nobody waits there, and nobody can begin to.
        let leftovers = memory.close()
        state.withLock { state in
            guard let channel = state.channel, state.memories.contains(where: { $0 === memory }) else { return }
            state.memories.removeAll { $0 === memory }
            for sandbox in 0..<memory.locator.sandboxCount {
                channel.unregister(memory.locator.addresses(sandbox: sandbox))
            }
            // The thread ends with the last of them.
            channel.notify()
        }
        for each in leftovers { each.discard() }
    }

    /// Ends everything; the thread has ended when this returns.
    func shutDown() {
        for memory in state.withLock({ $0.memories }) { remove(memory) }
        let thread = state.withLock { state in
            state.channel?.notify()
            defer { state.thread = nil }
            return state.thread
        }
        if let thread { Self.join(thread) }
        state.withLock { $0.channel = nil }
    }

    /// The statistics, in which whatever others can have noticed is counted.
    var currentStatistics: PageFaultHandler.Statistics {
        // The kernel wakes those who wait for a page before it can be counted, but both happen under the region's lock.
        for memory in state.withLock({ $0.memories }) { memory.settle() }
        return statistics.withLock { $0 }
    }

    // MARK: Messages

    /// Returns when every message that has been read has been acted upon.
    func settle() { state.withLock { _ in } }

    /// Acts upon the messages there are, so that whoever waits for a page is known.
    func readMessages() {
        let leftovers = state.withLock { state in
            let leftovers = readMessages(&state, upTo: .max)
            if !state.jobs.isEmpty { state.channel?.notify() }
            return leftovers
        }
        for each in leftovers { each.discard() }
    }

    private func readMessages(_ state: inout State, upTo limit: Int) -> [ServedRegion.Leftovers] {
        var leftovers: [ServedRegion.Leftovers] = []
        guard let channel = state.channel else { return [] }
        for _ in 0..<limit {
            switch channel.receive() {
            case nil: return leftovers
            case .fault(let address):
                statistics.withLock { $0.faults += 1 }
                for memory in state.memories {
                    guard let location = memory.locator.locate(address) else { continue }
                    let region = memory[location.sandbox, location.region]
                    if let work = region.fault(at: address) { state.jobs.append(Job(region: region, work: work)) }
                    // What is left of a region that was unmapped in part has nobody to serve it.
                    if !region.isOpen { region.refuse(address, channel) }
                }
            case .unmapped(let addresses):
                for memory in state.memories { leftovers += memory.close(addresses) }
                state.memories.removeAll { !$0.isOpen }
            }
        }
        return leftovers
    }

    // MARK: Jobs

    func add(_ work: ServedRegion.Work, in region: ServedRegion) {
        state.withLock { state in
            // Without memory there is no thread, and nobody who waits.
            if state.memories.isEmpty { return }
            state.jobs.append(Job(region: region, work: work))
            state.channel?.notify()
        }
    }

    /// The same, a millisecond later.
    func retry(_ work: ServedRegion.Work, in region: ServedRegion) {
        state.withLock { state in
            if state.memories.isEmpty { return }
            state.retries.append(Job(region: region, work: work))
            // Otherwise the thread comes by, and a notification would only cut its pause short.
            if state.isThreadIdle { state.channel?.notify() }
        }
    }

    // MARK: Thread

    private func startThread(_ state: inout State) throws(Errno) {
        if state.isThreadRunning { return }
        // It has let go of the lock for good, and ends by itself.
        if let previous = state.thread { Self.join(previous) }
        state.thread = nil
        var thread = pthread_t()
        // The thread takes over the reference.
        let retained = unsafe Unmanaged.passRetained(self)
        // Whoever needs the thread first may be confined in another way than it is to be.
        let code = Errand.run {
            unsafe shim_helper_thread_create(&thread, "microvm-pages", pageThreadMain, retained.toOpaque())
        }
        guard code == 0 else {
            unsafe retained.release()
            throw Errno(rawValue: code)
        }
        state.thread = thread
        state.isThreadRunning = true
    }

    private static func join(_ thread: pthread_t) {
        // The last reference to a handler can go on its own thread, with a source that was the other one's owner.
        if pthread_equal(thread, pthread_self()) != 0 {
            pthread_detach(thread)
        } else {
            pthread_join(thread, nil)
        }
    }

    fileprivate func main() {
        while let turn = nextTurn() {
            // The process may have been confined after the thread had begun.
            shim_thread_confine(SHIM_ROLE_PAGE_FAULTS)
            switch turn {
            case .job(let job): job.region.perform(job.work)
            case .wait(let channel, let milliseconds): channel.wait(milliseconds: milliseconds)
            }
        }
    }

    /// What the thread does next; nil when there is nothing left to serve.
    private func nextTurn() -> Turn? {
        // What is no longer needed goes when the lock is free: it may be the last reference to an embedder's source.
        var leftovers: [ServedRegion.Leftovers] = []
        var droppedJobs: [Job] = []
        let turn: Turn? = state.withLock { state in
            state.isThreadIdle = false
            // Messages before jobs: a source that can be asked elsewhere need not wait for one that is asked here.
            leftovers = readMessages(&state, upTo: Self.batch)
            guard let channel = state.channel, !state.memories.isEmpty else {
                droppedJobs = state.jobs + state.retries
                state.jobs = []
                state.retries = []
                state.isThreadRunning = false
                return nil
            }
            if !state.jobs.isEmpty { return .job(state.jobs.removeFirst()) }
            state.isThreadIdle = state.retries.isEmpty
            if state.isThreadIdle { return .wait(channel, milliseconds: -1) }
            // Unmapping ends on a thread of its own, a moment after its message has been read, and does not tell.
            swap(&state.jobs, &state.retries)
            return .wait(channel, milliseconds: 1)
        }
        for each in leftovers { each.discard() }
        _ = consume droppedJobs
        return turn
    }
}

/// The thread's entry point: a file-scope function, because a closure could be isolated to whoever wrote it.
private func pageThreadMain(_ argument: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    // The reference that was retained for the thread.
    if let argument = unsafe argument {
        unsafe Unmanaged<PageFaultService>.fromOpaque(argument).takeRetainedValue().main()
    }
    return nil
}
