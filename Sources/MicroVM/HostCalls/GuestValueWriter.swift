/// Where arguments go that are passed by a pointer.
protocol ArgumentMemory: AnyObject {
    /// The guest addresses of the argument arena.
    var arena: Range<UInt64> { get }

    /// Where the host puts what the guest shall find at an address; must lie in the arena.
    func argumentBytes(at address: UInt64, count: Int) -> UnsafeMutableRawBufferPointer
}

extension GuestMemory: ArgumentMemory {
    var arena: Range<UInt64> { addressSpace.arena }

    func argumentBytes(at address: UInt64, count: Int) -> UnsafeMutableRawBufferPointer {
        unsafe hostBytes(at: address, count: count)
    }
}

import CShims

/// Puts values where the guest expects them: the arguments of a guest call, or the result of a host call.
///
/// There is one for each call, and it cannot be kept.
public struct GuestValueWriter: ~Copyable {
    private enum Destination { case arguments, result }

    private let destination: Destination
    private let mailbox: Mailbox
    /// Outlives the call, and so this. Not counted, which would take longer than many a call.
    private unowned(unsafe) let memory: any ArgumentMemory
    private var integerCount = 0
    private(set) var vectorCount = 0
    private(set) var stackArgumentCount = 0
    /// The first free byte of the argument arena.
    private(set) var arenaPosition: UInt64

    private init(_ destination: Destination, mailbox: Mailbox, memory: any ArgumentMemory, arenaPosition: UInt64) {
        self.destination = destination
        self.mailbox = mailbox
        unsafe self.memory = memory
        self.arenaPosition = arenaPosition
    }

    static func arguments(
        mailbox: Mailbox,
        memory: any ArgumentMemory,
        arenaPosition: UInt64
    ) -> GuestValueWriter {
        GuestValueWriter(.arguments, mailbox: mailbox, memory: memory, arenaPosition: arenaPosition)
    }

    /// Arguments that have been written already, to a page like the mailbox.
    static func arguments(
        copying page: Mailbox,
        _ stackArgumentCount: Int,
        to mailbox: Mailbox,
        _ memory: GuestMemory,
        arenaPosition: UInt64
    ) -> GuestValueWriter {
        for index in 0..<6 { mailbox.setInteger(page.integer(at: index), at: index) }
        for index in 0..<8 { mailbox.setVector(page.vector(at: index), at: index) }
        for index in 0..<stackArgumentCount { mailbox.setStackArgument(page.stackArgument(at: index), at: index) }
        var writer = arguments(mailbox: mailbox, memory: memory, arenaPosition: arenaPosition)
        writer.stackArgumentCount = stackArgumentCount
        return writer
    }

    static func result(mailbox: Mailbox, memory: GuestMemory, arenaPosition: UInt64) -> GuestValueWriter {
        GuestValueWriter(.result, mailbox: mailbox, memory: memory, arenaPosition: arenaPosition)
    }

    /// Passes an integer or a pointer: in %rdi, %rsi, %rdx, %rcx, %r8, %r9 and then on the stack as an argument, in
    /// %rax and then %rdx as a result.
    ///
    /// - Throws: ``SandboxError/Code/invalidArgument`` when all of them are taken.
    public mutating func appendInteger(_ value: UInt64) throws(SandboxError) {
        switch destination {
        case .arguments where integerCount < 6:
            mailbox.setInteger(value, at: integerCount)
        case .arguments:
            return try appendToStack(value)
        case .result:
            guard integerCount < 2 else { throw Self.resultTooWide }
            mailbox.setResult(value, at: integerCount)
        }
        integerCount += 1
    }

    /// Passes a floating-point number's bits: in %xmm0 to %xmm7 and then on the stack as an argument, in %xmm0 as a
    /// result.
    ///
    /// - Throws: ``SandboxError/Code/invalidArgument`` when all of them are taken.
    public mutating func appendVector(_ bitPattern: UInt64) throws(SandboxError) {
        switch destination {
        case .arguments where vectorCount < 8:
            mailbox.setVector(bitPattern, at: vectorCount)
        case .arguments:
            return try appendToStack(bitPattern)
        case .result:
            guard vectorCount < 1 else { throw Self.resultTooWide }
            mailbox.setVectorResult(bitPattern)
        }
        vectorCount += 1
    }

    /// Copies bytes into the argument arena and passes pointer and length as two integers. A zero byte follows them
    /// that the length does not count; they are 16-byte aligned.
    ///
    /// - Throws: ``SandboxError/Code/argumentTooLarge`` when the arena has no room for them.
    public mutating func appendBytes(_ bytes: UnsafeRawBufferPointer) throws(SandboxError) {
        let memory = unsafe memory
        let arena = memory.arena
        let room = arena.upperBound - arenaPosition
        guard UInt64(bytes.count) < room else {
            throw SandboxError(
                .argumentTooLarge,
                """
                \(bytes.count) bytes do not fit into the argument arena, which has \(room) of \(arena.count) bytes \
                free and needs one more for a terminating zero; raise argumentArenaSize.
                """
            )
        }
        // Inside the arena, by the check above.
        let destination = unsafe memory.argumentBytes(at: arenaPosition, count: bytes.count + 1)
        unsafe destination.copyMemory(from: bytes)
        unsafe destination[bytes.count] = 0
        let address = arenaPosition
        arenaPosition = min((address + UInt64(bytes.count) + 1).roundedUp(to: 16), arena.upperBound)
        try appendInteger(address)
        try appendInteger(UInt64(bytes.count))
    }

    private mutating func appendToStack(_ word: UInt64) throws(SandboxError) {
        guard stackArgumentCount < Int(SHIM_STACK_ARGUMENTS_MAXIMUM) else {
            throw SandboxError(
                .invalidArgument,
                "At most \(SHIM_STACK_ARGUMENTS_MAXIMUM) arguments can be passed beyond those in registers."
            )
        }
        mailbox.setStackArgument(word, at: stackArgumentCount)
        stackArgumentCount += 1
    }

    private static var resultTooWide: SandboxError {
        SandboxError(.invalidArgument, "A result is at most two integers and one floating-point number.")
    }
}
