import CShims
import Glibc
import Synchronization
import SystemPackage

/// The one thread a virtual CPU runs on, and the executor of the actor that owns it.
///
/// Everything isolated to the sandbox runs here, one job after the other, also while the guest runs: a guest call
/// occupies this thread, never one of the cooperative pool's. Do not use it as a general executor: a job that waits
/// for a guest call of the same sandbox waits for itself.
@safe final class VirtualCPUThread: SerialExecutor {
    private enum Work {
        case job(UnownedJob)
        case block(@Sendable () -> Void)
        case finish(@Sendable () -> Void)
    }

    /// What an interlude does.
    enum Interlude {
        /// Calls the guest.
        case nestedCall
        /// Looks, and changes nothing.
        case observation
    }

    private struct Queue {
        var work: [Work] = []
        var interludes: [(kind: Interlude, body: @Sendable () -> Void)] = []
        var isSleeping = false
        var isFinished = false
    }

    private let queue = Locked(Queue())
    /// Changes whenever work arrives for a sleeping thread: what it sleeps on. Freed in `deinit`, which comes after
    /// the thread's end, because the thread holds this object.
    private nonisolated(unsafe) let wakeUps: UnsafeMutablePointer<Atomic<UInt32>>

    private let interruptHandle: LinuxInterruptHandle

    private init(_ interruptHandle: LinuxInterruptHandle) {
        self.interruptHandle = interruptHandle
        unsafe wakeUps = .allocate(capacity: 1)
        unsafe wakeUps.initialize(to: Atomic(0))
        queue.withLock { $0.work.reserveCapacity(8) }
    }

    deinit {
        unsafe wakeUps.deinitialize(count: 1)
        unsafe wakeUps.deallocate()
    }

    /// Begins a thread that the handle's kicks are sent to, and that lets `signal` through and no other asynchronous
    /// one.
    static func start(_ interruptHandle: LinuxInterruptHandle, signal: Int32) throws(SandboxError) -> VirtualCPUThread {
        let thread = VirtualCPUThread(interruptHandle)
        var handle = pthread_t()
        let retained = unsafe Unmanaged.passRetained(thread)
        let code = unsafe shim_thread_create(&handle, signal, threadMain, retained.toOpaque())
        guard code == 0 else {
            unsafe retained.release()
            throw SandboxError(
                .systemCallFailed,
                "Could not start a thread for the virtual CPU; the limit on threads may have been reached.",
                underlyingError: Errno(rawValue: code)
            )
        }
        return thread
    }

    // MARK: Executor

    func enqueue(_ job: UnownedJob) { append(.job(job)) }

    func checkIsolated() {
        precondition(isCurrent, "not on the sandbox's own thread")
    }

    func isIsolatingCurrentContext() -> Bool? { isCurrent }

    /// Whether the calling thread is this one.
    var isCurrent: Bool { unsafe shim_thread_owner() == mark }

    /// Runs a block on the thread as soon as it has nothing to run, or waits inside a call: held by a stop, or for a
    /// host function. Only between two jobs and while it waits does the thread look for interludes. After its end the
    /// caller runs them, who finds nothing left to work on.
    func addInterlude(_ kind: Interlude, _ interlude: @escaping @Sendable () -> Void) {
        let (mustWake, isFinished) = queue.withLock { queue in
            if queue.isFinished { return (false, true) }
            queue.interludes.append((kind, interlude))
            defer { queue.isSleeping = false }
            return (queue.isSleeping, false)
        }
        if isFinished { return interlude() }
        if mustWake { wake() }
        interruptHandle.wakeIfWaiting()
    }

    /// Runs the interludes there are, or those of one kind, on the thread itself. Whether there were any.
    func runInterludes(_ kind: Interlude? = nil) -> Bool {
        var hasRun = false
        // One by one: a nested call may have to wait for one that comes after it.
        while let interlude = nextInterlude(kind) {
            interlude()
            hasRun = true
        }
        return hasRun
    }

    private func nextInterlude(_ kind: Interlude?) -> (@Sendable () -> Void)? {
        queue.withLock { queue in
            let index = queue.interludes.firstIndex { kind == nil || $0.kind == kind }
            return index.map { queue.interludes.remove(at: $0).body }
        }
    }

    /// Runs a block on the thread after everything that was enqueued before.
    func enqueue(_ block: @escaping @Sendable () -> Void) { append(.block(block)) }

    /// Ends the thread after everything that was enqueued before, with one last block.
    func finish(_ last: @escaping @Sendable () -> Void) { append(.finish(last)) }

    private func append(_ work: Work) {
        let mustWake = queue.withLock { queue in
            queue.work.append(work)
            defer { queue.isSleeping = false }
            return queue.isSleeping
        }
        if mustWake { wake() }
    }

    private func wake() {
        // Releasing: partner of the acquiring load in `waitForWork`.
        unsafe wakeUps.pointee.wrappingAdd(1, ordering: .releasing)
        unsafe wakeUps.withMemoryRebound(to: UInt32.self, capacity: 1) { unsafe shim_futex_wake_all($0) }
    }

    /// What the thread is recognised by: this object's address, never followed.
    private var mark: UnsafeRawPointer { unsafe UnsafeRawPointer(Unmanaged.passUnretained(self).toOpaque()) }

    // MARK: Thread

    /// Takes all work there is into `batch`, which keeps its storage, and sleeps while there is none.
    private func waitForWork(into batch: inout [Work]) {
        while true {
            // Acquiring, and read before the queue: work that arrives in between changes the word.
            let seen = unsafe wakeUps.pointee.load(ordering: .acquiring)
            let hasInterludes = queue.withLock { queue in
                swap(&queue.work, &batch)
                queue.isSleeping = batch.isEmpty && queue.interludes.isEmpty
                return !queue.interludes.isEmpty
            }
            if hasInterludes { _ = runInterludes() }
            if !batch.isEmpty { return }
            if hasInterludes { continue }
            unsafe wakeUps.withMemoryRebound(to: UInt32.self, capacity: 1) { unsafe shim_futex_wait($0, seen, 0) }
        }
    }

    fileprivate func main() {
        unsafe shim_thread_set_owner(mark)
        interruptHandle.attach()
        var batch: [Work] = []
        batch.reserveCapacity(8)
        while true {
            waitForWork(into: &batch)
            for work in batch {
                switch work {
                case .job(let job): unsafe job.runSynchronously(on: asUnownedSerialExecutor())
                case .block(let block): block()
                case .finish(let last):
                    last()
                    queue.withLock { $0.isFinished = true }
                    _ = runInterludes()
                    return
                }
            }
            batch.removeAll(keepingCapacity: true)
        }
    }
}

/// The thread's entry point: a file-scope function, because a closure could be isolated to whoever wrote it.
private func threadMain(_ argument: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    // The reference that `start` retained for the thread.
    if let argument = unsafe argument {
        unsafe Unmanaged<VirtualCPUThread>.fromOpaque(argument).takeRetainedValue().main()
    }
    return nil
}
