import CShims
import Synchronization

/// A task that runs code on a sandbox's own thread, and whose cancellation is heard of for all the calls it makes
/// there: by one handler instead of one for each call, which need not be asynchronous then.
@safe final class CancellationScope: Sendable {
    private let interruptHandle: LinuxInterruptHandle
    /// The job of the thread's that the task began in: as long as that runs, the task has not ended.
    private let job: UInt64
    /// The task, to be recognised by; never followed. A job may have begun another one, which runs first.
    private nonisolated(unsafe) let task: UnsafeRawPointer?
    private let isCancelled = Atomic<Bool>(false)
    /// The number of the call the task is making, or 0.
    private let call = Atomic<UInt64>(0)

    /// The scope of a task that runs on the calling thread, now.
    init(_ reference: RunLoopReference) {
        interruptHandle = reference.interruptHandle
        job = reference.thread.jobNumber
        unsafe task = shim_current_task()
    }

    /// Whether the task is known to be the one that runs on the calling thread.
    func isCurrent(on thread: VirtualCPUThread) -> Bool {
        unsafe job == thread.jobNumber && task == shim_current_task()
    }

    /// A call begins. Whether it shall end at once.
    func begin(_ number: UInt64) -> Bool {
        // Sequentially consistent, both; partner: `cancel`. Either the number is found there, or the flag here.
        call.store(number, ordering: .sequentiallyConsistent)
        return isCancelled.load(ordering: .sequentiallyConsistent)
    }

    /// The call is over. A cancellation that has read its number finds no call of that number any more.
    func end() { call.store(0, ordering: .relaxed) }

    /// The task has been cancelled.
    func cancel() {
        // Sequentially consistent, both; partner: `begin`.
        isCancelled.store(true, ordering: .sequentiallyConsistent)
        let number = call.load(ordering: .sequentiallyConsistent)
        if number != 0 { _ = try? interruptHandle.terminate(call: number, .taskCancelled) }
    }
}
