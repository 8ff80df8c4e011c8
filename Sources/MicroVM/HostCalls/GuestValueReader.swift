/// Takes values from where the guest has left them: the arguments of a host call, or the result of a guest call.
///
/// Each word is read once, and none of them is believed. There is one for each call, and it cannot be kept.
public struct GuestValueReader: ~Copyable {
    private enum Source {
        /// The address of the next argument on the guest's stack; nothing as long as none was taken from there.
        case arguments(stack: UInt64?)
        case result
    }

    private var source: Source
    private let mailbox: Mailbox
    /// Not there where the guest may be running by now, or may have written to what a pointer names. Outlives the call,
    /// and so this.
    private unowned(unsafe) let memory: GuestMemory?
    private var integerCount = 0
    private var vectorCount = 0

    private init(_ source: Source, mailbox: Mailbox, memory: GuestMemory?) {
        self.source = source
        self.mailbox = mailbox
        unsafe self.memory = memory
    }

    static func arguments(mailbox: Mailbox, memory: GuestMemory) -> GuestValueReader {
        GuestValueReader(.arguments(stack: nil), mailbox: mailbox, memory: memory)
    }

    static func result(mailbox: Mailbox, memory: GuestMemory?) -> GuestValueReader {
        GuestValueReader(.result, mailbox: mailbox, memory: memory)
    }

    /// Takes the next integer or pointer.
    ///
    /// - Throws: ``SandboxError/Code/invalidPointer`` when it is on a stack that is not the guest's.
    public mutating func nextInteger() throws(SandboxError) -> UInt64 {
        defer { integerCount += 1 }
        switch source {
        case .arguments(let stack):
            return integerCount < 6 ? mailbox.integer(at: integerCount) : try nextStackWord(at: stack)
        case .result:
            guard integerCount < 2 else { throw Self.resultTooWide }
            return mailbox.result(at: integerCount)
        }
    }

    /// Takes the bits of the next floating-point number.
    ///
    /// - Throws: ``SandboxError/Code/invalidPointer`` when it is on a stack that is not the guest's.
    public mutating func nextVector() throws(SandboxError) -> UInt64 {
        defer { vectorCount += 1 }
        switch source {
        case .arguments(let stack):
            return vectorCount < 8 ? mailbox.vector(at: vectorCount) : try nextStackWord(at: stack)
        case .result:
            guard vectorCount < 1 else { throw Self.resultTooWide }
            return mailbox.vectorResult
        }
    }

    /// Takes pointer and length, and lends the bytes they name until the guest runs again.
    ///
    /// - Throws: ``SandboxError/Code/invalidPointer`` when the guest could not read all of them itself;
    ///   ``SandboxError/Code/invalidResult`` for a ``GuestRegisterValue``, which has none.
    public mutating func nextBytes() throws(SandboxError) -> UnsafeRawBufferPointer {
        guard let memory = unsafe memory else {
            throw SandboxError(.invalidResult, "A value that reads the guest's memory is no GuestRegisterValue.")
        }
        let address = try nextInteger()
        let count = try nextInteger()
        return unsafe UnsafeRawBufferPointer(try memory.guestBytes(at: address, count: count, for: .read))
    }

    private mutating func nextStackWord(at address: UInt64?) throws(SandboxError) -> UInt64 {
        guard let memory = unsafe memory else { throw Self.resultTooWide }
        // At the import's entry %rsp points to the return address, and the arguments follow it.
        let address = address ?? mailbox.stackPointer &+ 8
        let word = unsafe try memory.guestBytes(at: address, count: 8, for: .read).loadUnaligned(as: UInt64.self)
        source = .arguments(stack: address &+ 8)
        return word
    }

    private static var resultTooWide: SandboxError {
        SandboxError(.invalidResult, "A result is at most two integers and one floating-point number.")
    }
}
