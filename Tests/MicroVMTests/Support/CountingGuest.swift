import Testing

@testable import MicroVM

/// Host functions for the guest that is interrupted: those given, and for all other imports ones that do the obvious.
func interruptionFunctions(_ replacements: HostFunction...) -> [HostFunction] {
    let defaults = [
        HostFunction("host_note") { (_: UInt64) -> Int64 in 0 },
        HostFunction("host_wait") { (number: UInt64) async throws -> Void in await Task.yield() },
        HostFunction("host_nest") { (context: HostCallContext, number: UInt64, depth: Int64) throws -> Int64 in
            try context.call("descend", number, depth)
        },
        HostFunction("host_nest_later") {
            (context: HostCallContext, number: UInt64, depth: Int64) async throws -> Int64 in
            try await context.call("descend", number, depth)
        },
    ]
    let names = Set(replacements.map(\.name))
    return replacements + defaults.filter { !names.contains($0.name) }
}

/// A guest call that counts in the guest's memory until the test lets it return: whether the guest runs can be seen.
struct CountingGuest: Sendable {
    let sandbox: Sandbox
    let call: GuestCall<UInt64>
    /// How far the guest has counted.
    let laps: SharedWord
    private let end: SharedWord

    var handle: LinuxInterruptHandle { sandbox.interruptHandle }
    var killSwitch: KillSwitch { call.killSwitch }

    /// Begins the call, and waits until the guest runs unless the sandbox is stopped.
    init(in sandbox: Sandbox, timeLimit: Duration? = nil, cpuTimeLimit: Duration? = nil) async throws {
        self.sandbox = sandbox
        laps = try await SharedWord(of: sandbox)
        end = try await SharedWord(of: sandbox, at: laps.address + 8)
        laps.value = 0
        end.value = 0
        call = try sandbox.start("count_until", laps.address, timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit)
        if !handle.isStopped { await waitForLaps() }
    }

    init(_ configure: (inout SandboxConfiguration) -> Void = { _ in }) async throws {
        try await self.init(in: Guest.interruption.sandbox(interruptionFunctions(), configure: configure))
    }

    /// Waits until the guest has counted on, or its call is over.
    func waitForLaps() async {
        let seen = laps.value
        await waitUntil { laps.value != seen || killSwitch.call.statistics.withLock { $0 != nil } }
    }

    /// Lets the guest return how far it has counted.
    func release() { end.value = 1 }

    /// What the call ended with, which should be an error.
    func error(sourceLocation: SourceLocation = #_sourceLocation) async -> SandboxError? {
        await #expect(throws: SandboxError.self, sourceLocation: sourceLocation) { try await call.result }
    }
}

extension LinuxInterruptHandle {
    /// Waits until the thread sleeps inside its call: held by a stop, or for an asynchronous host function.
    func waitUntilWaiting() async { await waitUntil { currentState.has(CallState.waiting) } }
}

extension LinuxInterruptHandle.KillOutcome {
    /// Whether a call was found, which then ends as killed.
    var isEffective: Bool { self == .signalled || self == .pending }
}
