import Glibc
import Synchronization
import Testing

@testable import MicroVM

/// Getting out of the guest and back in, thousands of times: nothing is lost on the way. gVisor's cases for its KVM
/// platform, Wasmtime's for interrupting from afar, and TinyKVM's for many limits at once.
@Suite(.requiresKVM, .serialized, .timeLimit(.minutes(5))) struct BounceTests {
    // MARK: - Registers

    /// Everybody who takes a guest out without ending its call.
    enum Interruption: CaseIterable { case stop, debugger }

    /// gVisor's TestBounceStress, with TestRegistersFault's look at the registers.
    @Test(arguments: Interruption.allCases)
    func `a thousand kicks at random moments change no register`(_ interruption: Interruption) async throws {
        let guest = try await HoldingGuest()
        let handle = guest.sandbox.interruptHandle
        let kicks = Surroundings.scaled(1000)
        let interrupted = await onThread {
            var interrupted: UInt64 = 0
            for _ in 0..<kicks {
                usleep(UInt32.random(in: 0...1000))
                if interruption == .stop {
                    // The test holds the sandbox, and ends what it begins.
                    try! handle.beginExternalStop()
                    try! handle.endExternalStop()
                } else {
                    if handle.killFromDebugger() == .interrupted { interrupted += 1 }
                }
            }
            return interrupted
        }
        // It still runs, and when it is let go it finds what it had.
        let seen = guest.laps.value
        await waitUntil { guest.laps.value != seen }
        #expect(try await guest.release() == guest.known)
        let statistics = try #require(await guest.call.statistics)
        // One that found the guest still out is one with the one before, or one more.
        #expect((interrupted...UInt64(kicks)).contains(statistics.debugInterrupts))
        #expect((statistics.stoppedDuration > .zero) == (interruption == .stop))
    }

    /// gVisor's TestRegistersSyscall. By the ABI only rbx, rbp and r12 to r15 need survive; the library's thunk changes
    /// nothing but what carries a result.
    @Test func `a host call changes no register but those of its result`() async throws {
        let sandbox = try await Guest.registers.sandbox([HostFunction("host_tick") { () in }])
        for _ in 0..<50 {
            let known = try await HoldingGuest.prepare(sandbox)
            try await sandbox.call("hold_registers", true)
            let found = try await HoldingGuest.found(sandbox)
            #expect(found.withoutResults == known.withoutResults)
        }
    }

    /// gVisor's TestRegistersFault: a stop and a debugger's interruption during the host call, and between its parts.
    @Test func `a stop and a debugger in the middle of a host call change no register either`() async throws {
        let handle = Shared<LinuxInterruptHandle>(nil)
        let sandbox = try await Guest.registers.sandbox([
            HostFunction("host_tick") { () async throws -> Void in
                handle.value?.killFromDebugger()
                try? handle.value?.beginExternalStop()
                let kept = handle.value
                Task.detached {
                    await kept?.waitUntilWaiting()
                    try? kept?.endExternalStop()
                }
            }
        ])
        handle.value = sandbox.interruptHandle
        for _ in 0..<50 {
            let known = try await HoldingGuest.prepare(sandbox)
            try await sandbox.call("hold_registers", true)
            let found = try await HoldingGuest.found(sandbox)
            #expect(found.withoutResults == known.withoutResults)
        }
        handle.value = nil
    }

    /// The calling thread's MXCSR without the exceptions that have been.
    private static var hostMXCSR: UInt32 {
        var environment = fenv_t()
        // The structure outlives the call.
        unsafe fegetenv(&environment)
        return environment.__mxcsr & ~0x3f
    }

    /// gVisor's TestMXCSR.
    @Test func `the guest's rounding stays in the guest, and ends with its call`() async throws {
        let sandbox = try await Guest.registers.sandbox([
            HostFunction("host_tick") { () throws in
                #expect(Self.hostMXCSR == 0x1f80)
                // Rounded to nearest: towards zero it would be less.
                let (one, ten) = (Double(Int.random(in: 1...1)), Double(Int.random(in: 10...10)))
                #expect(one / ten == 0.1 && fegetround() == FE_TONEAREST)
            }
        ])
        for _ in 0..<3 {
            let known = try await HoldingGuest.prepare(sandbox)
            #expect(known.mxcsr == 0x7f80)
            try await sandbox.call("hold_registers", true)
            #expect(try await HoldingGuest.found(sandbox).mxcsr == 0x7f80)
            // What it leaves is not what the next call begins with, and the host has its own.
            for next in [0x7f80, 0x3f80, 0x1f80, 0xffc0] as [UInt32] {
                #expect(try await sandbox.call("exchange_mxcsr", next) == UInt32(0x1f80))
                #expect(Self.hostMXCSR == 0x1f80)
                let onThread = try await sandbox.run { sandbox in
                    let found: UInt32 = try await sandbox.call("exchange_mxcsr", next)
                    return (found, Self.hostMXCSR)
                }
                #expect(onThread == (0x1f80, 0x1f80))
            }
        }
        // Nor does it leak when the call ends half way.
        let guest = try await HoldingGuest()
        await onThread { _ = guest.sandbox.interruptHandle.kill() }
        #expect(try await guest.sandbox.run { _ in Self.hostMXCSR } == 0x1f80)
    }

    /// gVisor's TestWrongVCPU.
    @Test func `two sandboxes that alternate a hundred times keep to their own threads`() async throws {
        struct Side {
            let sandbox: Sandbox
            let thread: pthread_t
            let calls: Recorder<UInt64>
        }
        func side() async throws -> Side {
            let calls = Recorder<UInt64>()
            let thread = Shared<pthread_t>(nil)
            let sandbox = try await Guest.interruption.sandbox(
                interruptionFunctions(
                    HostFunction("host_note") { (number: UInt64) -> Int64 in
                        #expect(pthread_equal(pthread_self(), thread.value ?? 0) != 0)
                        calls.append(number)
                        return Int64(number)
                    }
                )
            ) {
                // Callers who poll run host functions on their own.
                $0.polling = .never
            }
            thread.value = try await sandbox.run { _ in pthread_self() }
            return Side(sandbox: sandbox, thread: thread.value ?? 0, calls: calls)
        }
        let sides = [try await side(), try await side()]
        #expect(pthread_equal(sides[0].thread, sides[1].thread) == 0)
        let (turns, hostCalls) = (Surroundings.scaled(100), 90)
        for turn in 0..<turns {
            for side in sides {
                #expect(try await side.sandbox.call("notes", UInt64(turn), hostCalls) == turn)
            }
        }
        for side in sides {
            #expect(side.calls.all == (0..<turns).flatMap { Array(repeating: UInt64($0), count: hostCalls) })
        }
    }

    // MARK: - From afar

    /// Wasmtime's cases of a loop and of functions that are interrupted from another thread.
    @Test(arguments: ["note_for_ever", "note_in_functions_for_ever"])
    func `a kill from afar ends a guest that has made a hundred thousand host calls`(_ function: String) async throws {
        let count = Atomic<Int>(0)
        let enough = Surroundings.scaled(100_000)
        let sandbox = try await Guest.interruption.sandbox(
            interruptionFunctions(
                HostFunction("host_note") { (_: UInt64) -> Int64 in
                    count.add(1, ordering: .relaxed)
                    return 0
                }
            )
        )
        let call = try sandbox.start(function, UInt64(1))
        await waitUntil { count.load(ordering: .relaxed) >= enough }
        let success = try await onThread { Result { try call.killSwitch.terminate() } }.get()
        #expect(success == .signalled || success == .pending)
        let error = await #expect(throws: SandboxError.self) { try await call.result }
        #expect(error?.code == .killed)
        let statistics = try #require(error?.statistics)
        let made = UInt64(count.load(ordering: .relaxed))
        #expect(statistics.hostCalls == made && made >= UInt64(enough))
    }

    // MARK: - Many limits

    /// TinyKVM's case. 25 of the endless guests spin at a time, so that two processors have time for the good ones; a
    /// good one's second is one of its own CPU time, which others cannot take from it.
    @Test func `of a hundred good guests and a hundred endless ones the endless ones time out`() async throws {
        let module = try Guest.interruption.module()
        let count = Surroundings.isStress ? 100 : 10
        async let endless = withThrowingTaskGroup(of: SandboxError.Code?.self) { group in
            var timedOut = 0
            for number in 0..<count {
                if number >= 25, try await group.next() == .timeLimitExceeded { timedOut += 1 }
                group.addTask {
                    let sandbox = try await Sandbox(module, hostFunctions: interruptionFunctions())
                    let error = await #expect(throws: SandboxError.self) {
                        try await sandbox.call("spin", timeLimit: .seconds(1))
                    }
                    await sandbox.close()
                    return error?.code
                }
            }
            while let code = try await group.next() { timedOut += code == .timeLimitExceeded ? 1 : 0 }
            return timedOut
        }
        async let good = withThrowingTaskGroup(of: Int.self) { group in
            var sum = 0
            for number in 0..<count {
                if number >= 4 { sum += try await group.next() ?? 0 }
                group.addTask {
                    let sandbox = try await Sandbox(module, hostFunctions: interruptionFunctions())
                    let result: Int = try await sandbox.call("iterate", 100_000, cpuTimeLimit: .seconds(1))
                    await sandbox.close()
                    return result
                }
            }
            while let result = try await group.next() { sum += result }
            return sum
        }
        #expect(try await endless == count)
        #expect(try await good == 100_000 * count)
    }
}
