import CShims
import LinuxKVM

/// Finds the functions that are under way on a guest's stack.
///
/// A walker of its own, because none at hand fits: the one of Swift's `Runtime` module follows frame pointers only, and
/// reads foreign stacks through an interface that is not public; libunwind would be one more library for everybody who
/// embeds this one, and is made for tables that somebody vouches for. Here both the tables and the stack come from
/// whoever wants to do harm: each step goes up the stack, there are no more than so many of them, and every word is
/// read as the guest itself could read it.
struct StackWalk {
    /// What is known of a function's registers, by their numbers in DWARF.
    private struct Context {
        var values: [UInt64]
        /// One bit a register.
        var known: UInt32 = 0x1_ffff

        subscript(_ register: Int) -> UInt64? {
            get { known & 1 << UInt32(register) != 0 ? values[register] : nil }
            set {
                if let newValue {
                    values[register] = newValue
                    known |= 1 << UInt32(register)
                } else {
                    known &= ~(1 << UInt32(register))
                }
            }
        }

        var stackPointer: UInt64 { values[FrameRules.stackPointer] }
        var address: UInt64 { values[FrameRules.returnAddress] }
    }

    /// Where the trampoline's code was in the walk's way.
    private enum Library {
        /// In the code that was entered first: nobody has called it.
        case outermost
        case caller
        case lost
    }

    /// How long the tables' programs may be for one walk, together.
    private static let programBytesMaximum: UInt64 = 256 << 10
    /// Frames of the library's own, which are left out, do not make a walk endless either.
    private static let stepsMaximum = 3 * GuestBacktrace.maximumFrameCount

    /// Where the words are read.
    enum Source {
        case guest(GuestMemory)
        case captured(CapturedStack)
    }

    private let source: Source
    private let module: GuestModule
    private var context: Context
    private var isReturnAddress = false
    private var programBytesLeft = programBytesMaximum

    private let addressSpace: AddressSpace
    private let stack: Range<UInt64>
    private let library: Range<UInt64>

    init(_ source: Source, _ addressSpace: AddressSpace, _ module: GuestModule, from registers: GuestRegisters) {
        self.source = source
        self.module = module
        self.addressSpace = addressSpace
        stack = addressSpace.stack
        library = Trampoline.pages(importCount: module.imports.count)
        context = Context(values: [
            registers.rax, registers.rdx, registers.rcx, registers.rbx, registers.rsi, registers.rdi, registers.rbp,
            registers.rsp, registers.r8, registers.r9, registers.r10, registers.r11, registers.r12, registers.r13,
            registers.r14, registers.r15, registers.rip,
        ])
    }

    /// Walks to the outermost function.
    ///
    /// - Parameter calledFunction: the function that was called: the place of a guest that is in the library's code on
    ///   its way in or out.
    mutating func walk(calledFunction: UInt64) -> GuestBacktrace.Walk {
        var addresses: [UInt64] = []
        addresses.reserveCapacity(8)
        var beginsInCaller = false
        var isTruncated = true
        for _ in 0..<Self.stepsMaximum {
            if isLibraryCode(context.address) {
                let step = leaveLibrary()
                if step == .caller { continue }
                isTruncated = step == .lost
                break
            }
            guard addresses.count < GuestBacktrace.maximumFrameCount else { break }
            if addresses.isEmpty { beginsInCaller = isReturnAddress }
            addresses.append(context.address)
            guard let hasCaller = leaveFunction() else { break }
            if !hasCaller {
                isTruncated = false
                break
            }
        }
        return GuestBacktrace.Walk(
            addresses: addresses.isEmpty ? [calledFunction] : addresses,
            beginsInCaller: beginsInCaller,
            isTruncated: isTruncated
        )
    }

    // MARK: - One step

    /// Goes to a caller whose stack pointer is as given, unless that is no way up the stack or no code.
    private mutating func go(to address: UInt64?, stackPointer: UInt64) -> Bool {
        guard let address, stackPointer > context.stackPointer, isCode(address) || isLibraryCode(address) else {
            return false
        }
        context[FrameRules.returnAddress] = address
        context[FrameRules.stackPointer] = stackPointer
        isReturnAddress = true
        return true
    }

    /// Leaves a function of the guest: whether it had a caller, or nothing where that cannot be found out.
    private mutating func leaveFunction() -> Bool? {
        guard isCode(context.address) else {
            // A jump or a call to nowhere; where it was a return, the frame is that of the function it returned from.
            let stackPointer = context.stackPointer
            return go(to: word(at: stackPointer), stackPointer: stackPointer &+ 8) || leaveByFramePointer() ? true : nil
        }
        if let hasCaller = leaveByTable() { return hasCaller }
        return leaveByFramePointer() ? true : nil
    }

    /// By what the module's table says; nothing where it says nothing that can be used.
    private mutating func leaveByTable() -> Bool? {
        let base = addressSpace.imageBase
        let address = (isReturnAddress ? context.address &- 1 : context.address) &- base
        guard address < module.imageSize, let description = module.unwindTable?.description(of: address) else {
            return nil
        }
        let size = description.instructions.reduce(0) { $0 + $1.end - $1.position }
        guard size <= programBytesLeft else { return nil }
        programBytesLeft -= size
        guard let rules = FrameRules(description, at: address), let origin = context[rules.frameRegister] else {
            return nil
        }
        let frame = origin &+ UInt64(bitPattern: rules.frameOffset)
        guard frame > context.stackPointer else { return nil }
        var caller = context
        caller[FrameRules.stackPointer] = frame
        caller[FrameRules.returnAddress] = nil
        for (register, rule) in rules.rules.enumerated() {
            switch rule {
            case .same: break
            case .undefined:
                if register == FrameRules.returnAddress { return false }
                caller[register] = nil
            case .offset(let offset): caller[register] = word(at: frame &+ UInt64(bitPattern: offset))
            case .value(let offset): caller[register] = frame &+ UInt64(bitPattern: offset)
            case .register(let source): caller[register] = context[source]
            case .unknown: caller[register] = nil
            }
        }
        let before = context
        guard let address = caller[FrameRules.returnAddress], let stackPointer = caller[FrameRules.stackPointer] else {
            return nil
        }
        caller[FrameRules.stackPointer] = context.stackPointer
        context = caller
        if go(to: address, stackPointer: stackPointer) { return true }
        context = before
        return nil
    }

    /// By the chain of frame pointers. At the innermost function's first and last instructions, where its frame is not
    /// there yet or no more, the return address is found all the same.
    private mutating func leaveByFramePointer() -> Bool {
        let stackPointer = context.stackPointer
        if !isReturnAddress, isCode(context.address), let code = word(at: context.address) {
            switch code & 0xff {
            case 0x55, 0xc3:  // push %rbp, ret
                if go(to: word(at: stackPointer), stackPointer: stackPointer &+ 8) { return true }
            default: break
            }
            if code & 0xff_ffff == 0xe5_8948 {  // mov %rsp, %rbp
                let saved = word(at: stackPointer)
                if go(to: word(at: stackPointer &+ 8), stackPointer: stackPointer &+ 16) {
                    context[FrameRules.basePointer] = saved
                    return true
                }
            }
        }
        guard let frame = context[FrameRules.basePointer], frame >= stackPointer, frame % 8 == 0,
            frame <= .max - 16, let saved = word(at: frame), go(to: word(at: frame + 8), stackPointer: frame + 16)
        else { return false }
        context[FrameRules.basePointer] = saved
        return true
    }

    // MARK: - The library's code in the guest

    private func isLibraryCode(_ address: UInt64) -> Bool { library.contains(address) }

    /// Leaves a thunk or the trampoline (supervisor.S).
    private mutating func leaveLibrary() -> Library {
        let stackPointer = context.stackPointer
        let address = context.address
        if address < Trampoline.invoke { return .outermost }
        var isFound = false
        if (Trampoline.invoke..<Trampoline.hostCall).contains(address) {
            // Its frame pointer is that of the caller until it has made its own, in two instructions.
            if address == Trampoline.invoke {
                isFound = go(to: word(at: stackPointer), stackPointer: stackPointer &+ 8)
            } else if let frame = address == Trampoline.invoke + 1 ? stackPointer : context[FrameRules.basePointer],
                frame >= stackPointer, frame <= .max - 16, let saved = word(at: frame)
            {
                isFound = go(to: word(at: frame + 8), stackPointer: frame + 16)
                context[FrameRules.basePointer] = saved
            }
        } else if address < Trampoline.reset || address >= Trampoline.thunk(0) {
            isFound = go(to: word(at: stackPointer), stackPointer: stackPointer &+ 8)
        } else {
            return .outermost
        }
        return isFound ? .caller : .lost
    }

    // MARK: - What the guest could read

    private func isCode(_ address: UInt64) -> Bool { addressSpace.permits(.execute, address: address, count: 1) }

    /// A word of the guest's memory. Not of windows: their pages may have to be waited for.
    private func word(at address: UInt64) -> UInt64? {
        switch source {
        case .guest(let memory): word(at: address, of: memory)
        case .captured(let stack): stack.word(at: address)
        }
    }

    private func word(at address: UInt64, of memory: GuestMemory) -> UInt64? {
        if stack.contains(address), stack.upperBound - address >= 8, memory.isLasting(address) {
            return memory.loadWord(at: address)
        }
        guard memory.permits(.read, address: address, count: 8), addressSpace.window(at: address) == nil else {
            return nil
        }
        if memory.isLasting(address) { return memory.loadWord(at: address) }
        var word: UInt64 = 0
        let isRead: Bool = unsafe withUnsafeMutableBytes(of: &word) { bytes in
            unsafe (try? memory.copyOut(address, into: bytes)) != nil
        }
        return isRead ? word : nil
    }
}

extension RunLoop {
    /// The functions that are under way, of a guest with these registers; the one to be called alone where the guest
    /// has not been entered.
    func backtrace(_ registers: GuestRegisters?) -> GuestBacktrace {
        let addressSpace = machine.memory.addressSpace
        var found = GuestBacktrace.Walk(addresses: [calledFunction])
        if let registers {
            var walk = StackWalk(.guest(machine.memory), addressSpace, module, from: registers)
            found = walk.walk(calledFunction: calledFunction)
        }
        return GuestBacktrace(found, module: module, imageBase: addressSpace.imageBase)
    }

    /// The same of a guest that has been left for good, walked later where that is possible: whoever has killed it
    /// waits for its end.
    func lastBacktrace(_ registers: GuestRegisters?) -> GuestBacktrace {
        guard let registers,
            let stack = CapturedStack(machine.memory, module, registers, calledFunction: calledFunction)
        else { return backtrace(registers) }
        return GuestBacktrace(stack)
    }
}
