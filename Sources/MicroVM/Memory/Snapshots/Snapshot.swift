/// A sandbox at one moment, for ever: its memory, and if it was in the middle of a call, its registers.
///
/// ```swift
/// let ready = try await sandbox.snapshot()
/// let answer: Int = try await sandbox.call("handle", request)
/// try await sandbox.restore(to: ready)            // innocent again
/// let twin = try await Sandbox(from: ready)       // another one like it
/// ```
///
/// A snapshot never changes and can be used by any number of sandboxes on any threads at the same time. It costs as
/// much as the pages that were written since the snapshot it descends from, with which it shares all others; the memory
/// goes when the last snapshot and the last sandbox that use it have gone.
public final class Snapshot: Sendable {
    /// The module that runs in the sandbox.
    public let module: GuestModule
    /// Whether the sandbox was in the middle of a call: a sandbox made from this snapshot, or restored to it, goes on
    /// with the call in ``Sandbox/resume(timeLimit:cpuTimeLimit:returning:)``.
    public var isInCall: Bool { suspendedCall != nil }
    /// How many pages of 4 KiB are not zero, shared ones and the library's own included.
    public var pageCount: Int { memory.pages.pageCount }

    let image: GuestImage
    let memory: MemoryImage
    let suspendedCall: SuspendedCall?
    /// That of the sandbox it was taken of, for those that are made from it.
    let configuration: SandboxConfiguration

    init(
        module: GuestModule,
        image: GuestImage,
        memory: MemoryImage,
        suspendedCall: SuspendedCall?,
        configuration: SandboxConfiguration
    ) {
        self.module = module
        self.image = image
        self.memory = memory
        self.suspendedCall = suspendedCall
        self.configuration = configuration
    }

    /// Checks that a sandbox can become what this is.
    func check(_ module: GuestModule, _ image: GuestImage) throws(SandboxError) {
        if self.image === image { return }
        func require(_ condition: Bool, _ difference: String) throws(SandboxError) {
            if !condition { throw SandboxError(.incompatibleSnapshot, "The snapshot is \(difference).") }
        }
        try require(self.module === module || self.module.bytes == module.bytes, "of another module")
        try require(self.image.addressSpace.sizes == image.addressSpace.sizes, "of a sandbox with other memory sizes")
        try require(
            self.image.absentImports == image.absentImports,
            "of a sandbox with other host functions: a weak import that one of the two lacks is linked otherwise"
        )
    }
}

/// A call that is held between two guest instructions, or before its first.
///
/// An object, because it is large and as a rule is not there.
final class SuspendedCall: Sendable {
    let registers: GuestMachine.CallRegisters
    let function: UInt64
    let arenaPosition: UInt64

    init(registers: GuestMachine.CallRegisters, function: UInt64, arenaPosition: UInt64) {
        self.registers = registers
        self.function = function
        self.arenaPosition = arenaPosition
    }
}

/// What a restore has cost.
public struct RestoreStatistics: Sendable, Hashable {
    /// The pages of 4 KiB that were copied from the snapshot.
    public var pagesCopied: Int
    /// The pages of 4 KiB that were given back to the operating system, beyond
    /// ``SandboxConfiguration/residentMemoryAfterRestore`` or out of use for long.
    public var pagesDropped: Int
}
