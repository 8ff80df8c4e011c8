import Glibc

private final class ThreadBody: Sendable {
    let run: @Sendable () -> Void

    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
}

/// A file-scope function, because a closure could be isolated to whoever wrote it.
private func threadMain(_ argument: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    // The reference that `startThread` retained for the thread.
    if let argument = unsafe argument { unsafe Unmanaged<ThreadBody>.fromOpaque(argument).takeRetainedValue().run() }
    return nil
}

/// Runs a block that may wait on a detached thread of its own. Whether there is one.
func startThread(_ body: @escaping @Sendable () -> Void) -> Bool {
    var thread = pthread_t()
    let argument = unsafe Unmanaged.passRetained(ThreadBody(body))
    // The thread takes the reference over, and nobody uses its handle after this.
    guard unsafe pthread_create(&thread, nil, { unsafe threadMain($0) }, argument.toOpaque()) == 0 else {
        unsafe argument.release()
        return false
    }
    pthread_detach(thread)
    return true
}
