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

    /// What an interlude does, and so when it may run.
    enum Interlude {
        /// Calls the guest.
        case nestedCall
        /// Looks, and changes nothing.
        case observation
        /// Looks, and keeps away from all that a synchronous host function may use: it need not wait for one.
        case inspection
    }

    private struct Queue {
        var work: [Work] = []
        var interludes: [(kind: Interlude, body: @Sendable () -> Void)] = []
        var isSleeping = false
        var isFinished = false
        /// What the thread does where there is no work, if anything: whether it has done anything.
        var idle: (() -> Bool)?
        /// Whether the thread is in the guest, without a call of its own, and whoever has work must recall it.
        var isPolling = false
        /// Whether a call that was begun elsewhere is the thread's from now on, and the job that goes on with it.
        var isHandedOver = false
        var continuation: UnownedJob?

        /// There is something new. What the thread takes to look at it: the first one to bring something does that.
        mutating func callThread() -> Call {
            defer { (isSleeping, isPolling) = (false, false) }
            return isPolling ? .recall : isSleeping ? .wake : .none
        }
    }

    /// Whether the thread has the memory of its stack, or is to get it when it next sleeps, or the time after.
    private enum Stack {
        case missing, postponed, there
    }

    /// Who may look at what belongs to whoever has the baton.
    private enum Custody {
        /// The thread itself.
        static let own: UInt32 = 0
        /// Whoever comes first: the thread is in a synchronous host function.
        static let offered: UInt32 = 1
        /// Somebody else, whom the thread waits for when its host function ends.
        static let taken: UInt32 = 2
    }

    /// Who may use what belongs to the thread.
    let baton = CallBaton()
    private let queue = Locked(Queue())
    /// Changes whenever work arrives for a sleeping thread: what it sleeps on. Freed in `deinit`, which comes after
    /// the thread's end, because the thread holds this object.
    private nonisolated(unsafe) let wakeUps: UnsafeMutablePointer<Atomic<UInt32>>

    /// One of ``Custody``; what the thread sleeps on when it is taken. Freed as `wakeUps` is.
    private nonisolated(unsafe) let custody: UnsafeMutablePointer<Atomic<UInt32>>
    /// How many inspections are in the queue.
    private let inspections = Atomic<UInt32>(0)
    /// Whether a host function is at work, and not waiting for the thread in turn; the thread's own.
    private nonisolated(unsafe) var isOffering = false

    /// How many jobs have begun; the thread's own.
    private nonisolated(unsafe) var jobCount: UInt64 = 0
    /// The number of the job that runs; asked on the thread.
    var jobNumber: UInt64 { unsafe jobCount }

    private let interruptHandle: LinuxInterruptHandle
    /// Whether the thread puts its role's filter on, where the process is confined.
    private let isConfined: Bool
    private let niceness: Int

    private init(_ interruptHandle: LinuxInterruptHandle, niceness: Int, isConfined: Bool) {
        self.interruptHandle = interruptHandle
        self.niceness = niceness
        self.isConfined = isConfined
        unsafe wakeUps = .allocate(capacity: 1)
        unsafe wakeUps.initialize(to: Atomic(0))
        unsafe custody = .allocate(capacity: 1)
        unsafe custody.initialize(to: Atomic(Custody.own))
        queue.withLock { $0.work.reserveCapacity(8) }
    }

    deinit {
        baton.deallocate()
        unsafe wakeUps.deinitialize(count: 1)
        unsafe wakeUps.deallocate()
        unsafe custody.deinitialize(count: 1)
        unsafe custody.deallocate()
    }

    /// Begins a thread that the handle's kicks are sent to, and that lets `signal` through and no other asynchronous
    /// one.
    static func start(
        _ interruptHandle: LinuxInterruptHandle,
        signal: Int32,
        niceness: Int,
        isConfined: Bool
    ) throws(SandboxError) -> VirtualCPUThread {
        let errands = niceness > 0 ? shim_errands_start() : 0
        guard errands == 0 else {
            throw SandboxError(
                .systemCallFailed,
                "The thread that hands on the tasks of nice ones cannot be begun.",
                underlyingError: Errno(rawValue: errands)
            )
        }
        let thread = VirtualCPUThread(interruptHandle, niceness: niceness, isConfined: isConfined)
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

    func enqueue(_ job: UnownedJob) {
        guard unsafe shim_thread_continuing() == mark else { return append(.job(job)) }
        shim_thread_set_continuing(nil)
        queue.withLock { $0.continuation = job }
        wake()
    }

    func checkIsolated() {
        precondition(isCurrent, "not on the sandbox's own thread")
    }

    func isIsolatingCurrentContext() -> Bool? { isCurrent }

    /// Whether the calling thread is this one.
    var isCurrent: Bool { unsafe shim_thread_owner() == mark }

    /// Runs a block on the thread as soon as it has nothing to run, or waits inside a call: held by a stop, or for a
    /// host function. Only between two jobs and while it waits does the thread look for interludes. Inspections the
    /// caller runs himself while a synchronous host function is at work; and after the thread's end all, which find
    /// nothing left to work on.
    func addInterlude(_ kind: Interlude, _ interlude: @escaping @Sendable () -> Void) {
        let (call, isFinished) = queue.withLock { queue in
            if queue.isFinished { return (Call.none, true) }
            queue.interludes.append((kind, interlude))
            // Sequentially consistent; partner: `offerCustody`. Either the thread finds this, or the offer is found.
            if kind == .inspection { inspections.wrappingAdd(1, ordering: .sequentiallyConsistent) }
            return (queue.callThread(), false)
        }
        if isFinished { return interlude() }
        heed(call)
        interruptHandle.wakeIfWaiting()
        if kind == .inspection { inspectInPlace() }
    }

    /// Runs the interludes there are, or those of some kinds, on the thread itself. Whether there were any. Those that
    /// come meanwhile are left for the next time, so that whoever always adds another one holds up nothing else.
    func runInterludes(_ kinds: Interlude...) -> Bool {
        var left = queue.withLock { $0.interludes.count }
        var hasRun = false
        // One by one: a nested call may have to wait for one that comes after it.
        while left > 0, let interlude = nextInterlude(kinds) {
            interlude()
            left -= 1
            hasRun = true
        }
        return hasRun
    }

    private func nextInterlude(_ kinds: [Interlude]) -> (@Sendable () -> Void)? {
        queue.withLock { queue in
            let index = queue.interludes.firstIndex { kinds.isEmpty || kinds.contains($0.kind) }
            guard let index else { return nil }
            let (kind, body) = queue.interludes.remove(at: index)
            if kind == .inspection { inspections.wrappingSubtract(1, ordering: .relaxed) }
            return body
        }
    }

    // MARK: Custody

    /// Runs a synchronous host function, while others may look at what belongs to the thread.
    func offeringCustody<Result>(_ body: () throws -> Result) rethrows -> Result {
        offerCustody()
        defer { takeCustodyBack() }
        return try body()
    }

    /// Does something for the host function that is at work, on the thread, with nobody looking.
    func withCustody<Result>(_ body: () throws -> Result) rethrows -> Result {
        guard unsafe isOffering else { return try body() }
        takeCustodyBack()
        defer { offerCustody() }
        return try body()
    }

    private func offerCustody() {
        unsafe isOffering = true
        while true {
            // Sequentially consistent, also the load; partner: `addInterlude`.
            unsafe custody.pointee.store(Custody.offered, ordering: .sequentiallyConsistent)
            if inspections.load(ordering: .sequentiallyConsistent) == 0 { return }
            takeCustodyBack()
            _ = runInterludes(.inspection)
            unsafe isOffering = true
        }
    }

    private func takeCustodyBack() {
        unsafe isOffering = false
        while true {
            // Acquiring: partner of the store in `inspectInPlace`.
            let (isOwn, found) = unsafe custody.pointee.compareExchange(
                expected: Custody.offered,
                desired: Custody.own,
                ordering: .acquiring
            )
            if isOwn { return }
            unsafe custody.withMemoryRebound(to: UInt32.self, capacity: 1) { unsafe shim_futex_wait($0, found, 0) }
        }
    }

    /// Runs the inspections there are on the calling thread, where custody is to be had.
    private func inspectInPlace() {
        // Sequentially consistent, also the load; partner: `offerCustody`.
        while inspections.load(ordering: .sequentiallyConsistent) != 0,
            unsafe custody.pointee.compareExchange(
                expected: Custody.offered,
                desired: Custody.taken,
                ordering: .sequentiallyConsistent
            ).exchanged
        {
            _ = runInterludes(.inspection)
            // Releasing: what was done here is seen by whoever has custody next. Only the thread itself can wait for
            // it.
            unsafe custody.pointee.store(Custody.offered, ordering: .sequentiallyConsistent)
            unsafe custody.withMemoryRebound(to: UInt32.self, capacity: 1) { unsafe shim_futex_wake_all($0) }
        }
    }

    /// Runs a block on the thread after everything that was enqueued before.
    func enqueue(_ block: @escaping @Sendable () -> Void) { append(.block(block)) }

    /// Ends the thread after everything that was enqueued before, with one last block.
    func finish(_ last: @escaping @Sendable () -> Void) { append(.finish(last)) }

    private func append(_ work: Work) {
        let call = queue.withLock { queue in
            queue.work.append(work)
            return queue.callThread()
        }
        heed(call)
    }

    /// What gets the thread to look at its queue.
    private enum Call { case none, wake, recall }

    private func heed(_ call: Call) {
        switch call {
        case .none: break
        case .wake: wake()
        case .recall:
            baton.recall()
            interruptHandle.recall()
        }
    }

    private func wake() {
        // Releasing: partner of the acquiring load in `waitForWork`.
        unsafe wakeUps.pointee.wrappingAdd(1, ordering: .releasing)
        unsafe wakeUps.withMemoryRebound(to: UInt32.self, capacity: 1) { unsafe shim_futex_wake_all($0) }
    }

    /// What the thread is recognised by: this object's address, never followed.
    var mark: UnsafeRawPointer { unsafe UnsafeRawPointer(Unmanaged.passUnretained(self).toOpaque()) }

    // MARK: Thread

    /// Takes all work there is into `batch`, which keeps its storage, and sleeps while there is none.
    ///
    /// - Parameter stack: the thread gets the memory of its stack before it sleeps: so that what runs later, and a kill
    ///   above all, need not wait for it.
    private func waitForWork(into batch: inout [Work], stack: inout Stack) {
        while true {
            // Acquiring, and read before the queue: work that arrives in between changes the word.
            let seen = unsafe wakeUps.pointee.load(ordering: .acquiring)
            let (hasInterludes, idle) = queue.withLock { queue in
                swap(&queue.work, &batch)
                queue.isSleeping = batch.isEmpty && queue.interludes.isEmpty
                return (!queue.interludes.isEmpty, queue.isSleeping ? queue.idle : nil)
            }
            if hasInterludes { _ = runInterludes() }
            if !batch.isEmpty { return }
            if hasInterludes { continue }
            if let idle {
                confine()
                if idle() { continue }
            }
            switch stack {
            case .missing:
                shim_thread_touch_stack()
                stack = .there
            case .postponed: stack = .missing
            case .there: break
            }
            unsafe wakeUps.withMemoryRebound(to: UInt32.self, capacity: 1) { unsafe shim_futex_wait($0, seen, 0) }
        }
    }

    // MARK: Polling

    /// What the thread does from now on where it has no work: whether it has done anything, so that it looks again.
    func setIdle(_ body: (() -> Bool)?) { queue.withLock { $0.idle = body } }

    /// Tells that the thread goes into the guest without a call. Whether it may: not where there is work.
    func publishPolling() -> Bool {
        // model: polling_publish
        queue.withLock { queue in
            queue.isPolling = queue.work.isEmpty && queue.interludes.isEmpty
            queue.isSleeping = false
            return queue.isPolling
        }
    }

    /// The thread has what it had offered again.
    func endPolling() { queue.withLock { $0.isPolling = false } }

    /// The call that was begun on the calling thread is this thread's from now on, when it is out of the guest.
    /// ``expectContinuation()`` must follow.
    ///
    /// - Parameter isWanted: whether the thread is to leave the guest for that.
    func handOver(isWanted: Bool) {
        queue.withLock { queue in
            queue.isHandedOver = true
            // It is in the guest with a call: what comes now waits for that as always.
            queue.isPolling = false
        }
        if isWanted { baton.recall() }
        baton.putDown()
        if isWanted { interruptHandle.recall() }
    }

    /// The job that the calling thread enqueues next goes on with that call.
    func expectContinuation() { unsafe shim_thread_set_continuing(mark) }

    /// Goes on with a call that has been handed over, if there is one: whatever else there is to do comes after that.
    func runContinuation() {
        guard queue.withLock({ $0.isHandedOver }) else { return }
        while true {
            // Acquiring, and read before the queue, as in `waitForWork`.
            let seen = unsafe wakeUps.pointee.load(ordering: .acquiring)
            let job = queue.withLock { queue in
                guard let job = queue.continuation else { return UnownedJob?.none }
                (queue.continuation, queue.isHandedOver) = (nil, false)
                return job
            }
            if let job { return run(job) }
            unsafe wakeUps.withMemoryRebound(to: UInt32.self, capacity: 1) { unsafe shim_futex_wait($0, seen, 0) }
        }
    }

    /// Each time, because the process may have been confined after the thread had begun: nothing of the guest runs
    /// before this.
    private func confine() {
        if isConfined { shim_thread_confine(SHIM_ROLE_VIRTUAL_CPU) }
    }

    private func run(_ job: UnownedJob) {
        unsafe jobCount &+= 1
        unsafe job.runSynchronously(on: asUnownedSerialExecutor())
    }

    fileprivate func main() {
        unsafe shim_thread_set_owner(mark)
        interruptHandle.attach()
        if niceness > 0 { shim_thread_make_nice(Int32(niceness)) }
        var batch: [Work] = []
        batch.reserveCapacity(8)
        var stack = Stack.missing
        waitForWork(into: &batch, stack: &stack)
        // Whoever has been waiting for the thread to begin goes on, on this processor, as soon as it sleeps.
        if stack == .missing { stack = .postponed }
        while true {
            confine()
            for work in batch {
                switch work {
                case .job(let job): run(job)
                case .block(let block): block()
                case .finish(let last):
                    last()
                    queue.withLock { $0.isFinished = true }
                    _ = runInterludes()
                    return
                }
            }
            batch.removeAll(keepingCapacity: true)
            waitForWork(into: &batch, stack: &stack)
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
