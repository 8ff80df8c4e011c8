import Testing

@testable import MicroVM

/// Calls under a debugger, and how they end.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct DebuggedCallTests {
    private let interrupted = "T02thread:1;"
    private let trap = "T05thread:1;"

    // MARK: Host calls and faults

    @Test func `a synchronous host function that is at work is shown, and finds the guest held`() async throws {
        let isIn = Flag()
        let mayReturn = Flag()
        let sandbox = try await Guest.debug.sandbox([
            HostFunction("host_touch") { (value: UInt64) -> UInt64 in
                isIn.set()
                mayReturn.block()
                return value * 2
            }
        ])
        let server = try sandbox.testServer()
        let call = Task { try await sandbox.call("touch", UInt64(4), returning: UInt64.self) }
        await waitUntil { isIn.isSet }
        let client = try await GDBClient(server)
        #expect(try await client.exchange("?") == interrupted)
        let extra = try await client.exchange("qThreadExtraInfo,1")
        #expect(
            GDBText.bytes(Array(extra.utf8)[...])?.compactMap(\.self) == Array("In the host function host_touch".utf8)
        )
        // The import's caller is on the stack, where the thunk has left it.
        let stackPointer = try await client.register("rsp")
        let caller = try #require(try await client.memory(stackPointer, 8)).reversed().reduce(UInt64(0)) {
            $0 << 8 | UInt64($1)
        }
        #expect(sandbox.module.symbol(at: caller, imageBase: sandbox.reference.addressSpace.imageBase)?.name == "touch")
        client.tell("vCont;c")
        #expect(try await client.interrupt() == interrupted)
        #expect(client.console.contains("host_touch"))
        mayReturn.set()
        // The guest is held where the host function has ended.
        try await client.setBreakpoint(caller)
        #expect(try await client.resume() == trap)
        #expect(try await client.register("rax") == 8)
        #expect(try await client.register("rip") == caller)
        #expect(try await client.exchange("D") == "OK")
        #expect(try await call.value == 9)
    }

    @Test func `the state during a synchronous host function is told at once`() async throws {
        let isIn = Flag()
        let mayReturn = Flag()
        let sandbox = try await Guest.debug.sandbox([
            HostFunction("host_touch") { (value: UInt64) -> UInt64 in
                isIn.set()
                mayReturn.block()
                return value
            }
        ])
        let call = Task { try await sandbox.call("touch", UInt64(4), returning: UInt64.self) }
        await waitUntil { isIn.isSet }
        for _ in 0..<100 {
            let state = try await sandbox.pullFullState()
            #expect(state.hostFunction == "host_touch" && state.symbol?.name == "touch")
        }
        mayReturn.set()
        #expect(try await call.value == 5)
    }

    @Test func `a breakpoint in a nested call holds it`() async throws {
        let sandbox = try await Guest.debug.sandbox([
            HostFunction("host_touch") { (context: HostCallContext, value: UInt64) -> UInt64 in
                try UInt64(context.call("measure", Int64(value), returning: Int64.self))
            }
        ])
        let client = try await GDBClient(sandbox.testServer())
        try await client.setBreakpoint(sandbox.address(of: "measure"))
        let call = Task { try await sandbox.call("touch", UInt64(2), returning: UInt64.self) }
        #expect(try await client.resume() == trap)
        let extra = try await client.exchange("qThreadExtraInfo,1")
        #expect(
            GDBText.bytes(Array(extra.utf8)[...])?.compactMap(\.self)
                == Array("In the guest, 1 call deep in host calls".utf8)
        )
        for _ in 0..<5 { #expect(try await client.resume("s") == trap) }
        client.tell("vCont;c")
        #expect(try await call.value == 101)
    }

    @Test func `a fault is shown before the call ends in it`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let client = try await GDBClient(sandbox.testServer())
        let call = Task { await #expect(throws: SandboxError.self) { try await sandbox.call("crash", UInt64(0)) } }
        #expect(try await client.resume() == "T0bthread:1;")
        #expect(client.console.contains("Illegal memory access"))
        let place = try await client.register("rip")
        #expect(sandbox.module.symbol(at: place, imageBase: sandbox.reference.addressSpace.imageBase)?.name == "crash")
        // The guest's own stack, not that of the exception.
        #expect(try await sandbox.reference.addressSpace.stack.contains(client.register("rsp")))
        #expect(try await client.register("cs") == 0x33)
        client.tell("vCont;C0b:1")
        let fault = try #require(await call.value?.fault)
        #expect(fault.kind == .memoryAccess && fault.address == 0 && fault.instructionPointer == place)
    }

    @Test func `a fault that is mended is forgotten`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let client = try await GDBClient(sandbox.testServer())
        let call = Task { try await sandbox.call("crash", UInt64(0), returning: Int64.self) }
        #expect(try await client.resume() == "T0bthread:1;")
        try await client.setRegister("rax", sandbox.address(of: "stop_spinning"))
        try await client.setRegister("rcx", sandbox.address(of: "stop_spinning"))
        client.tell("vCont;c")
        #expect(try await call.value == 7)
        #expect(try await sandbox.call("measure", Int64(1), returning: Int64.self) == 25)
    }

    @Test func `an abort is shown where the guest has called it`() async throws {
        let sandbox = try await Guest.faults.sandbox()
        let client = try await GDBClient(sandbox.testServer())
        let call = Task { await #expect(throws: SandboxError.self) { try await sandbox.call("abort_without_message") } }
        #expect(try await client.resume() == "T06thread:1;")
        client.tell("vCont;c")
        #expect(await call.value?.fault?.kind == .abort)
    }

    @Test func `whoever waits for a debugger is held, at the start and in a fault`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer(holding: [.nextCall, .faults])
        let isOver = Flag()
        let call = Task {
            defer { isOver.set() }
            return await #expect(throws: SandboxError.self) {
                try await sandbox.call("crash", UInt64(0), timeLimit: .seconds(30))
            }
        }
        try await Task.sleep(for: .milliseconds(50))
        #expect(!isOver.isSet)
        do {
            let client = try await GDBClient(server)
            #expect(try await client.exchange("?") == interrupted)
            client.tell("D")
        }
        try await Task.sleep(for: .milliseconds(50))
        #expect(!isOver.isSet)
        let client = try await GDBClient(server)
        // It has been held for its fault since.
        #expect(try await client.exchange("?") == "T0bthread:1;")
        #expect(try await client.exchange("D") == "OK")
        #expect(await call.value?.code == .guestFault)
    }

    // MARK: Kills and limits

    @Test func `a kill ends a call that a debugger holds`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let client = try await GDBClient(sandbox.testServer())
        let place = try sandbox.address(of: "measure")
        try await client.setBreakpoint(place)
        let call = Task { await #expect(throws: SandboxError.self) { try await sandbox.call("measure", Int64(1)) } }
        #expect(try await client.resume() == trap)
        #expect(sandbox.interruptHandle.kill() == .pending)
        #expect(await call.value?.code == .killed)
        // It is poisoned, and still held, and can be looked at.
        #expect(try await client.register("rip") == place)
        #expect(try await client.exchange("D") == "OK")
    }

    @Test func `a kill ends a call that runs under a debugger`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let client = try await GDBClient(sandbox.testServer())
        let call = Task { await #expect(throws: SandboxError.self) { try await sandbox.call("spin_until_stopped") } }
        let word = try sandbox.address(of: "stop_spinning")
        #expect(try await client.exchange("Z2,\(String(word, radix: 16)),8") == "OK")
        client.tell("vCont;c")
        await waitUntil { sandbox.interruptHandle.kill() != .notRunning }
        #expect(await call.value?.code == .killed)
        #expect(try await client.interrupt() == interrupted)
        #expect(client.console.contains("killed"))
    }

    @Test func `the client's own kill ends the call, and the client leaves`() async throws {
        let guest = try await SpinningGuest()
        let server = try guest.sandbox.testServer()
        let client = try await GDBClient(server)
        _ = try await client.exchange("?")
        client.tell("k")
        #expect(await guest.call.value?.code == .killed)
        await waitUntil { !server.isAttached }
    }

    @Test func `limits by the clock wait while a debugger holds the guest`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let client = try await GDBClient(sandbox.testServer())
        let place = try sandbox.address(of: "measure")
        try await client.setBreakpoint(place)
        let call = Task {
            try await sandbox.call("measure", Int64(1), timeLimit: .milliseconds(200), returning: Int64.self)
        }
        #expect(try await client.resume() == trap)
        // Longer than the limit.
        try await Task.sleep(for: .milliseconds(500))
        try await client.removeBreakpoint(place)
        client.tell("vCont;c")
        #expect(try await call.value == 25)
    }

    @Test func `an external stop and a debugger do not know of each other`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let client = try await GDBClient(sandbox.testServer())
        try sandbox.interruptHandle.beginExternalStop()
        let call = Task { try await sandbox.call("measure", Int64(1), returning: Int64.self) }
        client.tell("vCont;c")
        #expect(try await client.interrupt() == interrupted)
        try sandbox.interruptHandle.endExternalStop()
        client.tell("vCont;c")
        #expect(try await call.value == 25)
        #expect(sandbox.interruptHandle.isStopped == false)
    }
}
