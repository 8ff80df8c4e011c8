/// What is needed to walk the stack of a guest that has been left for good, when somebody wants to know: its registers,
/// and a copy of the part of its stack that is in use.
///
/// A walk touches so much of the host's memory that it would be the longest part of a kill that comes after the guest
/// has been left.
final class CapturedStack: Sendable {
    /// Of a stack of which more is in use no copy is made.
    private static let maximumSize: UInt64 = 8 << 10
    /// How far below the stack pointer a function may keep words (AMD64 ABI 3.2.2).
    private static let redZone: UInt64 = 128

    let module: GuestModule
    let addressSpace: AddressSpace
    private let registers: GuestRegisters
    private let calledFunction: UInt64
    /// Where the copy begins in the guest, at a multiple of 8; it ends at the stack's end.
    private let start: UInt64
    private let words: [UInt64]

    /// Copies the stack, unless the guest is on another one or uses much of it.
    init?(
        _ memory: GuestMemory,
        _ module: GuestModule,
        _ registers: GuestRegisters,
        calledFunction: UInt64
    ) {
        let stack = memory.addressSpace.stack
        guard stack.contains(registers.rsp), stack.upperBound - registers.rsp <= Self.maximumSize,
            memory.isLasting(registers.rsp)
        else { return nil }
        self.module = module
        addressSpace = memory.addressSpace
        self.registers = registers
        self.calledFunction = calledFunction
        // The stack is made of pages, and higher than the red zone is large.
        start = max(stack.lowerBound, (registers.rsp - Self.redZone) & ~7)
        // Inside the stack, in a memory that lasts.
        words = unsafe Array(
            memory.hostBytes(at: start, count: Int(stack.upperBound - start)).bindMemory(to: UInt64.self)
        )
    }

    var walk: GuestBacktrace.Walk {
        var walk = StackWalk(.captured(self), addressSpace, module, from: registers)
        return walk.walk(calledFunction: calledFunction)
    }

    /// A word of the stack, or of the module's code, at any address; nothing elsewhere.
    func word(at address: UInt64) -> UInt64? {
        guard address >= start, address < addressSpace.stack.upperBound else { return codeWord(at: address) }
        let (index, shift) = (Int((address - start) / 8), (address - start) % 8 * 8)
        guard shift > 0 else { return words[index] }
        guard index + 1 < words.count else { return nil }
        return words[index] >> shift | words[index + 1] << (64 - shift)
    }

    /// Code is what it is in the file: no relocation changes a segment that cannot be written.
    private func codeWord(at address: UInt64) -> UInt64? {
        guard address >= addressSpace.imageBase else { return nil }
        let offset = address - addressSpace.imageBase
        let segment = module.segments.first { segment in
            segment.permissions.isSuperset(of: [.read, .execute]) && offset >= segment.address
                && offset - segment.address < segment.fileSize && segment.fileSize - (offset - segment.address) >= 8
        }
        guard let segment else { return nil }
        // Parsed modules' segments lie inside of their files.
        let position = Int(segment.fileOffset + offset - segment.address)
        return module.bytes[position..<position + 8].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
    }
}
