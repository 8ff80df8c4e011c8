#if Server
import MicroVM

extension API {
    /// A place in a module.
    package struct Symbol: Codable, Sendable, Hashable {
        /// As the module spells it.
        package var name: String
        /// As it was in the source.
        package var demangledName: String
        /// The distance from the symbol's start, in bytes.
        package var offset: UInt64

        init(_ symbol: GuestSymbol) {
            name = symbol.name
            demangledName = symbol.demangledName
            offset = symbol.offset
        }
    }

    /// One function that was under way.
    package struct Frame: Codable, Sendable, Hashable {
        package var address: String
        package var moduleOffset: String?
        package var symbol: Symbol?
        /// All of it in one line.
        package var text: String

        init(_ frame: GuestBacktrace.Frame) {
            address = frame.address.hexadecimal
            moduleOffset = frame.moduleOffset?.hexadecimal
            symbol = frame.symbol.map(Symbol.init)
            text = frame.description
        }
    }

    /// Where a guest is or was.
    package struct Place: Codable, Sendable, Hashable {
        package var instructionPointer: String
        package var symbol: Symbol?
        package var hostFunction: String?
        /// How many calls are under way that were made from inside host calls.
        package var callDepth: Int?
        package var registers: [String: String]
        package var backtrace: [Frame]
        package var backtraceIsTruncated: Bool

        init(_ state: SandboxState) {
            instructionPointer = state.instructionPointer.hexadecimal
            symbol = state.symbol.map(Symbol.init)
            hostFunction = state.hostFunction
            callDepth = state.callDepth
            registers = state.registers.byName
            backtrace = state.backtrace.frames.map(Frame.init)
            backtraceIsTruncated = state.backtrace.isTruncated
        }

        init(_ interruption: GuestInterruption) {
            instructionPointer = interruption.instructionPointer.hexadecimal
            symbol = interruption.symbol.map(Symbol.init)
            hostFunction = interruption.hostFunction
            callDepth = interruption.callDepth
            registers = interruption.registers.byName
            backtrace = interruption.backtrace.frames.map(Frame.init)
            backtraceIsTruncated = interruption.backtrace.isTruncated
        }

        init(_ fault: GuestFault) {
            instructionPointer = fault.instructionPointer.hexadecimal
            symbol = fault.symbol.map(Symbol.init)
            registers = fault.registers.byName
            backtrace = fault.backtrace.frames.map(Frame.init)
            backtraceIsTruncated = fault.backtrace.isTruncated
        }
    }

    /// What a guest did that it may not do.
    package struct Fault: Codable, Sendable, Hashable {
        package var kind: String
        package var vector: UInt8?
        package var address: String?
        package var access: String?
        package var message: String?

        init(_ fault: GuestFault) {
            kind = fault.kind.rawValue
            vector = fault.vector
            address = fault.address?.hexadecimal
            access = fault.access?.rawValue
            message = fault.message
        }
    }

    /// What a call has cost.
    package struct Statistics: Codable, Sendable, Hashable {
        package var durationMicroseconds: Double
        package var stoppedMicroseconds: Double
        package var cpuTimeMicroseconds: Double?
        package var exits: UInt64
        package var hostCalls: UInt64
        package var nestedCalls: UInt64

        init(_ statistics: CallStatistics) {
            durationMicroseconds = statistics.duration.microseconds
            stoppedMicroseconds = statistics.stoppedDuration.microseconds
            cpuTimeMicroseconds = statistics.cpuTime?.microseconds
            exits = statistics.exits
            hostCalls = statistics.hostCalls
            nestedCalls = statistics.nestedCalls
        }
    }
}

extension GuestRegisters {
    fileprivate var byName: [String: String] {
        let registers = [
            "rax": rax, "rbx": rbx, "rcx": rcx, "rdx": rdx, "rsi": rsi, "rdi": rdi, "rbp": rbp, "rsp": rsp, "r8": r8,
            "r9": r9, "r10": r10, "r11": r11, "r12": r12, "r13": r13, "r14": r14, "r15": r15, "rip": rip,
            "rflags": rflags,
        ]
        return registers.mapValues(\.hexadecimal)
    }
}
#endif
