import LinuxKVM

/// The registers as GDB numbers and describes them (GDB manual, E.2 Packets, `g`; G.5.3 x86 Features).
enum GDBRegisters {
    struct Register {
        var name: String
        var size: Int
        var type: String
        /// Where it is in the bytes of all registers.
        var offset = 0
    }

    private struct Feature {
        var name: String
        var types = ""
        var registers: [Register]
    }

    private static let features: [Feature] = {
        func registers(_ names: [String], _ size: Int, _ type: String) -> [Register] {
            names.map { Register(name: $0, size: size, type: type) }
        }
        let numbers = 0..<16
        let general = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi"]
        let floatingPointControl = ["fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"]
        let vector = """
            <vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>\
            <vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>\
            <vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>\
            <union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>\
            <field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/>\
            <field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/>\
            <field name="uint128" type="uint128"/></union>
            """
        let flags = """
            <flags id="i386_eflags" size="4"><field name="CF" start="0" end="0"/><field name="" start="1" end="1"/>\
            <field name="PF" start="2" end="2"/><field name="AF" start="4" end="4"/>\
            <field name="ZF" start="6" end="6"/><field name="SF" start="7" end="7"/>\
            <field name="TF" start="8" end="8"/><field name="IF" start="9" end="9"/>\
            <field name="DF" start="10" end="10"/><field name="OF" start="11" end="11"/>\
            <field name="AC" start="18" end="18"/><field name="ID" start="21" end="21"/></flags>
            """
        return [
            Feature(
                name: "org.gnu.gdb.i386.core",
                types: flags,
                registers: registers(general, 8, "int64") + registers(["rbp", "rsp"], 8, "data_ptr")
                    + registers((8..<16).map { "r\($0)" }, 8, "int64") + registers(["rip"], 8, "code_ptr")
                    + registers(["eflags"], 4, "i386_eflags")
                    + registers(["cs", "ss", "ds", "es", "fs", "gs"], 4, "int32")
                    + registers((0..<8).map { "st\($0)" }, 10, "i387_ext")
                    + registers(floatingPointControl, 4, "int")
            ),
            Feature(
                name: "org.gnu.gdb.i386.sse",
                types: vector,
                registers: registers(numbers.map { "xmm\($0)" }, 16, "vec128") + registers(["mxcsr"], 4, "int")
            ),
            Feature(
                name: "org.gnu.gdb.i386.segments",
                registers: registers(["fs_base", "gs_base"], 8, "long")
            ),
            Feature(
                name: "org.gnu.gdb.i386.avx",
                registers: registers(numbers.map { "ymm\($0)h" }, 16, "uint128")
            ),
            // The number of a system call, of which there are none. Without it GDB does not ask for shared objects.
            Feature(name: "org.gnu.gdb.i386.linux", registers: registers(["orig_rax"], 8, "long")),
        ]
    }()

    /// All registers, by their number.
    static let all: [Register] = {
        var offset = 0
        return features.flatMap(\.registers).map { register in
            defer { offset += register.size }
            return Register(name: register.name, size: register.size, type: register.type, offset: offset)
        }
    }()

    static let size = all.last.map { $0.offset + $0.size } ?? 0
    /// From here on the registers are those that XSAVE knows.
    private static let extended = offset("st0")..<size

    static let targetDescription: String = {
        let types = ["long": "int64"]
        let text = features.map { feature in
            let registers = feature.registers.map {
                "<reg name=\"\($0.name)\" bitsize=\"\($0.size * 8)\" type=\"\(types[$0.type] ?? $0.type)\"/>"
            }
            return "<feature name=\"\(feature.name)\">\(feature.types)\(registers.joined())</feature>"
        }
        return """
            <?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">\
            <architecture>i386:x86-64</architecture><osabi>GNU/Linux</osabi>\(text.joined())</target>
            """
    }()

    private static func offset(_ name: String) -> Int { all.first { $0.name == name }!.offset }

    private static let instructionPointer = offset("rip")
    private static let flags = offset("eflags")
    private static let selectors = offset("cs")
    private static let floatingPoint = offset("st0")
    private static let floatingPointControl = offset("fctrl")
    private static let vectors = offset("xmm0")
    private static let vectorControl = offset("mxcsr")
    private static let bases = offset("fs_base")
    private static let upperVectors = offset("ymm0h")
    private static let systemCall = offset("orig_rax")

    /// Where things are in the area of XSAVE (Intel SDM volume 1, 13.4 and 13.5; the upper halves' place in the
    /// standard format is the same on all processors).
    private enum Area {
        static let registers = 32
        static let vectors = 160
        static let header = 512
        static let upperVectors = 576
        static let size = 832
    }

    // MARK: - To GDB

    /// The bytes of all registers; nil where a byte is not known.
    static func bytes(_ registers: GuestMachine.CallRegisters) -> [UInt8?] {
        var bytes = [UInt8?](repeating: nil, count: size)
        func put(_ value: some FixedWidthInteger, at offset: Int) {
            for index in 0..<value.bitWidth / 8 {
                bytes[offset + index] = UInt8(truncatingIfNeeded: value >> (index * 8))
            }
        }
        let general = registers.general
        for (index, path) in generalRegisters.enumerated() { put(general[keyPath: path], at: index * 8) }
        put(general.rip, at: instructionPointer)
        put(UInt32(truncatingIfNeeded: general.rflags), at: flags)
        guard case .whole(let special, _) = registers.system else { return bytes }
        for (index, path) in segments.enumerated() {
            put(UInt32(special[keyPath: path].selector), at: selectors + index * 4)
        }
        put(special.fs.base, at: bases)
        put(special.gs.base, at: bases + 8)
        put(UInt64.max, at: systemCall)
        guard !registers.extendedState.isEmpty else { return bytes }
        store(ExtendedState(registers.extendedState), into: &bytes)
        return bytes
    }

    private static func store(_ state: ExtendedState, into bytes: inout [UInt8?]) {
        func copy(_ source: Range<Int>, to offset: Int) {
            for (index, place) in source.enumerated() { bytes[offset + index] = state.bytes[place] }
        }
        for index in 0..<8 {
            let place = Area.registers + index * 16
            copy(place..<place + 10, to: floatingPoint + index * 10)
        }
        let words: [UInt64] = [
            state.word(0, 2), state.word(2, 2), UInt64(state.fullTags), state.word(12, 2), state.word(8, 4),
            state.word(20, 2), state.word(16, 4), state.word(6, 2),
        ]
        for (index, word) in words.enumerated() {
            for byte in 0..<4 {
                bytes[floatingPointControl + index * 4 + byte] = UInt8(truncatingIfNeeded: word >> (byte * 8))
            }
        }
        copy(Area.vectors..<Area.vectors + 256, to: vectors)
        copy(24..<28, to: vectorControl)
        copy(Area.upperVectors..<Area.upperVectors + 256, to: upperVectors)
    }

    // MARK: - From GDB

    /// Changes registers to what GDB says they shall be.
    ///
    /// - Parameters:
    ///   - bytes: all of them; those that are unknown stay.
    ///   - changed: what of them is to be taken over.
    /// - Returns: whether the change is one that a guest in ring 3 can be given.
    static func set(
        _ registers: inout GuestMachine.CallRegisters,
        to bytes: [UInt8?],
        changed: Range<Int>
    ) -> Bool {
        func value(_ offset: Int, _ size: Int) -> UInt64? {
            var value: UInt64 = 0
            for index in (0..<size).reversed() {
                guard let byte = bytes[offset + index] else { return nil }
                value = value << 8 | UInt64(byte)
            }
            return value
        }
        for (index, path) in generalRegisters.enumerated() {
            if let value = value(index * 8, 8) { registers.general[keyPath: path] = value }
        }
        if let value = value(instructionPointer, 8) { registers.general.rip = value }
        if let value = value(flags, 4) {
            let own = Supervisor.userFlags & ~Supervisor.traceFlag
            registers.general.rflags = registers.general.rflags & ~own | value & own
        }
        guard case .whole(var special, let events) = registers.system else { return false }
        if let value = value(bases, 8) { special.fs.base = value }
        if let value = value(bases + 8, 8) { special.gs.base = value }
        registers.system = .whole(special, events)
        // Others the processor refuses, at the next entry, and not in a way that anybody could explain.
        guard [registers.general.rip, special.fs.base, special.gs.base].allSatisfy(isCanonical) else { return false }
        if changed.overlaps(extended), !registers.extendedState.isEmpty {
            var state = ExtendedState(registers.extendedState)
            take(bytes, changed, into: &state)
            registers.extendedState = state.bytes
        }
        return true
    }

    private static func take(_ bytes: [UInt8?], _ changed: Range<Int>, into state: inout ExtendedState) {
        func copy(_ offset: Int, count: Int, to place: Int, component: UInt8) {
            for index in 0..<count where changed.contains(offset + index) {
                guard let byte = bytes[offset + index] else { continue }
                state.bytes[place + index] = byte
                state.markUsed(component)
            }
        }
        for index in 0..<8 {
            copy(floatingPoint + index * 10, count: 10, to: Area.registers + index * 16, component: 1)
        }
        // Control and status; the rest of the control words is the processor's own account of what has been.
        copy(floatingPointControl, count: 2, to: 0, component: 1)
        copy(floatingPointControl + 4, count: 2, to: 2, component: 1)
        copy(vectors, count: 256, to: Area.vectors, component: 2)
        copy(vectorControl, count: 2, to: 24, component: 2)
        copy(upperVectors, count: 256, to: Area.upperVectors, component: 4)
    }

    private static func isCanonical(_ address: UInt64) -> Bool {
        let upper = Int64(bitPattern: address) >> 47
        return upper == 0 || upper == -1
    }

    private static let generalRegisters: [any WritableKeyPath<Registers, UInt64> & Sendable] = [
        \.rax, \.rbx, \.rcx, \.rdx, \.rsi, \.rdi, \.rbp, \.rsp, \.r8, \.r9, \.r10, \.r11, \.r12, \.r13, \.r14, \.r15,
    ]
    private static let segments: [any KeyPath<SpecialRegisters, Segment> & Sendable] = [
        \.cs, \.ss, \.ds, \.es, \.fs, \.gs,
    ]

    /// The area of XSAVE with what it leaves out: components in their initial state.
    private struct ExtendedState {
        var bytes: [UInt8]

        init(_ saved: [UInt8]) {
            bytes = saved + [UInt8](repeating: 0, count: max(0, Area.size - saved.count))
            // FXSAVE has no header, and stores both.
            let isLegacy = saved.count <= Area.header
            if !isLegacy, !uses(1) {
                for index in 0..<Area.vectors where !(24..<32).contains(index) { bytes[index] = 0 }
                (bytes[0], bytes[1]) = (0x7f, 0x03)
            }
            if !isLegacy, !uses(2) {
                for index in Area.vectors..<Area.vectors + 256 { bytes[index] = 0 }
                // MXCSR belongs to the vectors, but is stored with either.
                if word(24, 4) == 0 { (bytes[24], bytes[25]) = (0x80, 0x1f) }
            }
            if !uses(4) { for index in Area.upperVectors..<Area.size { bytes[index] = 0 } }
        }

        private func uses(_ component: UInt8) -> Bool { bytes[Area.header] & component != 0 }

        mutating func markUsed(_ component: UInt8) { bytes[Area.header] |= component }

        func word(_ offset: Int, _ size: Int) -> UInt64 {
            bytes[offset..<offset + size].reversed().reduce(0) { $0 << 8 | UInt64($1) }
        }

        /// Two bits for each register, from the one bit that is stored (Intel SDM volume 1, 10.5.1.1 and 8.1.7).
        var fullTags: UInt16 {
            let top = Int(word(2, 2) >> 11 & 7)
            var tags: UInt16 = 0
            for physical in 0..<8 {
                var tag: UInt16 = 3
                if bytes[4] & 1 << physical != 0 {
                    let place = Area.registers + ((physical - top) & 7) * 16
                    let exponent = word(place + 8, 2) & 0x7fff
                    let significand = word(place, 8)
                    switch exponent {
                    case 0x7fff: tag = 2
                    case 0: tag = significand == 0 ? 1 : 2
                    default: tag = significand >> 63 == 1 ? 0 : 2
                    }
                }
                tags |= tag << (physical * 2)
            }
            return tags
        }
    }
}
