/// Sandboxes that are stopped together, those that join while they are stopped included.
///
/// A sandbox joins through ``SandboxConfiguration/sandboxSet``, and then even its initialisers wait, or through
/// ``insert(_:)``. It leaves when it is closed or gone. The set holds no sandbox alive.
public final class SandboxSet: Sendable {
    private struct Member {
        weak var sandbox: Sandbox?
        let interruptHandle: LinuxInterruptHandle
        /// Whether a stop of the set's own is in force, which it then has to end: there is none of a sandbox that was
        /// closed already, nor of one that others had stopped as often as possible.
        var isStopped = false

        /// Begins that stop without waiting. What the word was, for ``LinuxInterruptHandle/kick(_:)``.
        mutating func setStop() -> CallState {
            let before = try? interruptHandle.setExternalStop()
            isStopped = before != nil
            return before ?? interruptHandle.currentState
        }

        mutating func endStop() {
            if isStopped { try? interruptHandle.endExternalStop() }
            isStopped = false
        }
    }

    private struct Members {
        var stopCount: UInt16 = 0
        var byHandle: [ObjectIdentifier: Member] = [:]
        /// At how many members those that are gone are next looked for.
        var crowd = 16
    }

    private let members = Locked(Members())

    /// Makes an empty set.
    public init() {}

    /// Adds a sandbox, which stops at once if the set is stopped. One that is in the set already stays as it is.
    public func insert(_ sandbox: Sandbox) {
        let handle = sandbox.interruptHandle
        let before: CallState? = members.withLock { members in
            guard members.byHandle[ObjectIdentifier(handle)] == nil else { return nil }
            if members.byHandle.count >= members.crowd {
                members.byHandle = members.byHandle.filter { !$0.value.interruptHandle.isDropped }
                members.crowd = max(16, 2 * members.byHandle.count)
            }
            // The lock keeps the order: whoever changes the count now finds this member, or this member the count.
            var member = Member(sandbox: sandbox, interruptHandle: handle)
            let before = members.stopCount > 0 ? member.setStop() : nil
            members.byHandle[ObjectIdentifier(handle)] = member
            return before
        }
        if let before { handle.kick(before) }
    }

    /// Removes a sandbox, which goes on if nothing but this set stops it.
    public func remove(_ sandbox: Sandbox) {
        members.withLock { members in
            var member = members.byHandle.removeValue(forKey: ObjectIdentifier(sandbox.interruptHandle))
            member?.endStop()
        }
    }

    /// The sandboxes that are in the set and not gone.
    public var sandboxes: [Sandbox] {
        members.withLock { members in
            members.byHandle.values.filter { !$0.interruptHandle.isDropped }.compactMap(\.sandbox)
        }
    }

    /// Begins an external stop of every present and future member. Counted; running guests have left when this returns.
    ///
    /// - Throws: ``StopError/overflow``.
    public func beginExternalStop() throws(StopError) {
        let kicks = try members.withLock { members throws(StopError) in
            guard members.stopCount < StopCounts.maximum else { throw .overflow }
            members.stopCount += 1
            if members.stopCount == 1 {
                return members.byHandle.values.indices.map { index in
                    let before = members.byHandle.values[index].setStop()
                    return (members.byHandle.values[index].interruptHandle, before)
                }
            }
            // Its guests may still be about to leave for the first stop.
            return members.byHandle.values.map { ($0.interruptHandle, $0.interruptHandle.currentState) }
        }
        for (handle, state) in kicks { handle.kick(state) }
    }

    /// Ends an external stop of every present and future member.
    ///
    /// - Throws: ``StopError/underflow`` when none is in force.
    public func endExternalStop() throws(StopError) {
        try members.withLock { members throws(StopError) in
            guard members.stopCount > 0 else { throw .underflow }
            members.stopCount -= 1
            guard members.stopCount == 0 else { return }
            for index in members.byHandle.values.indices { members.byHandle.values[index].endStop() }
        }
    }

    /// Brings every member's complete register state to the host. Each is stopped at least until its own has been read.
    ///
    /// - Returns: the states by sandbox, without those that were closed meanwhile.
    public func pullFullState() async -> [(sandbox: Sandbox, state: SandboxState)] {
        await withTaskGroup { group in
            for sandbox in sandboxes {
                group.addTask { (try? await sandbox.pullFullState()).map { (sandbox: sandbox, state: $0) } }
            }
            return await group.reduce(into: []) { states, state in
                if let state { states.append(state) }
            }
        }
    }
}
