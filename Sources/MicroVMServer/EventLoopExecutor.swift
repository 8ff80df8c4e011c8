#if Server
import NIOCore

/// Runs tasks on an event loop's thread. What comes over a connection is then worked on where it has been read, and the
/// answer written from there: no other thread has to be woken, which would take longer than most requests do.
final class EventLoopExecutor: TaskExecutor {
    private let eventLoop: any EventLoop

    init(_ eventLoop: any EventLoop) { self.eventLoop = eventLoop }

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        // Once, which is what a job that was enqueued has to be run.
        eventLoop.execute { [self] in unsafe job.runSynchronously(on: asUnownedTaskExecutor()) }
    }

    /// Does what takes its time on the threads that there are for that, so that it does not keep others waiting.
    static func leaving<Result>(_ body: () async throws -> Result) async rethrows -> Result {
        try await withTaskExecutorPreference(globalConcurrentExecutor) { try await body() }
    }
}

extension EventLoop {
    /// Does something on the loop, and cancels it when a time is over.
    func cancelling<Result: Sendable>(
        after time: Duration,
        _ body: @escaping @concurrent @Sendable () async throws -> Result
    ) async throws -> Result {
        let task = Task(executorPreference: EventLoopExecutor(self)) { try await body() }
        let timer = scheduleTask(in: TimeAmount(time)) { task.cancel() }
        defer { timer.cancel() }
        return try await withTaskCancellationHandler {
            try await task.value
        } onCancel: {
            task.cancel()
        }
    }

    /// Sleeps until a time is over, or the task is cancelled, after which nothing is left of it. Of a `Task.sleep` that
    /// was cancelled the timer is kept until its time would have been over, and the memory that it takes.
    func sleep(for time: Duration) async {
        let promise = makePromise(of: Void.self)
        let timer = scheduleTask(in: TimeAmount(time)) { promise.succeed() }
        await withTaskCancellationHandler {
            try? await promise.futureResult.get()
        } onCancel: {
            timer.cancel()
            promise.succeed()
        }
    }
}
#endif
