/// How to find a function's caller at one of its instructions: what the instructions of a call frame table come to
/// (DWARF 5, 6.4). Registers have DWARF's numbers (AMD64 ABI supplement, 3.6.2).
struct FrameRules {
    static let basePointer = 6
    static let stackPointer = 7
    static let returnAddress = 16
    static let registerCount = 17

    /// Where the caller's value of a register is.
    enum Rule {
        /// Nothing was said, or that it is unchanged.
        case same
        /// It is lost; of the return address: there is no caller.
        case undefined
        /// In memory, at a distance from the frame's address.
        case offset(Int64)
        /// At a distance from the frame's address.
        case value(Int64)
        /// In another register.
        case register(Int)
        /// In the result of an expression, which is not evaluated.
        case unknown
    }

    private struct Row {
        /// The canonical frame address is at a distance from a register's value; nothing for an expression.
        var frameRegister: Int?
        var frameOffset: Int64 = 0
        var rules = [Rule](repeating: .same, count: registerCount)
    }

    private static let savedRowsMaximum = 16
    /// The longest program that is run, in bytes.
    static let lengthMaximum: UInt64 = 32 << 10

    private var row = Row()
    private var initial = Row()
    private var saved: [Row] = []

    var frameRegister: Int { row.frameRegister ?? 0 }
    var frameOffset: Int64 { row.frameOffset }
    var rules: [Rule] { row.rules }

    /// The rules at an address of the image, or nothing where the table cannot be followed.
    init?(_ description: UnwindTable.Description, at address: UInt64) {
        var location = description.start
        for (index, program) in description.instructions.enumerated() {
            guard program.end - program.position <= Self.lengthMaximum else { return nil }
            var program = program
            while !program.isAtEnd {
                guard let isBeyond = step(&program, description, &location, address) else { return nil }
                if isBeyond { break }
            }
            if index == 0 { initial = row }
        }
        guard row.frameRegister != nil else { return nil }
    }

    /// Carries out one instruction. Whether it is behind the address; nothing where it is unknown.
    private mutating func step(
        _ program: inout DWARFCursor,
        _ description: UnwindTable.Description,
        _ location: inout UInt64,
        _ address: UInt64
    ) -> Bool? {
        guard let byte = program.read(UInt8.self) else { return nil }
        func advance(_ count: UInt64?) -> Bool? {
            guard let count else { return nil }
            let (distance, overflow) = count.multipliedReportingOverflow(by: description.codeAlignment)
            let next = location.addingReportingOverflow(distance)
            guard !overflow, !next.overflow else { return true }
            location = next.partialValue
            return location > address
        }
        func scaled(_ number: UInt64) -> Int64 { Int64(bitPattern: number) &* description.dataAlignment }
        func scaled(_ number: Int64) -> Int64 { number &* description.dataAlignment }
        let operand = Int(byte & 0x3f)
        switch byte >> 6 {
        case 1: return advance(UInt64(operand))
        case 2:
            guard let number = program.unsignedLEB() else { return nil }
            set(UInt64(operand), .offset(scaled(number)))
            return false
        case 3:
            restore(UInt64(operand))
            return false
        default: break
        }
        switch byte {
        case 0x00: break  // DW_CFA_nop
        case 0x01:  // DW_CFA_set_loc
            guard let target = program.pointer(description.pointerEncoding) else { return nil }
            location = target
            return target > address
        case 0x02: return advance(program.read(UInt8.self).map { UInt64($0) })  // DW_CFA_advance_loc1
        case 0x03: return advance(program.read(UInt16.self).map { UInt64($0) })
        case 0x04: return advance(program.read(UInt32.self).map { UInt64($0) })
        case 0x05:  // DW_CFA_offset_extended
            guard let register = program.unsignedLEB(), let number = program.unsignedLEB() else { return nil }
            set(register, .offset(scaled(number)))
        case 0x06:  // DW_CFA_restore_extended
            guard let register = program.unsignedLEB() else { return nil }
            restore(register)
        case 0x07, 0x08:  // DW_CFA_undefined, DW_CFA_same_value
            guard let register = program.unsignedLEB() else { return nil }
            set(register, byte == 0x07 ? .undefined : .same)
        case 0x09:  // DW_CFA_register
            guard let register = program.unsignedLEB(), let source = program.unsignedLEB() else { return nil }
            set(register, source < UInt64(Self.registerCount) ? .register(Int(source)) : .unknown)
        case 0x0a:  // DW_CFA_remember_state
            guard saved.count < Self.savedRowsMaximum else { return nil }
            saved.append(row)
        case 0x0b:  // DW_CFA_restore_state
            guard let last = saved.popLast() else { return nil }
            row = last
        case 0x0c, 0x12:  // DW_CFA_def_cfa, DW_CFA_def_cfa_sf
            guard let register = program.unsignedLEB(), let offset = offset(&program, isScaled: byte == 0x12, scaled)
            else { return nil }
            return setFrame(register, offset)
        case 0x0d:  // DW_CFA_def_cfa_register
            guard let register = program.unsignedLEB() else { return nil }
            return setFrame(register, row.frameOffset)
        case 0x0e, 0x13:  // DW_CFA_def_cfa_offset, DW_CFA_def_cfa_offset_sf
            guard let offset = offset(&program, isScaled: byte == 0x13, scaled) else { return nil }
            row.frameOffset = offset
        case 0x0f:  // DW_CFA_def_cfa_expression
            guard let count = program.unsignedLEB(), program.skip(count) else { return nil }
            row.frameRegister = nil
        case 0x10, 0x16:  // DW_CFA_expression, DW_CFA_val_expression
            guard let register = program.unsignedLEB(), let count = program.unsignedLEB(), program.skip(count)
            else { return nil }
            set(register, .unknown)
        case 0x11, 0x15:  // DW_CFA_offset_extended_sf, DW_CFA_val_offset_sf
            guard let register = program.unsignedLEB(), let number = program.signedLEB() else { return nil }
            set(register, byte == 0x11 ? .offset(scaled(number)) : .value(scaled(number)))
        case 0x14:  // DW_CFA_val_offset
            guard let register = program.unsignedLEB(), let number = program.unsignedLEB() else { return nil }
            set(register, .value(scaled(number)))
        case 0x2e:  // DW_CFA_GNU_args_size
            guard program.unsignedLEB() != nil else { return nil }
        default: return nil
        }
        return false
    }

    private func offset(_ program: inout DWARFCursor, isScaled: Bool, _ scaled: (Int64) -> Int64) -> Int64? {
        isScaled ? program.signedLEB().map(scaled) : program.unsignedLEB().map { Int64(bitPattern: $0) }
    }

    private mutating func set(_ register: UInt64, _ rule: Rule) {
        // Of vector registers and the like nothing needs to be known.
        if register < UInt64(Self.registerCount) { row.rules[Int(register)] = rule }
    }

    private mutating func restore(_ register: UInt64) {
        if register < UInt64(Self.registerCount) { row.rules[Int(register)] = initial.rules[Int(register)] }
    }

    private mutating func setFrame(_ register: UInt64, _ offset: Int64) -> Bool? {
        guard register < UInt64(Self.returnAddress) else { return nil }
        row.frameRegister = Int(register)
        row.frameOffset = offset
        return false
    }
}
