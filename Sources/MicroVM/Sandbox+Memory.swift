extension Sandbox {
    /// Shows the guest a file or memory of the host, in a window that is free.
    ///
    /// ```swift
    /// let dictionary = try await sandbox.map(.file("words.bin"), access: .readOnly)
    /// let hits: Int = try await sandbox.call("search", dictionary, "needle")
    /// ```
    ///
    /// A restore leaves mapped what was mapped when the snapshot was taken, and unmaps the rest.
    ///
    /// - Parameters:
    ///   - contents: what to show.
    ///   - access: what the guest may do with it.
    /// - Returns: where the guest finds it, to be passed to it as an argument.
    /// - Throws: ``SandboxError``: `.outOfMemory` when no window is free or large enough, `.busy` while a call is under
    ///   way, `.closed`, `.systemCallFailed`, `.reentrantCall`.
    public nonisolated func map(
        _ contents: WindowContents,
        access: WindowContents.Access
    ) async throws -> GuestBuffer {
        try HostCallChain.check(reference)
        return try await mapNow(contents, access)
    }

    /// Takes away what was mapped; the guest's next access there is a fault.
    ///
    /// - Parameter buffer: what ``map(_:access:)`` has returned.
    /// - Throws: ``SandboxError``: `.invalidArgument` when nothing is mapped there, `.busy`, `.closed`,
    ///   `.systemCallFailed`, `.reentrantCall`.
    public nonisolated func unmap(_ buffer: GuestBuffer) async throws {
        try HostCallChain.check(reference)
        try await unmapNow(buffer)
    }

    private func mapNow(
        _ contents: WindowContents,
        _ access: WindowContents.Access
    ) throws(SandboxError) -> GuestBuffer {
        let memory = try idleMemory
        defer { reference.value?.knowServedMemory() }
        return try memory.map(contents, access)
    }

    private func unmapNow(_ buffer: GuestBuffer) throws(SandboxError) {
        let memory = try idleMemory
        defer { reference.value?.knowServedMemory() }
        try memory.unmap(buffer)
    }

    private var idleMemory: GuestMemory {
        get throws(SandboxError) {
            let runLoop = try openRunLoop
            guard !runLoop.isInCall else { throw SandboxError(.busy, "A call is under way.") }
            return runLoop.machine.memory
        }
    }

    /// Gives the guest more heap.
    ///
    /// - Parameter count: the bytes by which it grows, rounded up to whole pages.
    /// - Returns: the heap's new size in bytes.
    /// - Throws: ``SandboxError/Code/outOfMemory`` when that is more than ``SandboxConfiguration/memoryLimit`` allows;
    ///   `.closed`, `.reentrantCall`.
    @discardableResult
    public nonisolated func growHeap(by count: UInt64) async throws -> UInt64 {
        try HostCallChain.check(reference)
        return try await growHeapNow(by: count)
    }

    private func growHeapNow(by count: UInt64) throws(SandboxError) -> UInt64 {
        let memory = try openRunLoop.machine.memory
        try memory.growHeap(by: count)
        return memory.heapEnd - memory.addressSpace.heap.lowerBound
    }
}
