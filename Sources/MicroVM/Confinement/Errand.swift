import CShims

/// Something that a confined thread may not do itself, and that a thread with the process's rights does for it.
enum Errand {
    /// The body and what has come of it, for the time of one call.
    private struct Context {
        var body: () -> Void
    }

    /// Runs the body and returns when it has run: on the calling thread, unless that has a filter of its own.
    ///
    /// Not for what waits for the calling thread in turn, or for long: there is one such thread.
    static func run<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
        guard shim_thread_is_confined() else { return try body() }
        var result: Swift.Result<Result, Failure>?
        withoutActuallyEscaping(body) { body in
            var context = Context {
                do throws(Failure) { result = .success(try body()) } catch { result = .failure(error) }
            }
            // The context outlives the call, which returns when the other thread has done with it.
            unsafe withUnsafeMutablePointer(to: &context) { unsafe shim_errand_run(runErrand, $0) }
        }
        // Cannot happen: the other thread wakes this one when it has run the body, which sets this and cannot throw.
        guard let result else { preconditionFailure("an errand was not run") }
        return try result.get()
    }

    fileprivate static func perform(_ context: UnsafeMutableRawPointer) {
        // What `run` has passed, of this very type.
        unsafe context.assumingMemoryBound(to: Context.self).pointee.body()
    }
}

/// A file-scope function, because a closure could be isolated to whoever wrote it.
private func runErrand(_ context: UnsafeMutableRawPointer?) {
    if let context = unsafe context { unsafe Errand.perform(context) }
}
