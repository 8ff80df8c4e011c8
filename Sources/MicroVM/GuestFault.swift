/// What a guest did that it may not do.
public struct GuestFault: Sendable, Hashable {
    /// The kinds of misbehaviour.
    public enum Kind: String, Sendable, Hashable, CaseIterable {
        /// A read, write or execution of memory that is not there or does not allow it (#PF).
        case memoryAccess
        /// An access beyond what is there for now of the heap or of a window; ``GuestFault/message`` says which.
        case outOfBounds
        /// An access to memory that should be there and is not to be had, such as that of a file that has become
        /// shorter.
        case memoryUnavailable
        /// A page fault in one of the guard pages around the stack.
        case stackOverflow
        /// The stack protector found its canary overwritten (`__stack_chk_fail`).
        case stackCorruption
        /// A division by zero or a quotient that does not fit (#DE).
        case divideError
        /// A debug exception, such as single stepping by RFLAGS.TF (#DB).
        case debugTrap
        /// A breakpoint instruction (#BP).
        case breakpoint
        /// An overflow trap (#OF).
        case overflow
        /// A bound-range exception (#BR).
        case boundRange
        /// An undefined or forbidden instruction (#UD).
        case invalidInstruction
        /// A system call instruction: there is no operating system in a sandbox.
        case systemCall
        /// A privileged instruction, a non-canonical address, or another general protection fault (#GP).
        case generalProtection
        /// A port that the guest may not use.
        case portAccess
        /// A stack segment fault, such as a non-canonical stack pointer (#SS).
        case stackSegment
        /// An x87 floating-point exception (#MF).
        case floatingPoint
        /// An SSE or AVX floating-point exception (#XM).
        case vectorFloatingPoint
        /// A misaligned access while alignment checks are on (#AC).
        case alignmentCheck
        /// Any other processor exception; ``GuestFault/vector`` says which.
        case processorException
        /// The guest ended itself through `microvm_abort`; ``GuestFault/message`` is what it said.
        case abort
        /// The guest called an import that there is not, or with a value that its parameter's type does not allow.
        case invalidHostCall
        /// The guest gave a host function a pointer that is not its own.
        case invalidPointer
        /// The processor halted.
        case halted
        /// The processor shut down after a triple fault.
        case shutdown
        /// KVM could not run the guest any further.
        case hypervisor
    }

    /// What a memory access tried to do.
    public enum Access: String, Sendable, Hashable {
        /// A load.
        case read
        /// A store.
        case write
        /// An instruction fetch.
        case execute
    }

    /// What happened.
    public var kind: Kind
    /// The processor's exception vector, 0 to 31, when an exception was raised (Intel SDM volume 3A, 6.3.1).
    public var vector: UInt8?
    /// The error code the processor pushed, for the exceptions that have one.
    public var errorCode: UInt64?
    /// The guest address that was touched, for faults that have one.
    public var address: UInt64?
    /// What was tried at ``address``.
    public var access: Access?
    /// The port, for ``Kind/portAccess`` where it is known.
    public var port: UInt16?
    /// What the guest or the hypervisor had to say: the text of an abort, the reason of an internal error.
    public var message: String?
    /// The address of the instruction that faulted, or 0 where the hypervisor lost it.
    public var instructionPointer: UInt64
    /// The function the instruction belongs to, as far as the module's symbols tell.
    public var symbol: GuestSymbol?
    /// The general registers at the time of the fault.
    public var registers: GuestRegisters
    /// The functions that were under way; for a fault in a host call, from the one on that made it.
    public var backtrace: GuestBacktrace
}

/// A place in a module: the nearest symbol at or before an address.
public struct GuestSymbol: Sendable, Hashable, CustomStringConvertible {
    /// The symbol's name as the module spells it (mangled, for Swift and C++).
    public var name: String
    /// The distance from the symbol's start, in bytes.
    public var offset: UInt64

    /// `name+0x1f`, or the name alone at its start.
    public var description: String { offset == 0 ? name : "\(name)+0x\(String(offset, radix: 16))" }
}

/// Where a call was when it was ended from outside, and for how long it had run.
public struct GuestInterruption: Sendable {
    /// The address of the next guest instruction.
    public var instructionPointer: UInt64
    private let module: GuestModule
    private let imageBase: UInt64
    /// The import whose host function was running when the call was ended, if one was.
    public var hostFunction: String?
    /// How many of the calls that were ended had been made from inside host calls.
    public var callDepth: Int
    /// Wall-clock time from the beginning of the call to its end.
    public var duration: Duration { .nanoseconds(Int64(clamping: nanoseconds)) }
    private let nanoseconds: UInt64
    /// The general registers at the time of the interruption.
    public var registers: GuestRegisters
    /// The functions that were under way.
    public let backtrace: GuestBacktrace

    init(
        instructionPointer: UInt64,
        module: GuestModule,
        imageBase: UInt64,
        hostFunction: String?,
        callDepth: Int,
        nanoseconds: UInt64,
        registers: GuestRegisters,
        backtrace: GuestBacktrace
    ) {
        self.instructionPointer = instructionPointer
        self.module = module
        self.imageBase = imageBase
        self.hostFunction = hostFunction
        self.callDepth = callDepth
        self.nanoseconds = nanoseconds
        self.registers = registers
        self.backtrace = backtrace
    }

    /// The function that ``instructionPointer`` belongs to; looked up when it is asked for.
    public var symbol: GuestSymbol? { module.symbol(at: instructionPointer, imageBase: imageBase) }
}

extension GuestInterruption {
    /// The symbol, or the address where there is none.
    var place: String { symbol?.description ?? "0x" + String(instructionPointer, radix: 16) }
}

/// The general registers of the guest's virtual CPU.
public struct GuestRegisters: Sendable, Hashable {
    // swift-format-ignore: AllPublicDeclarationsHaveDocumentation
    public var rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp: UInt64
    // swift-format-ignore: AllPublicDeclarationsHaveDocumentation
    public var r8, r9, r10, r11, r12, r13, r14, r15: UInt64
    // swift-format-ignore: AllPublicDeclarationsHaveDocumentation
    public var rip, rflags: UInt64
}

extension GuestFault: CustomStringConvertible {
    /// One sentence: what happened, and where.
    public var description: String {
        func hexadecimal(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
        let place = (symbol.map { "\($0) (" } ?? "") + hexadecimal(instructionPointer) + (symbol == nil ? "" : ")")
        var text = "\(kind.explanation) at \(place)"
        if let access, let address {
            text += ", \(access) of \(hexadecimal(address))"
        } else if let address {
            text += ", address \(hexadecimal(address))"
        }
        if let port { text += ", port \(hexadecimal(UInt64(port)))" }
        if let message { text += ": \(message)" }
        return text
    }
}

extension GuestFault.Kind {
    /// The kind in words, as the beginning of a sentence.
    public var explanation: String {
        switch self {
        case .memoryAccess: "Illegal memory access"
        case .outOfBounds: "Access beyond the memory there is"
        case .memoryUnavailable: "Access to memory that is not to be had"
        case .stackOverflow: "Stack overflow"
        case .stackCorruption: "Stack corruption found by the stack protector"
        case .divideError: "Division by zero or overflowing division"
        case .debugTrap: "Debug exception"
        case .breakpoint: "Breakpoint instruction"
        case .overflow: "Overflow trap"
        case .boundRange: "Bound range exceeded"
        case .invalidInstruction: "Invalid instruction"
        case .systemCall: "System call instruction, of which a sandbox has none,"
        case .generalProtection: "General protection fault"
        case .portAccess: "Forbidden port access"
        case .stackSegment: "Stack segment fault"
        case .floatingPoint: "Floating-point exception"
        case .vectorFloatingPoint: "Vector floating-point exception"
        case .alignmentCheck: "Misaligned access"
        case .processorException: "Processor exception"
        case .abort: "The guest aborted"
        case .invalidHostCall: "Invalid host call"
        case .invalidPointer: "Invalid pointer passed to a host function"
        case .halted: "The processor halted"
        case .shutdown: "The processor shut down"
        case .hypervisor: "The hypervisor gave up"
        }
    }
}
