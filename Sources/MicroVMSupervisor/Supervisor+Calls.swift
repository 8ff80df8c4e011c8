public import MicroVM
public import SystemPackage

extension Supervisor {
    // MARK: - Ending, holding

    /// Ends a call: one that runs leaves the guest now, one that waits never begins.
    ///
    /// - Throws: ``SupervisorError``: `.unknownCall`, `.callFinished`.
    public nonisolated func kill(_ id: CallID) async throws(SupervisorError) {
        // Not on the actor: this may have to wait until the guest has left.
        guard let killSwitch = try await killSwitch(of: id) else { return }
        _ = try? killSwitch.terminate()
    }

    private func killSwitch(of id: CallID) throws(SupervisorError) -> KillSwitch? {
        prepareToEnd(try unfinished(id), .killed(.request))
    }

    /// Holds a call: one that runs leaves the guest now and goes on at ``resume(_:)``, one that waits will be held
    /// when it begins. Its limits of time wait meanwhile. To hold a call twice is the same as to hold it once.
    ///
    /// - Throws: ``SupervisorError``: `.unknownCall`, `.callFinished`.
    public func stop(_ id: CallID) throws(SupervisorError) {
        let call = try unfinished(id)
        guard !call.holds.contains(.request) else { return }
        do throws(StopError) {
            try call.hold(.request)
        } catch {
            throw SupervisorError(.callFinished, "The call \(id) is just ending.")
        }
        publish(.stopped, call)
    }

    /// Lets a call go on that was held. Nothing happens where it is not.
    ///
    /// - Throws: ``SupervisorError``: `.unknownCall`, `.callFinished`.
    public func resume(_ id: CallID) throws(SupervisorError) {
        let call = try unfinished(id)
        guard call.holds.contains(.request) else { return }
        call.release(.request)
        publish(.continued, call)
    }

    func unfinished(_ id: CallID) throws(SupervisorError) -> SupervisedCall {
        if let call = calls[id] { return call }
        if history[id] != nil { throw SupervisorError(.callFinished, "The call \(id) is over.") }
        throw Self.unknownCall(id)
    }

    private func runningSandbox(_ id: CallID) throws(SupervisorError) -> Sandbox {
        let call = try unfinished(id)
        guard let sandbox = call.sandbox, call.isUnderWay else {
            throw SupervisorError(.callNotRunning, "The call \(id) has not begun.")
        }
        return sandbox
    }

    // MARK: - Looking closely

    /// Reads all that is to be known about where a call is, for which it is taken out of the guest for a moment.
    ///
    /// - Throws: ``SupervisorError``: `.unknownCall`, `.callFinished`, `.callNotRunning`; `SandboxError`, where the
    ///   state cannot be read.
    public nonisolated func inspect(_ id: CallID) async throws -> SandboxState {
        try await look(id) { sandbox in try await sandbox.pullFullState() }
    }

    /// Writes a core dump of a running call, which then goes on.
    ///
    /// - Parameters:
    ///   - id: the call.
    ///   - path: a file that is not there yet.
    ///   - maximumSize: the bytes that the file may take of the disk.
    /// - Throws: ``SupervisorError``: `.unknownCall`, `.callFinished`, `.callNotRunning`; `SandboxError`.
    public nonisolated func coreDump(of id: CallID, to path: FilePath, maximumSize: UInt64 = 256 << 20) async throws {
        try await look(id) { sandbox in try await sandbox.coreDump(to: path, maximumSize: maximumSize) }
    }

    /// Does something with a call's sandbox, off the actor.
    private nonisolated func look<Result: Sendable>(
        _ id: CallID,
        _ body: @Sendable (Sandbox) async throws -> Result
    ) async throws -> Result {
        let sandbox = try await runningSandbox(id)
        do {
            return try await body(sandbox)
        } catch let error as SandboxError where error.code == .closed || error.code == .poisoned {
            // The call has ended meanwhile, and its sandbox is somebody else's.
            _ = try await status(of: id)
            throw SupervisorError(.callFinished, "The call \(id) is just ending.")
        }
    }

    // MARK: - Snapshots and forks

    /// Takes a snapshot of a call in its middle, from which others can go on; the call itself goes on as if nothing had
    /// been.
    ///
    /// - Throws: ``SupervisorError``: `.unknownCall`, `.callFinished`, `.callNotRunning`, `.tooManySnapshots`;
    ///   `SandboxError`, such as `.busy` while an asynchronous host function or an initialiser is at work.
    @discardableResult
    public func snapshot(_ id: CallID) async throws -> SnapshotStatus {
        guard snapshots.count < configuration.maximumSnapshots else {
            throw SupervisorError(
                .tooManySnapshots,
                "\(snapshots.count) snapshots are kept already, as many as may. Remove one."
            )
        }
        let call = try unfinished(id)
        let snapshot = try await takeSnapshot(id)
        let kept = KeptSnapshot(
            id: SnapshotID(rawValue: nextSnapshot),
            call: id,
            request: call.request,
            module: call.module,
            snapshot: snapshot
        )
        nextSnapshot += 1
        snapshots[kept.id] = kept
        publish(.snapshotTaken(kept.id), call)
        return kept.status
    }

    /// Starts a second call that goes on from where a running one is now.
    ///
    /// - Parameters:
    ///   - id: the running call.
    ///   - labels: those of the new call; the running one's unless given.
    /// - Returns: the new call's number.
    /// - Throws: as ``snapshot(_:)`` and ``start(_:)``.
    public func fork(_ id: CallID, labels: [String: String]? = nil) async throws -> CallID {
        let call = try unfinished(id)
        let snapshot = try await takeSnapshot(id)
        var request = call.request
        if let labels { request.labels = labels }
        return try accept(request, call.module, origin: CallOrigin(parent: id, snapshot: snapshot)).id
    }

    /// Starts a call that goes on from a snapshot.
    ///
    /// - Throws: ``SupervisorError/Code/unknownSnapshot``, and as ``start(_:)``.
    public func start(from id: SnapshotID, labels: [String: String]? = nil) throws(SupervisorError) -> CallID {
        guard let kept = snapshots[id] else { throw Self.unknownSnapshot(id) }
        var request = kept.request
        if let labels { request.labels = labels }
        return try accept(request, kept.module, origin: CallOrigin(parent: kept.call, snapshot: kept.snapshot)).id
    }

    private nonisolated func takeSnapshot(_ id: CallID) async throws -> Snapshot {
        let snapshot = try await look(id) { sandbox in try await sandbox.snapshot() }
        guard snapshot.isInCall else { throw SupervisorError(.callFinished, "The call \(id) is just ending.") }
        return snapshot
    }

    /// The snapshots that are kept.
    public func snapshotList() -> [SnapshotStatus] { snapshots.values.map(\.status).sorted { $0.id < $1.id } }

    /// Forgets a snapshot.
    ///
    /// - Throws: ``SupervisorError/Code/unknownSnapshot``.
    public func removeSnapshot(_ id: SnapshotID) throws(SupervisorError) {
        guard snapshots.removeValue(forKey: id) != nil else { throw Self.unknownSnapshot(id) }
    }

    private static func unknownSnapshot(_ id: SnapshotID) -> SupervisorError {
        SupervisorError(.unknownSnapshot, "There is no snapshot \(id).")
    }
}
