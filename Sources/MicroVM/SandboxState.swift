import LinuxKVM
import SystemPackage

/// What a sandbox that is held still is in the middle of.
public struct SandboxState: Sendable {
    /// Whether a call is under way.
    public var isInCall: Bool
    /// The import whose host function is at work, if one is.
    public var hostFunction: String?
    /// How many calls are under way that were made from inside host calls.
    public var callDepth: Int
    /// The bytes of memory that the sandbox has to itself: pages that were written since it was made, whatever was
    /// restored in them meanwhile. What it shares with others does not count. Nothing where the kernel does not tell.
    public var ownMemory: UInt64?
    /// What the call has cost so far; of the last one, where none is under way.
    public var statistics: CallStatistics
    /// The address of the guest's next instruction; where the library's own code in the guest is at work, in its
    /// caller.
    public var instructionPointer: UInt64
    /// The function that ``instructionPointer`` belongs to.
    public var symbol: GuestSymbol?
    /// The general registers.
    public var registers: GuestRegisters
    /// The functions that are under way; none between two calls.
    public var backtrace: GuestBacktrace
    /// The base addresses of the segments %fs, which is the thread pointer, and %gs.
    public var fsBase, gsBase: UInt64
    /// The x87, SSE and AVX state in the standard format of `xsave` (Intel SDM volume 1, 13.4), at least 4096 bytes.
    public var extendedState: [UInt8]
}

extension RunLoop {
    /// The state between two guest instructions.
    func state() throws(SandboxError) -> SandboxState {
        do throws(Errno) {
            let registers = GuestRegisters(try completedRegisters())
            let special = try machine.specialRegisters()
            let place = guestCodeAddress(registers)
            return SandboxState(
                isInCall: isInCall,
                hostFunction: currentImport.map { module.imports[$0].name },
                callDepth: depth,
                ownMemory: machine.memory.ownSize,
                statistics: meter.statistics,
                instructionPointer: place,
                symbol: symbol(at: place),
                registers: registers,
                backtrace: isInCall ? backtrace(registers) : .none,
                fsBase: special.fs.base,
                gsBase: special.gs.base,
                extendedState: try machine.virtualCPU.xsave()
            )
        } catch {
            throw SandboxError(.systemCallFailed, "KVM does not give the registers.", underlyingError: error)
        }
    }
}

extension Sandbox {
    /// Reads all that is to be known about where the guest is: its registers, its place in the module, the calls it is
    /// in.
    ///
    /// The sandbox is stopped while this reads, if it is not stopped already; a host function goes on meanwhile. The
    /// guest gets on however often this is called: it has about half of the time, and whoever asks again earlier waits,
    /// but in a cancelled task.
    ///
    /// - Throws: ``SandboxError/Code/closed``, ``SandboxError/Code/systemCallFailed``;
    ///   ``SandboxError/Code/reentrantCall`` from a host function of the same sandbox.
    public nonisolated func pullFullState() async throws(SandboxError) -> SandboxState {
        try await observe(.inspection) { runLoop throws(SandboxError) in try runLoop.state() }
    }

    /// Does something on the sandbox's thread while it is stopped, between two calls or while one is held; an
    /// inspection also while a synchronous host function is at work.
    nonisolated func observe<Result: Sendable>(
        _ kind: VirtualCPUThread.Interlude = .observation,
        _ body: @escaping @Sendable (RunLoop) throws(SandboxError) -> Result
    ) async throws(SandboxError) -> Result {
        let (reference, loan, interruptHandle) = (reference, loan, interruptHandle)
        try HostCallChain.check(reference)
        if interruptHandle.currentState.has(CallState.inCall) {
            let delay = reference.looks.reserve()
            if delay > 0 { try? await Task.sleep(nanoseconds: delay) }
        }
        let began = MonotonicTime.now
        do throws(StopError) {
            try interruptHandle.beginExternalStop()
        } catch {
            throw SandboxError(.closed, "This sandbox has been closed.", underlyingError: error)
        }
        let result = await handedOver { handOver in
            reference.thread.addInterlude(kind) {
                let result = Swift.Result<Result, SandboxError> { () throws(SandboxError) in
                    guard let runLoop = reference.value else {
                        throw SandboxError(.closed, "This sandbox has been closed.")
                    }
                    try loan?.check()
                    return try body(runLoop)
                }
                // Here, and not by whoever gets the result: the thread goes on before it is asked again.
                try? interruptHandle.endExternalStop()
                reference.looks.end(began: began)
                handOver(result)
            }
        }
        return try result.get()
    }
}
