import MicroVM

/// What the command leaves itself before guest code runs.
struct CommandConfinement: Sendable {
    /// What is still to be made in the file system after that: core dumps and the removal of sockets.
    var makesFiles = false
    /// Whether files are opened and changed after that, such as a database's.
    var changesFiles = false
    /// Whether sandboxes are made after that.
    var makesSandboxes = false

    /// What is in force, as doctor tells.
    struct Report: Encodable, Equatable {
        var capabilities: [String]
        var forbidsNewPrivileges: Bool
        var filtersSystemCalls: Bool
        /// Whether it was the command that has seen to it.
        var isApplied = false
        /// Why it was not.
        var failure: String?
    }

    #if Confinement
    /// Confines the process for good.
    func apply() throws(CommandFailure) {
        var permissions: Confinement.Permissions = []
        if makesFiles { permissions.insert(.newFiles) }
        if changesFiles { permissions.insert(.writeFiles) }
        if makesSandboxes { permissions.insert(.makeSandboxes) }
        do throws(SandboxError) {
            try Confinement.apply { $0.permissions = permissions }
        } catch {
            var failure = CommandFailure(error)
            failure.message += " --no-confinement does without."
            throw failure
        }
    }

    static func report(isApplied: Bool, failure: CommandFailure?) -> Report? {
        let state = Confinement.State.current()
        return Report(
            capabilities: state.capabilities,
            forbidsNewPrivileges: state.forbidsNewPrivileges,
            filtersSystemCalls: state.filtersSystemCalls,
            isApplied: isApplied && failure == nil,
            failure: failure?.message
        )
    }
    #else
    /// Nothing: the package was built without the trait Confinement.
    func apply() throws(CommandFailure) {}

    static func report(isApplied: Bool, failure: CommandFailure?) -> Report? { nil }
    #endif

    /// What `--no-confinement` is explained by.
    static let help = """
        Give up all privileges and all system calls that are not needed, before any guest code runs; on unless \
        --no-confinement is given.
        """
}
