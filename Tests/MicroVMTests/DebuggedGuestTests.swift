import CShims
import LinuxKVM
import SystemPackage
import Testing

@testable import MicroVM

/// What a debugger does with a guest that it holds, as the protocol shows it.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct DebuggedGuestTests {
    private let interrupted = "T02thread:1;"
    private let trap = "T05thread:1;"

    // MARK: Breakpoints and steps

    @Test func `breakpoints survive a restore and are in no snapshot`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let ready = try await sandbox.snapshot()
        let server = try sandbox.testServer()
        let place = try sandbox.address(of: "measure")
        let client = try await GDBClient(server)
        try await client.setBreakpoint(place)
        let call = Task { try await sandbox.call("recurse", Int64(1), returning: Int64.self) }
        #expect(try await client.resume() == trap)
        let middle = try await sandbox.snapshot()
        #expect(middle.isInCall)
        client.tell("vCont;c")
        #expect(try await call.value == 26)
        let after = try await sandbox.snapshot()
        for snapshot in [ready, middle, after] {
            let twin = try await Sandbox(from: snapshot)
            let bytes = try await twin.run { sandbox in try sandbox.memory.inspect(at: place, count: 1) }
            #expect(bytes != [0xcc])
            if snapshot.isInCall {
                #expect(try await twin.resume(returning: Int64.self) == 26)
            } else {
                #expect(try await twin.call("measure", Int64(1), returning: Int64.self) == 25)
            }
        }
        try await sandbox.restore(to: ready)
        let second = Task { try await sandbox.call("recurse", Int64(1), returning: Int64.self) }
        #expect(try await client.receive() == trap)
        #expect(try await client.register("rip") == place)
        #expect(try await client.exchange("D") == "OK")
        #expect(try await second.value == 26)
    }

    @Test func `a snapshot of a guest that is being stepped has nothing of the debugger in it`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let client = try await GDBClient(sandbox.testServer())
        let word = try sandbox.address(of: "stop_spinning")
        let call = Task { try await sandbox.call("spin_until_stopped", returning: UInt64.self) }
        // After each instruction there is an exception, in which the guest is found as often as not.
        #expect(try await client.exchange("Z2,\(String(word, radix: 16)),8") == "OK")
        client.tell("vCont;c")
        await waitUntil { sandbox.interruptHandle.currentState.has(CallState.entered) }
        for round in 0..<(Surroundings.isEmulated ? 3 : 30) {
            try await onThread { Result { try sandbox.interruptHandle.beginExternalStop() } }.get()
            let snapshot = try await sandbox.snapshot()
            #expect(snapshot.isInCall)
            #expect(try await sandbox.pullFullState().registers.rflags & 0x100 == 0)
            try sandbox.interruptHandle.endExternalStop()
            guard round % 5 == 0 else { continue }
            let twin = try await Sandbox(from: snapshot)
            try await twin.run { twin in try twin.memory.store(UInt64(1), to: GuestPointer(address: word)) }
            _ = try await twin.resume(returning: UInt64.self)
        }
        #expect(try await client.interrupt() == interrupted)
        #expect(try await client.setMemory(word, [1]) == "OK")
        #expect(try await client.exchange("D") == "OK")
        _ = try await call.value
    }

    @Test func `an exception that has been forgotten is in no snapshot`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        try await sandbox.run { sandbox in
            let machine = try #require(sandbox.reference.value).machine
            var events = VirtualCPUEvents()
            (events.exception.injected, events.exception.vector) = (true, 1)
            try machine.virtualCPU.setEvents(events)
            let (general, special) = (try machine.registers(), try machine.specialRegisters())
            // As where a step is taken back, and as where a place is looked for afterwards.
            try machine.setRegisters(general, special, VirtualCPUEvents())
            try machine.setRegisters(general, special, nil)
            let state = try machine.callRegisters(clearInterrupt: {})
            guard case .whole(_, let seen) = state.system else { throw Errno.invalidArgument }
            #expect(!seen.exception.injected && !seen.exception.pending)
        }
        #expect(try await sandbox.call("measure", Int64(1), returning: Int64.self) == 25)
    }

    @Test func `an exception is under way until its stub has told of it`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        try await sandbox.run { sandbox in
            let machine = try #require(sandbox.reference.value).machine
            var general = try machine.registers()
            let special = try machine.specialRegisters()
            #expect(try !machine.isExceptionUnderWay(tracing: true))
            // The flag that has caused it is gone, as after `popf`.
            var events = VirtualCPUEvents()
            (events.exception.injected, events.exception.vector) = (true, 1)
            #expect(general.rflags & Supervisor.traceFlag == 0)
            try machine.setRegisters(general, special, events)
            #expect(try machine.isExceptionUnderWay(tracing: true))
            #expect(try !machine.isExceptionUnderWay(tracing: false))
            general.rip = UInt64(SHIM_SUPERVISOR_CODE) + 1 * UInt64(SHIM_EXCEPTION_STUB_SIZE)
            try machine.setRegisters(general, special, VirtualCPUEvents())
            #expect(try machine.isExceptionUnderWay(tracing: false))
        }
    }

    @Test func `each step is one instruction, and ends behind it`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let client = try await GDBClient(sandbox.testServer())
        let place = try sandbox.address(of: "measure")
        try await client.setBreakpoint(place)
        let call = Task { try await sandbox.call("measure", Int64(2), returning: Int64.self) }
        #expect(try await client.resume() == trap)
        try await client.removeBreakpoint(place)
        var places = [try await client.register("rip")]
        for _ in 0..<20 {
            #expect(try await client.resume("s") == trap)
            let next = try await client.register("rip")
            #expect(next != places.last)
            #expect(try await client.flags & 0x100 == 0)
            places.append(next)
        }
        #expect(places.allSatisfy { $0 >= sandbox.reference.addressSpace.imageBase })
        // A breakpoint where the guest stands is for the next time, without the client's help.
        try await client.setBreakpoint(places[20])
        #expect(try await client.resume("s") == trap)
        #expect(try await client.register("rip") != places[20])
        client.tell("vCont;c")
        #expect(try await call.value == 100)
    }

    @Test func `a breakpoint on the stack is where a function returns to that a debugger calls`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let client = try await GDBClient(sandbox.testServer())
        let start = try sandbox.address(of: "measure")
        try await client.setBreakpoint(start)
        let call = Task { try await sandbox.call("measure", Int64(2), returning: Int64.self) }
        #expect(try await client.resume() == trap)
        let stackPointer = try await client.register("rsp")
        let caller = try #require(try await client.memory(stackPointer, 8))
        let place = stackPointer - 512
        try await client.setBreakpoint(place)
        var target: [UInt8] = []
        target.append(place)
        #expect(try await client.setMemory(stackPointer, target) == "OK")
        #expect(try await client.resume() == trap)
        #expect(try await client.register("rip") == place)
        #expect(try await client.register("rsp") == stackPointer + 8)
        #expect(try await client.register("rax") == 100)
        // Again, as long as nobody moves it on; and what is there was never changed.
        #expect(try await client.resume() == trap)
        #expect(try await client.memory(place, 1) != [0xcc])
        try await client.removeBreakpoint(place)
        try await client.setRegister("rip", caller)
        #expect(try await client.exchange("D") == "OK")
        #expect(try await call.value == 100)
    }

    @Test func `a step over a range ends outside of it`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let client = try await GDBClient(sandbox.testServer())
        let export = try #require(sandbox.module.export(named: "get_counter"))
        let place = try sandbox.address(of: "get_counter")
        try await client.setBreakpoint(place)
        let call = Task { try await sandbox.call("get_counter", returning: Int64.self) }
        #expect(try await client.resume() == trap)
        let end = String(place + export.size, radix: 16)
        #expect(try await client.resume("r\(String(place, radix: 16)),\(end):1") == trap)
        #expect(!(place..<place + export.size).contains(try await client.register("rip")))
        client.tell("vCont;c")
        #expect(try await call.value == 0)
    }

    @Test func `the guest does not see that it is being stepped`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let plain: UInt64 = try await sandbox.call("read_flags")
        let client = try await GDBClient(sandbox.testServer())
        let place = try sandbox.address(of: "read_flags")
        try await client.setBreakpoint(place)
        let call = Task { try await sandbox.call("read_flags", returning: UInt64.self) }
        #expect(try await client.resume() == trap)
        try await client.removeBreakpoint(place)
        let size = try #require(sandbox.module.export(named: "read_flags")).size
        let range = "\(String(place, radix: 16)),\(String(place + size, radix: 16))"
        #expect(try await client.resume("r\(range):1") == trap)
        client.tell("vCont;c")
        #expect(try await call.value & 0x100 == 0 && plain & 0x100 == 0)
    }

    @Test func `a variable is watched, whoever changes it`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer()
        let client = try await GDBClient(server)
        let word = try sandbox.address(of: "stop_spinning")
        #expect(try await client.exchange("Z2,\(String(word, radix: 16)),8") == "OK")
        #expect(try await client.setMemory(word, [1]) == "OK")
        let call = Task { try await sandbox.call("spin_until_stopped", returning: UInt64.self) }
        #expect(try await client.resume() == "T05thread:1;watch:\(String(word, radix: 16));")
        #expect(try await client.memory(word, 8) == [UInt8](repeating: 0, count: 8))
        #expect(try await client.exchange("z2,\(String(word, radix: 16)),8") == "OK")
        client.tell("vCont;c")
        _ = try await call.value
        _ = try await client.interrupt()
        // What would cost too much, or cannot be found out, is refused in words.
        #expect(try await client.exchange("Z2,\(String(word, radix: 16)),1000").hasPrefix("E."))
        #expect(try await client.exchange("Z3,\(String(word, radix: 16)),8").hasPrefix("E."))
        #expect(try await client.exchange("Z4,\(String(word, radix: 16)),8").hasPrefix("E."))
        #expect(try await client.exchange("Z2,0,8").hasPrefix("E"))
        #expect(try await client.exchange("Z0,\(String(word, radix: 16)),1").hasPrefix("E"))
    }

    // MARK: Registers and memory

    @Test func `every register that is set is what the guest goes on with`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let client = try await GDBClient(sandbox.testServer())
        let place = try sandbox.address(of: "vectors")
        try await client.setBreakpoint(place)
        let call = Task { try await sandbox.call("vectors", 1.5, 2.0, returning: Double.self) }
        #expect(try await client.resume() == trap)
        #expect(try await Double(bitPattern: client.register("xmm0")) == 1.5)
        #expect(try await Double(bitPattern: client.register("xmm1")) == 2)
        let hasUpperVectors = try HoldingGuest.isWide
        for (index, register) in GDBRegisters.all.enumerated() {
            let value = [UInt8](repeating: UInt8(0x11 + index % 0x60), count: register.size)
            switch register.name {
            case "rip", "rsp", "rbp", "eflags", "fs_base", "gs_base", "mxcsr", "orig_rax": continue
            case let name where name.hasPrefix("f") || name.hasSuffix("s") && register.size == 4: continue
            case let name where name.hasPrefix("ymm") && !hasUpperVectors: continue
            default: break
            }
            #expect(try await client.setRegister(register.name, value) == "OK", "\(register.name)")
            #expect(try await client.registerBytes(register.name) == value, "\(register.name)")
        }
        // All at once, as they are; and those that no guest can have.
        let all = try await client.exchange("g")
        #expect(try await client.exchange("G" + all) == "OK")
        #expect(try await client.exchange("g") == all)
        for name in ["rip", "fs_base", "gs_base"] {
            let before = try await client.register(name)
            #expect(try await client.setRegister(name, 0x8000_0000_0000).hasPrefix("E"))
            #expect(try await client.register(name) == before)
        }
        let flags = try await client.flags
        #expect(try await client.setRegister("eflags", [0xff, 0xff, 0xff, 0xff]) == "OK")
        // Neither the trace flag nor the privilege level nor what is reserved.
        #expect(try await client.flags & 0x1_3100 == flags & 0x1_3100)
        #expect(try await client.setRegister("eflags", [UInt8(flags & 0xff), UInt8(flags >> 8 & 0xf), 0, 0]) == "OK")
        var left: [UInt8] = []
        left.append((4.0).bitPattern)
        var right: [UInt8] = []
        right.append((0.5).bitPattern)
        try await client.setRegister("xmm0", left + [UInt8](repeating: 0, count: 8))
        try await client.setRegister("xmm1", right + [UInt8](repeating: 0, count: 8))
        client.tell("vCont;c")
        #expect(try await call.value == 9)
    }

    @Test func `memory is read and written whatever the guest itself may do there`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let client = try await GDBClient(sandbox.testServer())
        let addressSpace = sandbox.reference.addressSpace
        let code = try sandbox.address(of: "get_counter")
        let before = try #require(try await client.memory(code, 4))
        // mov $7, %eax; ret
        #expect(try await client.setMemory(code, [0xb8, 7, 0, 0, 0, 0xc3]) == "OK")
        #expect(try await client.memory(code, 6) == [0xb8, 7, 0, 0, 0, 0xc3])
        #expect(before != [0xb8, 7, 0, 0])
        client.tell("vCont;c")
        #expect(try await sandbox.call("get_counter", returning: Int64.self) == 7)
        _ = try await client.interrupt()
        // Only as far as there is memory.
        #expect(try await client.memory(0, 8) == nil)
        #expect(try await client.memory(.max, 8) == nil)
        #expect(try await client.memory(addressSpace.stack.upperBound - 4, 64)?.count == 4)
        #expect(try await client.memory(addressSpace.heap.upperBound - 2, 64)?.count == 2)
        #expect(try await client.setMemory(addressSpace.stack.upperBound - 1, [1, 2]).hasPrefix("E"))
        #expect(try await client.memory(addressSpace.heap.lowerBound, 1 << 20)?.count == GDBPackets.maximumSize / 2)
    }
}

extension GDBClient {
    fileprivate var flags: UInt64 { get async throws { try await register("eflags") & 0xffff_ffff } }
}
