import Testing

@testable import MicroVM

/// What a guest may not do comes back as a typed fault, and nothing but its own sandbox notices.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct FaultTests {
    /// One function of the guest, and what has to come of it.
    struct Misdeed: Sendable, CustomTestStringConvertible {
        var function: String
        var arguments: [UInt64] = []
        var kinds: [GuestFault.Kind]
        var vectors: [UInt8?]
        var access: GuestFault.Access?
        var address: UInt64?
        var port: UInt16?
        /// The function that is named as the place, where it is another one or none of the module.
        var place: Place = .function
        /// Whether some processors, or emulators of them, let it pass.
        var mayReturn = false

        enum Place: Sendable { case function, named(String), elsewhere, anywhere }

        var testDescription: String { function }

        static func memory(
            _ function: String,
            _ access: GuestFault.Access,
            _ address: UInt64? = nil,
            _ arguments: [UInt64] = []
        ) -> Misdeed {
            Misdeed(
                function: function,
                arguments: arguments,
                kinds: [.memoryAccess],
                vectors: [14],
                access: access,
                address: address
            )
        }

        static func protection(_ function: String, _ arguments: [UInt64] = []) -> Misdeed {
            Misdeed(function: function, arguments: arguments, kinds: [.generalProtection], vectors: [13])
        }

        /// An instruction that one processor calls undefined and the other privileged.
        static func forbidden(_ function: String, _ arguments: [UInt64] = []) -> Misdeed {
            Misdeed(
                function: function,
                arguments: arguments,
                kinds: [.generalProtection, .invalidInstruction],
                vectors: [13, 6]
            )
        }

        static func port(_ function: String, _ port: UInt16, _ arguments: [UInt64] = []) -> Misdeed {
            Misdeed(
                function: function,
                arguments: [UInt64(port)] + arguments,
                kinds: [.portAccess],
                vectors: [13],
                port: port
            )
        }

        func at(_ place: Place) -> Misdeed {
            var copy = self
            copy.place = place
            return copy
        }

        func orReturns() -> Misdeed {
            var copy = self
            copy.mayReturn = true
            return copy
        }
    }

    static let memory: [Misdeed] = [
        .memory("read_null", .read, 0), .memory("write_null", .write, 8),
        .memory("execute_null", .execute, 0).at(.elsewhere),
        .memory("read_address", .read, 0xffff, [0xffff]), .memory("read_byte", .read, 0x1234, [0x1234]),
        .memory("read_wild", .read, 0x7f00_0000_0000), .memory("write_wild", .write, 0x7f00_0000_0000),
        .memory("execute_wild", .execute, 0x7f00_0000_0000).at(.elsewhere),
        .memory("read_kernel_half", .read, 0xffff_8000_0000_0000),
        .protection("read_non_canonical"), .protection("write_non_canonical"),
        // One processor refuses the jump, the other the instruction at its target.
        .protection("execute_non_canonical").at(.anywhere),
        .memory("read_supervisor", .read, 0x10000), .memory("write_supervisor", .write, 0x10000),
        .memory("execute_supervisor", .execute, 0x10000).at(.elsewhere),
        // Descriptor tables, the two stacks of ring 0, and the unmapped pages between them.
        .memory("read_address", .read, 0x11000, [0x11000]), .memory("read_address", .read, 0x12000, [0x12000]),
        .memory("write_address", .write, 0x13ff0, [0x13ff0]), .memory("read_address", .read, 0x14000, [0x14000]),
        .memory("write_address", .write, 0x15000, [0x15000]),
        // The library's own code in ring 3 can be run and cannot be written; the mailbox is the other way round.
        .memory("write_address", .write, 0x20000, [0x20000]), .memory("write_address", .write, 0x22000, [0x22000]),
        .memory("execute_address", .execute, 0x21000, [0x21000]).at(.elsewhere),
        .memory("write_own_code", .write), .memory("write_constant", .write),
        .memory("write_relocated_constant", .write),
        .memory("execute_data", .execute).at(.named("writable_code")),
        .memory("execute_constant", .execute).at(.named("constant_words")),
        .memory("execute_heap", .execute).at(.elsewhere), .memory("execute_stack", .execute).at(.elsewhere),
        .memory("write_beyond_heap", .write), .memory("write_below_heap", .write),
        .memory("endless_string_instruction", .write),
        .memory("return_to", .execute, 0x1000, [0x1000]).at(.elsewhere),
        .memory("return_off_by_eight", .execute).at(.elsewhere),
    ]

    static let stack: [Misdeed] = [
        Misdeed(
            function: "overflow_stack",
            kinds: [.stackOverflow],
            vectors: [14],
            access: .write,
            place: .named("recurse")
        ),
        Misdeed(function: "use_stack", arguments: [2 << 20], kinds: [.stackOverflow], vectors: [14], access: .write),
        // From the bottom of the stack, a block that ends within the guard.
        Misdeed(
            function: "leap_over_stack",
            arguments: [(1 << 20) + (512 << 10)],
            kinds: [.stackOverflow],
            vectors: [14],
            access: .write
        ),
        .memory("stack_pointer_null", .write, 0xffff_ffff_ffff_fff8),
        .memory("stack_pointer_wild", .write, 0x7fff_ffff_fff8, [0x7fff_ffff_fff8 + 8]),
        .memory("stack_pointer_wild", .write, 0x12ff8, [0x13000]),
        Misdeed(function: "stack_pointer_non_canonical", kinds: [.stackSegment], vectors: [12]),
        Misdeed(function: "stack_pointer_null_then_trap", kinds: [.invalidInstruction], vectors: [6]),
        Misdeed(
            function: "smash_stack",
            kinds: [.stackCorruption],
            vectors: [nil],
            place: .named("copy_too_much")
        ),
        Misdeed(function: "fail_stack_check", kinds: [.stackCorruption], vectors: [nil]),
    ]

    static let traps: [Misdeed] = [
        Misdeed(function: "divide_by_zero", kinds: [.divideError], vectors: [0]),
        Misdeed(function: "divide_overflow", kinds: [.divideError], vectors: [0]),
        Misdeed(function: "undefined_instruction", kinds: [.invalidInstruction], vectors: [6]),
        Misdeed(function: "undefined_opcode", kinds: [.invalidInstruction], vectors: [6]),
        Misdeed(function: "breakpoint", kinds: [.breakpoint], vectors: [3]),
        Misdeed(function: "interrupt_1", kinds: [.debugTrap], vectors: [1]),
        // A KVM without hardware virtualisation calls `int n` an undefined instruction where hardware finds a gate that
        // ring 3 may not use.
        Misdeed(function: "interrupt_3", kinds: [.breakpoint, .systemCall], vectors: [3, 6]),
        Misdeed(function: "interrupt_overflow", kinds: [.overflow, .systemCall], vectors: [4, 6, 13]),
        Misdeed(function: "interrupt_page_fault", kinds: [.systemCall], vectors: [6, 13]),
        Misdeed(function: "interrupt_double_fault", kinds: [.systemCall], vectors: [6, 13]),
        Misdeed(function: "interrupt_0x20", kinds: [.systemCall], vectors: [6, 13]),
        Misdeed(function: "interrupt_0x80", kinds: [.systemCall], vectors: [6, 13]),
        Misdeed(function: "interrupt_0xff", kinds: [.systemCall], vectors: [6, 13]),
        Misdeed(function: "single_step", kinds: [.debugTrap], vectors: [1]),
        // An emulator may have no alignment checks, and no floating-point exceptions.
        Misdeed(function: "check_alignment", kinds: [.alignmentCheck], vectors: [17]).orReturns(),
        .protection("misaligned_vector").orReturns(),
        Misdeed(function: "divide_vector_by_zero", kinds: [.vectorFloatingPoint], vectors: [19]).orReturns(),
        Misdeed(function: "divide_x87_by_zero", kinds: [.floatingPoint], vectors: [16]).orReturns(),
        .forbidden("reserved_mxcsr").orReturns(),
    ]

    static let system: [Misdeed] = [
        // Undefined on hardware, because nobody has switched it on. Where it is not virtualised it is a jump to nowhere
        // in ring 3, which is recognised, and which has no vector of its own.
        Misdeed(function: "system_call", kinds: [.systemCall], vectors: [6, nil]),
        Misdeed(function: "system_enter", kinds: [.systemCall], vectors: [6, 13]),
        .forbidden("system_return"), .forbidden("system_exit"),
        .protection("halt"), .protection("clear_interrupts"), .protection("set_interrupts"), .protection("read_msr"),
        .protection("write_msr"), .protection("read_cr0"), .protection("read_cr3"), .protection("read_cr8"),
        .protection("write_cr0"), .protection("write_cr3"), .protection("write_cr4"), .protection("write_cr8"),
        .protection("read_dr7"), .protection("write_dr0"), .protection("write_dr7"), .protection("load_gdt"),
        .protection("load_idt"), .protection("load_ldt"), .protection("load_task_register"),
        .protection("load_machine_status"), .protection("clear_task_switched"), .protection("invalidate_page"),
        .protection("invalidate_caches"), .protection("discard_caches"), .protection("swap_gs"),
        .protection("read_performance_counter"),
        .forbidden("set_extended_control"), .forbidden("monitor"), .forbidden("wait_for_monitor"),
        .forbidden("run_virtual_machine"), .forbidden("resume_from_system_management"),
        // Shows an address of the library's and changes nothing; refused where the processor can.
        .protection("store_gdt").orReturns(),
        // An answer of "not permitted" is the other thing that may come of it; patching the instruction for another
        // maker's processor is refused by the page it is in.
        Misdeed(
            function: "call_hypervisor_intel",
            kinds: [.generalProtection, .invalidInstruction, .memoryAccess],
            vectors: [13, 6, 14],
            mayReturn: true
        ),
        Misdeed(
            function: "call_hypervisor_amd",
            kinds: [.generalProtection, .invalidInstruction, .memoryAccess],
            vectors: [13, 6, 14],
            mayReturn: true
        ),
        .protection("load_stack_segment", [0]), .protection("far_jump", [0]), .protection("far_return", [0]),
        .protection("far_jump", [0x10]), .protection("far_return", [0x10]),
        .protection("interrupt_return", [0x10, 0x18]),
        .protection("load_stack_segment", [0x18]), .protection("load_data_segment", [0xfff8]),
    ]

    static let ports: [Misdeed] = [
        .port("out_8", 0x80), .port("out_8", 0), .port("out_8", 0x0f), .port("out_8", 0x12), .port("out_8", 0xffff),
        // The ports of the exception stubs are for ring 0.
        .port("out_8", 0x20), .port("out_8", 0x2e), .port("out_8", 0x3f), .port("out_16", 0x20), .port("out_32", 0x2d),
        // Reading from the library's ports, and straddling them.
        .port("in_8", 0x10), .port("in_8", 0x11), .port("in_16", 0x10), .port("in_8", 0x60), .port("in_32", 0xcf8),
        .port("out_32", 0x0e), .port("out_16", 0x11), .port("out_32", 0xcf8), .port("out_string", 0x80, [16]),
        .port("in_string", 0x80, [16]), .port("in_string", 0x10, [4096]),
    ]

    static let aborts: [Misdeed] = [
        "abort_without_message", "abort_with_bad_pointer", "abort_with_endless_message", "abort_not_utf8",
    ].map { Misdeed(function: $0, kinds: [.abort], vectors: [nil]) }

    static let pointers: [Misdeed] = [
        Misdeed(
            function: "write_with_bad_pointer",
            kinds: [.invalidPointer],
            vectors: [nil],
            access: .read,
            address: 0x7f00_0000_0000
        ),
        Misdeed(function: "random_into_own_code", kinds: [.invalidPointer], vectors: [nil], access: .write),
    ]

    @Test(arguments: memory + stack + traps + system + ports + aborts + pointers)
    func `misbehaviour is a typed fault and harms nobody else`(_ misdeed: Misdeed) async throws {
        let bystander = try await Guest.arithmetic.sandbox()
        let sandbox = try await Guest.faults.sandbox {
            $0.memoryLimit = 8 << 20
            $0.argumentArenaSize = 65536
        }
        do {
            try await sandbox.call(misdeed.function, arguments: misdeed.arguments)
            #expect(misdeed.mayReturn)
            #expect(try await sandbox.call("answer", returning: Int.self) == 42)
        } catch let error as SandboxError {
            #expect(error.code == .guestFault && error.interruption == nil)
            let fault = try #require(error.fault)
            try expect(fault, of: misdeed, in: sandbox)
            await expectPoisoned(sandbox)
        }
        #expect(try await bystander.call("add", 2, 3) == 5)
    }

    private func expect(_ fault: GuestFault, of misdeed: Misdeed, in sandbox: Sandbox) throws {
        #expect(misdeed.kinds.contains(fault.kind))
        #expect(misdeed.vectors.contains(fault.vector))
        if let access = misdeed.access { #expect(fault.access == access) }
        if let address = misdeed.address { #expect(fault.address == address) }
        #expect(fault.port == misdeed.port)
        if fault.kind == .memoryAccess || fault.kind == .stackOverflow {
            #expect(fault.access != nil && fault.address != nil && fault.errorCode != nil)
        }
        // Only what the processor raised has an error code.
        if fault.vector == nil { #expect(fault.errorCode == nil) }
        switch misdeed.place {
        case .function: #expect(fault.symbol?.name == misdeed.function)
        case .named(let name): #expect(fault.symbol?.name == name)
        case .elsewhere: #expect(fault.symbol == nil)
        case .anywhere: break
        }
        if let symbol = fault.symbol { #expect(symbol.offset < 4096) }
        if fault.vector != nil { #expect(fault.registers.rip == fault.instructionPointer) }
        // The bit that is always set; the privilege level of ports is none of the guest's doing.
        #expect(fault.registers.rflags & 1 << 1 != 0 && fault.registers.rflags & 1 << 17 == 0)
        #expect(fault.description.hasPrefix(fault.kind.explanation))
    }

    @Test func `a fault tells the registers as the guest had them`() async throws {
        let sandbox = try await Guest.faults.sandbox()
        let error = await #expect(throws: SandboxError.self) {
            try await sandbox.call("write_address", UInt64(0x1238), UInt64(0xfeed_face))
        }
        let fault = try #require(error?.fault)
        #expect(fault.registers.rdi == 0x1238 && fault.registers.rsi == 0xfeed_face)
        let layout = try await sandbox.run { try $0.memory.addressSpace }
        #expect(layout.stack.contains(fault.registers.rsp))
        #expect(layout.permits(.execute, address: fault.instructionPointer, count: 1))
        #expect(error?.description.contains("write_address") == true)
    }

    @Test func `the host goes on after every fault in one sandbox after the other`() async throws {
        for _ in 0..<30 {
            let sandbox = try await Guest.faults.sandbox()
            await #expect(throws: SandboxError.self) { try await sandbox.call("read_null") }
        }
        #expect(try await Guest.faults.sandbox().call("answer", returning: Int.self) == 42)
    }

    @Test(arguments: [0, 3, 8, 0x10, 0x13, 0x18, 0x1b, 0x20, 0x23, 0x28, 0x2b, 0x30, 0x33, 0x38, 0x40, 0x43, 0xffff])
    func `no selector gives a guest more than it has`(_ selector: UInt16) async throws {
        let functions = ["load_data_segment", "load_stack_segment", "load_fs_segment", "far_jump", "far_return"]
        for function in functions {
            let sandbox = try await Guest.faults.sandbox()
            do {
                // Ended by a limit where it sets off in a mode of its own; all that counts is how the host fares.
                try await sandbox.call(function, arguments: [selector], timeLimit: .seconds(2))
            } catch let error as SandboxError {
                #expect(error.code == .guestFault || error.code == .timeLimitExceeded)
                continue
            }
            // Still in ring 3, whatever it has loaded.
            let error = await #expect(throws: SandboxError.self) { try await sandbox.call("read_cr0") }
            #expect(error?.code == .guestFault)
        }
    }

    @Test(arguments: [0x100, 0x200, 0x3000, 0x4000, 0x10000, 0x2_0000, 0x4_0000, 0x8_0000, 0x20_0000, UInt64.max])
    func `no flag gives a guest more than it has`(_ flags: UInt64) async throws {
        let sandbox = try await Guest.faults.sandbox()
        do {
            _ = try await sandbox.call("set_flags", flags, returning: UInt64.self)
        } catch let error as SandboxError {
            #expect(error.code == .guestFault)
            return
        }
        // Flags that outlive the call would fault here, or permit a port.
        #expect(try await sandbox.call("answer", returning: Int.self) == 42)
        let error = await #expect(throws: SandboxError.self) {
            try await sandbox.call("out_8", UInt16(0x80), UInt8(0))
        }
        #expect(error?.fault?.kind == .portAccess)
    }

    @Test(arguments: [
        "return_with_direction_flag", "return_with_alignment_check", "return_with_nested_task",
        "return_with_dirty_vectors",
    ])
    func `state that a function leaves behind does not reach the next call`(_ function: String) async throws {
        let sandbox = try await Guest.faults.sandbox()
        for _ in 0..<3 {
            #expect(try await sandbox.call(function, returning: Int.self) == 42)
            #expect(try await sandbox.call("use_stack", UInt64(65536), returning: Int.self) == 16)
            #expect(try await sandbox.call("divide", 42, 6, returning: Int.self) == 7)
        }
    }

    @Test(arguments: ["return_with_wrong_registers", "return_with_null_fs", "set_fs_base"])
    func `a function that breaks the calling convention breaks its own sandbox at most`(
        _ function: String
    ) async throws {
        let sandbox = try await Guest.faults.sandbox()
        for name in [function, "smash_stack"] {
            let error = await #expect(throws: SandboxError.self) {
                for _ in 0..<2 { try await sandbox.call(name, arguments: [0]) }
                throw SandboxError(.guestFault, "returned")
            }
            #expect(error?.code == .guestFault || error?.code == .poisoned)
        }
    }

    @Test func `the message of an abort is kept, however it is made up`() async throws {
        func message(_ function: String, _ arguments: [any GuestValue] = []) async throws -> String? {
            let sandbox = try await Guest.faults.sandbox()
            let error = await #expect(throws: SandboxError.self) {
                try await sandbox.call(function, arguments: arguments)
            }
            return error?.fault?.message
        }
        #expect(try await message("abort_with_message", ["out of cheese"]) == "out of cheese")
        #expect(try await message("abort_with_message", ["nul \0 and \u{1f9c0}"]) == "nul \0 and \u{1f9c0}")
        #expect(try await message("abort_without_message") == "")
        #expect(try await message("abort_not_utf8") == "\u{fffd}\u{fffd}")
        #expect(try await message("abort_with_bad_pointer")?.contains("not in the guest's memory") == true)
        // Longer than anybody reads: the beginning.
        let long = String(repeating: "x", count: 1 << 20)
        #expect(try await message("abort_with_message", [long]) == String(long.prefix(64 << 10)))
    }

    @Test func `a stack of the size that was asked for can be used to its end`() async throws {
        let sandbox = try await Guest.faults.sandbox { $0.stackSize = 64 << 10 }
        #expect(try await sandbox.call("use_stack", UInt64(60 << 10), returning: Int.self) == 15)
        let error = await #expect(throws: SandboxError.self) {
            try await sandbox.call("use_stack", UInt64(68 << 10))
        }
        #expect(error?.fault?.kind == .stackOverflow)
    }

    @Test func `above the stack there is a guard too`() async throws {
        let sandbox = try await Guest.faults.sandbox()
        let top = try await sandbox.run { try $0.memory.addressSpace.stack.upperBound }
        let error = await #expect(throws: SandboxError.self) { try await sandbox.call("write_address", top, top) }
        #expect(error?.fault?.kind == .stackOverflow && error?.fault?.address == top)
    }
}
