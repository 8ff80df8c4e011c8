import CShims
import Glibc
import LinuxKVM

/// The notes of a core dump: registers and what else debuggers ask for, in the forms in which Linux writes them for a
/// process on x86-64 (`<linux/elfcore.h>`, `<sys/procfs.h>`, arch/x86/kernel/fpu/regset.c).
struct CoreDumpNotes {
    private(set) var bytes: [UInt8] = []

    /// What ended the guest, as the signal that a process would have got.
    struct Signal {
        /// 0 where nothing has.
        var number: Int32 = 0
        /// `si_code`.
        var code: Int32 = 0
        /// The address that it is about.
        var address: UInt64 = 0

        /// `siginfo_t`.
        var bytes: [UInt8] {
            var bytes: [UInt8] = []
            bytes.append(number)
            bytes.append(Int32(0))
            bytes.append(code)
            bytes.append(Int32(0))
            bytes.append(address)
            return bytes + [UInt8](repeating: 0, count: 128 - bytes.count)
        }
    }

    /// The segments as ring 3 has them.
    struct Segments {
        var cs, ss, ds, es, fs, gs: UInt64
        var fsBase, gsBase: UInt64

        init(_ special: SpecialRegisters) {
            // In a stub of ring 0 these two are the stub's.
            (cs, ss) = (UInt64(Supervisor.userCode), UInt64(Supervisor.userData))
            (ds, es) = (UInt64(special.ds.selector), UInt64(special.es.selector))
            (fs, gs) = (UInt64(special.fs.selector), UInt64(special.gs.selector))
            (fsBase, gsBase) = (special.fs.base, special.gs.base)
        }
    }

    private mutating func append(_ name: String, _ type: UInt32, _ contents: [UInt8]) {
        let name = Array(name.utf8) + [0]
        bytes.append(UInt32(name.count))
        bytes.append(UInt32(contents.count))
        bytes.append(type)
        bytes += name + [UInt8](repeating: 0, count: -name.count & 3)
        bytes += contents + [UInt8](repeating: 0, count: -contents.count & 3)
    }

    /// NT_PRSTATUS. First of all: the notes of a thread follow its registers.
    mutating func appendRegisters(_ registers: GuestRegisters, _ segments: Segments, _ signal: Signal) {
        var note: [UInt8] = []
        note.append(signal.number)
        note.append(signal.code)
        note.append(Int32(0))
        note.append(Int16(signal.number))
        note.append(Int16(0))
        // No signals are pending or held.
        note += [UInt8](repeating: 0, count: 16)
        note.append(getpid())
        note += [UInt8](repeating: 0, count: 3 * 4 + 4 * 16)
        let words = [
            registers.r15, registers.r14, registers.r13, registers.r12, registers.rbp, registers.rbx, registers.r11,
            registers.r10, registers.r9, registers.r8, registers.rax, registers.rcx, registers.rdx, registers.rsi,
            registers.rdi,
            // orig_rax: no system call is under way.
            .max, registers.rip, segments.cs, registers.rflags, registers.rsp, segments.ss, segments.fsBase,
            segments.gsBase, segments.ds, segments.es, segments.fs, segments.gs,
        ]
        for word in words { note.append(word) }
        // There are floating-point registers.
        note.append(Int32(1))
        note.append(Int32(0))
        append("CORE", 1, note)
    }

    /// NT_PRPSINFO.
    mutating func appendProcess(name: String, arguments: String) {
        func text(_ string: String, _ count: Int) -> [UInt8] {
            let bytes = Array(string.utf8.prefix(count - 1))
            return bytes + [UInt8](repeating: 0, count: count - bytes.count)
        }
        // Running, and neither a zombie nor nice, without flags.
        var note: [UInt8] = [0, UInt8(ascii: "R"), 0, 0, 0, 0, 0, 0] + [UInt8](repeating: 0, count: 8)
        note.append(getuid())
        note.append(getgid())
        note.append(getpid())
        note.append(getppid())
        note += [UInt8](repeating: 0, count: 8)
        note += text(name, 16) + text(arguments, 80)
        append("CORE", 3, note)
    }

    /// NT_SIGINFO.
    mutating func appendSignal(_ signal: Signal) { append("CORE", 0x5349_4749, signal.bytes) }

    /// NT_AUXV: pairs of a type and a value.
    mutating func appendAuxiliaryVector(_ entries: [(type: Int32, value: UInt64)]) {
        var note: [UInt8] = []
        for (type, value) in entries + [(AT_NULL, 0)] {
            note.append(UInt64(type))
            note.append(value)
        }
        append("CORE", 6, note)
    }

    /// NT_FILE: what is mapped from a file, with offsets in pages.
    mutating func appendFile(_ path: String, _ mappings: [(addresses: Range<UInt64>, fileOffset: UInt64)]) {
        var note: [UInt8] = []
        note.append(UInt64(mappings.count))
        note.append(AddressSpace.pageSize)
        for mapping in mappings {
            note.append(mapping.addresses.lowerBound)
            note.append(mapping.addresses.upperBound)
            note.append(mapping.fileOffset / AddressSpace.pageSize)
        }
        for _ in mappings { note += Array(path.utf8) + [0] }
        append("CORE", 0x4649_4c45, note)
    }

    // MARK: - The extended state

    private static let legacySize = 512
    private static let headerSize = 64
    /// Where FXSAVE leaves room for software: Linux says there which components a dump has.
    private static let componentsOffset = 464

    /// NT_FPREGSET and NT_X86_XSTATE.
    ///
    /// - Parameters:
    ///   - state: what XSAVE has stored in the standard format, without the zeros at its end; what FXSAVE has.
    ///   - components: XCR0 as far as it is known.
    mutating func appendExtendedState(_ state: [UInt8], components: UInt64) {
        var state = state + [UInt8](repeating: 0, count: max(0, Self.legacySize + Self.headerSize - state.count))
        let stored = (0..<8).reduce(0) { $0 | UInt64(state[Self.legacySize + $1]) << UInt64($1 * 8) }
        // There may be more than KVM tells, and then it is here.
        let components = components | stored | 0b11
        var size = Self.legacySize + Self.headerSize
        for component in 2..<63 where components & 1 << component != 0 {
            var registers: [UInt32] = [0, 0, 0, 0]
            // Four words, as it is declared.
            guard unsafe shim_cpuid(0xd, UInt32(component), &registers) != 0 else { continue }
            size = max(size, Int(registers[0]) + Int(registers[1]))
        }
        size = min(size, AddressSpace.vectorState.count)
        state += [UInt8](repeating: 0, count: max(0, size - state.count))
        if stored & 1 == 0, state[0] == 0, state[1] == 0 { (state[0], state[1]) = (0x7f, 0x03) }
        append("CORE", 2, Array(state[..<Self.legacySize]))
        for byte in 0..<8 {
            state[Self.componentsOffset + byte] = UInt8(truncatingIfNeeded: components >> UInt64(byte * 8))
        }
        append("LINUX", 0x202, state)
    }
}

extension [UInt8] {
    /// Appends an integer, little endian.
    mutating func append<Value: FixedWidthInteger>(_ value: Value) where Value: BitwiseCopyable {
        for shift in stride(from: 0, to: Value.bitWidth, by: 8) {
            append(UInt8(truncatingIfNeeded: value >> shift))
        }
    }
}
