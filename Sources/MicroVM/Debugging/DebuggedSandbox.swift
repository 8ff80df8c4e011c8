import CShims
import LinuxKVM
import Synchronization
import SystemPackage

/// A sandbox as its debugger's server reaches it: everything happens while the virtual CPU's thread does nothing else.
@safe final class DebuggedSandbox: Sendable {
    /// Where a sandbox is, in a few words.
    struct Place: Sendable {
        var isInCall: Bool
        var hostFunction: String?
        var depth: Int

        var text: String {
            var text =
                hostFunction.map { "In the host function \($0)" }
                ?? (isInCall ? "In the guest" : "No call is under way")
            if depth > 0 { text += ", \(depth) \(depth == 1 ? "call" : "calls") deep in host calls" }
            return text
        }
    }

    /// The sandbox's thread is busy with something that cannot be interrupted.
    struct BusyError: Error {}

    /// How long the sandbox's thread is waited for: code that is isolated to the sandbox may keep it.
    private static let patience: UInt64 = 5_000_000_000

    let debugger: Debugger
    let symbols: DebugSymbols
    private let reference: RunLoopReference

    init(_ reference: RunLoopReference, _ debugger: Debugger, symbols: DebugSymbols) {
        self.reference = reference
        self.debugger = debugger
        self.symbols = symbols
    }

    /// What an inspection has come to, and whether anybody still wants to know.
    @safe private final class Inspection<Result: Sendable>: Sendable {
        private enum State {
            case waiting, abandoned
            case done(Swift.Result<Result, any Error>)
        }

        private let state = Locked(State.waiting)
        /// Changes when it is done. Freed in `deinit`: both sides hold this object.
        private nonisolated(unsafe) let word: UnsafeMutablePointer<Atomic<UInt32>>

        init() {
            unsafe word = .allocate(capacity: 1)
            unsafe word.initialize(to: Atomic(0))
        }

        deinit {
            unsafe word.deinitialize(count: 1)
            unsafe word.deallocate()
        }

        /// Runs the body unless it is too late.
        func run(_ body: () throws -> Result) {
            // Under the lock, so that whoever gives up knows that it has not been begun.
            state.withLock { state in
                guard case .waiting = state else { return }
                state = .done(Swift.Result { try body() })
            }
            // Releasing: partner of the acquiring load in `wait`.
            unsafe word.pointee.store(1, ordering: .releasing)
            unsafe word.withMemoryRebound(to: UInt32.self, capacity: 1) { unsafe shim_futex_wake_all($0) }
        }

        func wait(nanoseconds: UInt64) throws -> Result {
            let end = MonotonicTime.now.nanoseconds + nanoseconds
            while unsafe word.pointee.load(ordering: .acquiring) == 0 {
                let now = MonotonicTime.now.nanoseconds
                if now >= end { break }
                unsafe word.withMemoryRebound(to: UInt32.self, capacity: 1) {
                    unsafe shim_futex_wait($0, 0, end - now)
                }
            }
            return try state.withLock { state in
                if case .done(let result) = state { return try result.get() }
                state = .abandoned
                throw BusyError()
            }
        }
    }

    private func inspect<Result: Sendable>(_ body: @escaping @Sendable (RunLoop) throws -> Result) throws -> Result {
        let inspection = Inspection<Result>()
        let reference = reference
        reference.thread.addInterlude(.inspection) {
            inspection.run {
                guard let runLoop = reference.value else {
                    throw SandboxError(.closed, "This sandbox has been closed.")
                }
                return try body(runLoop)
            }
        }
        return try inspection.wait(nanoseconds: Self.patience)
    }

    /// Stops the guest, wherever it is.
    func interrupt() {
        debugger.interrupt()
        settle()
    }

    func attach() {
        debugger.attach()
        settle()
    }

    /// When it is not the guest that has been interrupted, nobody else finds that out.
    private func settle() {
        let debugger = debugger
        guard (try? inspect { _ in debugger.holdHere() }) == nil else { return }
        // Then the client is told when the sandbox's thread has come to it.
        reference.thread.addInterlude(.inspection) { debugger.holdHere() }
    }

    func kill() { reference.interruptHandle.kill() }

    var place: Place? {
        try? inspect { runLoop in
            Place(
                isInCall: runLoop.isInCall,
                hostFunction: runLoop.currentImport.map { runLoop.module.imports[$0].name },
                depth: runLoop.depth
            )
        }
    }

    /// All there is to be said.
    var report: String {
        let state = try? inspect { runLoop in (try runLoop.state(), runLoop.isPoisoned) }
        guard let (state, isPoisoned) = state, let place else { return "The sandbox's thread is busy.\n" }
        let statistics = state.statistics
        let symbol = state.symbol.map { " (\($0))" } ?? ""
        return """
            \(place.text)\(isPoisoned ? ", and poisoned" : "").
            at        0x\(String(state.instructionPointer, radix: 16))\(symbol)
            module    \(symbols.module.name), \(symbols.addSymbolFile)
            duration  \(statistics.duration), of which stopped \(statistics.stoppedDuration)
            exits     \(statistics.exits), host calls \(statistics.hostCalls), nested calls \(statistics.nestedCalls)
            """ + "\n"
    }

    // MARK: - Registers and memory

    func registers() throws -> GuestMachine.CallRegisters { try inspect { runLoop in try runLoop.allRegisters() } }

    /// Changes a part of the registers, in GDB's order.
    func setRegisters(_ changed: Range<Int>, to values: [UInt8?]) throws {
        try inspect { runLoop in
            var registers = try runLoop.allRegisters()
            var bytes = GDBRegisters.bytes(registers)
            bytes.replaceSubrange(changed, with: values)
            guard GDBRegisters.set(&registers, to: bytes, changed: changed) else { throw Errno.invalidArgument }
            try runLoop.setAllRegisters(registers)
        }
    }

    func memory(at address: UInt64, count: Int) throws -> [UInt8] {
        try inspect { runLoop in runLoop.machine.memory.inspect(at: address, count: count) }
    }

    func setMemory(at address: UInt64, to bytes: [UInt8]) throws -> Bool {
        try inspect { runLoop in runLoop.machine.memory.patch(bytes, at: address) }
    }

    /// Whether a breakpoint can be there: in code, or on the stack, to which GDB lets functions return that it calls.
    func canBreak(at address: UInt64) -> Bool {
        let addressSpace = symbols.addressSpace
        return addressSpace.stack.contains(address)
            || addressSpace.regions.contains {
                $0.range.contains(address) && $0.isUser && $0.permissions.contains(.execute)
            }
    }
}

extension RunLoop {
    /// Everything the virtual CPU knows of the guest, as far as it is to be had.
    func allRegisters() throws(Errno) -> GuestMachine.CallRegisters {
        let general = try completedRegisters()
        do throws(Errno) {
            if isMachineBroken { throw .notSupported }
            return try machine.callRegisters { interruptHandle.clearImmediateExit() }
        } catch {
            // A processor that has shut down executes nothing any more, and so does not say what is in its vectors.
            let special = try machine.specialRegisters()
            return GuestMachine.CallRegisters(general: general, system: .whole(special, .init()), extendedState: [])
        }
    }

    func setAllRegisters(_ registers: GuestMachine.CallRegisters) throws(Errno) {
        try machine.setCallRegisters(registers) { interruptHandle.clearImmediateExit() }
    }
}
