import Glibc
import SystemPackage
import Testing

@testable import MicroVM

/// What a guest was when it was dumped, as debuggers see it.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct CoreDumpTests {
    /// A directory of its own, which goes with this value.
    private let workshop: Workshop

    init() throws { workshop = try Workshop() }

    private func hexadecimal(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }

    // MARK: - What debuggers see

    @Test(.requiresGDB, arguments: BacktraceTests.builds)
    func `gdb finds a fault's registers, functions, variables and memory`(guest: Guest) async throws {
        let sandbox = try await workshop.dumpingSandbox(guest)
        let snapshot = try await sandbox.snapshot()
        let heap: UInt64 = try await sandbox.call("heap_address")
        // A guest can have wider registers than KVM tells.
        var isWide = true
        var error: SandboxError?
        for wide in [true, false] where error?.fault?.kind != .memoryAccess {
            isWide = wide
            try await sandbox.restore(to: snapshot)
            error = await #expect(throws: SandboxError.self) {
                let _: UInt64 = try await sandbox.call("fault_with_vectors", heap, wide)
            }
        }
        let fault = try #require(error?.fault)
        let path = try #require(error?.coreDump)
        #expect(error?.coreDumpFailure == nil)
        let text = try GDB.run(
            guest.path,
            path,
            "backtrace",
            "info registers",
            "print/x $fs_base",
            "x/s \(heap)",
            "print (long)landmark",
            "print/x $xmm3.uint128",
            isWide ? "print/x $ymm3.v32_int8" : "print 1",
            "print $_siginfo.si_signo",
            "print/x (long)$_siginfo._sifields._sigfault.si_addr",
            "print/x $mxcsr",
            "info sharedlibrary"
        )
        #expect(text.contains("Program terminated with signal SIGSEGV"))
        #expect(text.contains("in fault_with_vectors ()"))
        let registers = fault.registers
        let named = [
            ("rax", registers.rax), ("rbx", registers.rbx), ("rcx", registers.rcx), ("rdx", registers.rdx),
            ("rsi", registers.rsi), ("rdi", registers.rdi), ("rbp", registers.rbp), ("rsp", registers.rsp),
            ("r8", registers.r8), ("r12", registers.r12), ("r15", 0x1234567), ("rip", registers.rip),
            ("eflags", registers.rflags), ("cs", 0x33), ("ss", 0x2b),
        ]
        let lines = text.split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
        for (name, value) in named {
            #expect(lines.contains { $0.first == name && $0.dropFirst().first == hexadecimal(value) }, "\(name)")
        }
        let threadPointer = try await sandbox.run { try $0.memory.addressSpace.threadPointer }
        #expect(text.contains("= \(hexadecimal(threadPointer))\n"))
        #expect(text.contains("\"written to the heap\""))
        #expect(text.contains("= \(0x1122_3344_5566_7788)"))
        #expect(text.contains("= 0x3030303030303030303030303030303"))
        if isWide { #expect(text.contains("{0x3 <repeats 16 times>, 0x83 <repeats 16 times>}")) }
        #expect(text.contains("= 11\n") && text.contains("= 0x8\n") && text.contains("= 0x1f80\n"))
    }

    @Test(.requiresGDB, arguments: BacktraceTests.builds)
    func `gdb walks the same stack`(guest: Guest) async throws {
        for (deed, signal) in [(0, "SIGSEGV"), (2, "SIGABRT"), (4, "SIGILL")] as [(UInt64, String)] {
            let error = try await BacktraceTests.error(workshop.dumpingSandbox(guest), "outer", [0, deed])
            let text = try GDB.run(guest.path, try #require(error.coreDump), "backtrace")
            #expect(text.contains("signal \(signal)"))
            for name in ["innermost", "middle", "outer"] { #expect(text.contains(" in \(name) ()")) }
        }
    }

    @Test(.requiresGDB)
    func `gdb names Swift's functions`() async throws {
        let policy = workshop.coreDumpPolicy()
        let sandbox = try await Guest.swiftBacktrace.sandbox { $0.coreDumps = policy }
        let error = try await BacktraceTests.error(sandbox, "add_entries", [7])
        let text = try GDB.run(Guest.swiftBacktrace.path, try #require(error.coreDump), "backtrace")
        #expect(text.contains("Ledger") && text.contains("SIGILL"))
    }

    @Test(.requiresGDB)
    func `every kind of fault has a signal that gdb knows`() async throws {
        let policy = workshop.coreDumpPolicy { $0.maximumCount = 100 }
        for (function, arguments, signal) in [
            ("divide_by_zero", [], "SIGFPE"), ("read_non_canonical", [], "SIGSEGV"), ("read_null", [], "SIGSEGV"),
            ("overflow_stack", [], "SIGSEGV"), ("abort_with_message", [0, 0], "SIGABRT"),
        ] as [(String, [UInt64], String)] {
            let sandbox = try await Guest.faults.sandbox { $0.coreDumps = policy }
            guard sandbox.module.export(named: function) != nil else { continue }
            let error = try await BacktraceTests.error(sandbox, function, arguments)
            #expect(try GDB.run(Guest.faults.path, try #require(error.coreDump)).contains("signal \(signal)"))
        }
    }

    @Test(.requiresGDB)
    func `a kill is dumped where the guest was, if that is asked for`() async throws {
        for includesKills in [true, false] {
            let sandbox = try await workshop.dumpingSandbox { $0.includesKills = includesKills }
            let error = try await BacktraceTests.error(sandbox, "outer", [0, 1], timeLimit: .milliseconds(100))
            #expect(error.code == .timeLimitExceeded && (error.coreDump != nil) == includesKills)
            let afterwards = workshop.folder.appending("afterwards-\(includesKills).core")
            // What is left can be looked at all the same.
            try await sandbox.coreDump(to: afterwards)
            let place = try #require(error.interruption?.registers.rip)
            for path in [error.coreDump, afterwards].compactMap(\.self) {
                let text = try GDB.run(
                    Guest.backtrace.path,
                    path,
                    "backtrace",
                    "print/x (long)$pc",
                    "print (long)is_spinning"
                )
                #expect(text.contains("signal SIGKILL") && text.contains("= \(hexadecimal(place))\n"))
                #expect(text.contains(" in innermost ()") && text.contains(" in outer ()"))
            }
        }
    }

    @Test(.requiresGDB)
    func `a fault can be dumped afterwards, until the sandbox is restored`() async throws {
        let sandbox = try await BacktraceTests.sandbox(.backtrace)
        let snapshot = try await sandbox.snapshot()
        let fault = try await BacktraceTests.fault(sandbox, "outer", [0, 0])
        try await sandbox.coreDump(to: workshop.folder.appending("fault.core"))
        let text = try GDB.run(Guest.backtrace.path, workshop.folder.appending("fault.core"), "print/x (long)$pc")
        #expect(text.contains("SIGSEGV") && text.contains("= \(hexadecimal(fault.instructionPointer))\n"))
        try await sandbox.restore(to: snapshot)
        try await sandbox.coreDump(to: workshop.folder.appending("idle.core"))
        let idle = try GDB.run(Guest.backtrace.path, workshop.folder.appending("idle.core"), "print/x (long)landmark")
        #expect(!idle.contains("terminated with signal") && idle.contains("0x1122334455667788"))
        #expect(try await sandbox.call("answer") == 42)
    }

    @Test(arguments: BacktraceTests.builds)
    func `the registers are those of ring 3`(guest: Guest) async throws {
        let sandbox = try await workshop.dumpingSandbox(guest)
        let heap: UInt64 = try await sandbox.call("heap_address")
        let threadPointer = try await sandbox.run { try $0.memory.addressSpace.threadPointer }
        let error = await #expect(throws: SandboxError.self) {
            let _: UInt64 = try await sandbox.call("fault_with_vectors", heap, false)
        }
        let file = try CoreFile(try #require(error?.coreDump))
        #expect(file.registers == error?.fault?.registers && file.signal == SIGSEGV)
        #expect(file.vectors == (0..<16).map { [UInt8](repeating: $0, count: 16) })
        #expect(file.fsBase == threadPointer && file.selectors == [0x33, 0x2b])
        let text = "written to the heap"
        #expect(try file.bytes(at: heap, count: text.utf8.count) == Array(text.utf8))
    }

    // MARK: - In the middle of a call

    @Test func `a running call is dumped with its registers and goes on with all of them`() async throws {
        let guest = try await HoldingGuest()
        for round in 0..<5 {
            let seen = guest.laps.value
            try await onThread { Result { try guest.sandbox.interruptHandle.beginExternalStop() } }.get()
            let state = try await guest.sandbox.pullFullState()
            let path = workshop.folder.appending("held-\(round).core")
            try await guest.sandbox.coreDump(to: path)
            let again = try await guest.sandbox.pullFullState()
            #expect(state.registers == again.registers && state.fsBase == again.fsBase)
            #expect(HeldRegisters(again, isWide: try HoldingGuest.isWide) == guest.known)
            if round == 0, GDB.isInstalled {
                let text = try GDB.run(
                    Guest.registers.path,
                    path,
                    "info registers",
                    "print/x $xmm15.v16_int8",
                    "print/x $mxcsr"
                )
                #expect(!text.contains("terminated with signal"))
                for (name, value) in [
                    ("rax", state.registers.rax), ("r11", state.registers.r11), ("rip", state.registers.rip),
                    ("rsp", state.registers.rsp), ("rbp", state.registers.rbp),
                ] {
                    let isThere = text.split(separator: "\n").contains {
                        let words = $0.split(separator: " ")
                        return words.first == name[...] && words.dropFirst().first == hexadecimal(value)[...]
                    }
                    #expect(isThere, "\(name)")
                }
                #expect(text.contains("= \(hexadecimal(UInt64(guest.known.mxcsr)))\n"))
            }
            let file = try CoreFile(path)
            #expect(file.registers == state.registers && file.signal == 0)
            #expect(file.vectors == guest.known.vectors.map { Array($0.prefix(16)) })
            #expect(file.fsBase == state.fsBase && file.selectors == [0x33, 0x2b])
            try guest.sandbox.interruptHandle.endExternalStop()
            await waitUntil { guest.laps.value != seen }
        }
        #expect(try await guest.release() == guest.known)
    }

    @Test func `a call that waits for its host function is dumped, and gets its result`() async throws {
        let mayReturn = Flag()
        let sandbox = try await Guest.interruption.sandbox(
            interruptionFunctions(
                HostFunction("host_wait") { (number: UInt64) async throws -> Void in await waitUntil { mayReturn.isSet }
                }
            )
        )
        let call = try sandbox.start("wait", UInt64(3))
        await sandbox.interruptHandle.waitUntilWaiting()
        for round in 0..<3 { try await sandbox.coreDump(to: workshop.folder.appending("wait-\(round).core")) }
        mayReturn.set()
        try await call.result
        #expect(try workshop.coreDumps.count == 3)
    }

    @Test func `a host function cannot dump the sandbox that waits for it`() async throws {
        let place = Shared<Sandbox>(nil)
        let path = workshop.folder.appending("own.core")
        let sandbox = try await Guest.interruption.sandbox(
            interruptionFunctions(
                HostFunction("host_wait") { (number: UInt64) async throws -> Void in
                    try await place.value?.coreDump(to: path)
                }
            )
        )
        place.value = sandbox
        let error = await #expect(throws: SandboxError.self) { try await sandbox.call("wait", UInt64(3)) }
        place.value = nil
        #expect(error?.code == .reentrantCall)
        #expect(try workshop.coreDumps.isEmpty)
    }
}
