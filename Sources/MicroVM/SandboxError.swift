/// The one error this library throws: what the embedder did wrong, what the machine lacks, or how a guest call ended
/// when it did not return.
///
/// Errors thrown by the embedder's own host functions are not wrapped: they reach the caller as they were thrown.
public struct SandboxError: Error, Sendable {
    /// What went wrong, as a value to compare with.
    public struct Code: Hashable, Sendable, CustomStringConvertible {
        enum Kind: String, Sendable {
            case kvmUnavailable, systemCallFailed, invalidModule, invalidConfiguration, missingImports
            case unknownExport, invalidArgument, argumentTooLarge, invalidResult, invalidPointer
            case poisoned, closed, busy, killed, timeLimitExceeded, taskCancelled, guestFault
        }

        let kind: Kind

        init(_ kind: Kind) { self.kind = kind }

        /// The name of the code, as it is written in Swift.
        public var description: String { kind.rawValue }

        /// `/dev/kvm` is missing, may not be opened, or is of a version or kind that cannot run a sandbox.
        public static let kvmUnavailable = Code(.kvmUnavailable)
        /// The operating system refused something the library needs; ``SandboxError/underlyingError`` says what.
        public static let systemCallFailed = Code(.systemCallFailed)
        /// The bytes are not a module this library can load; the message names what it refuses.
        public static let invalidModule = Code(.invalidModule)
        /// A value of the configuration is out of range, or the module does not fit into the memory it allows.
        public static let invalidConfiguration = Code(.invalidConfiguration)
        /// The module needs host functions that were not given; the message names all of them.
        public static let missingImports = Code(.missingImports)
        /// The module exports no function of that name.
        public static let unknownExport = Code(.unknownExport)
        /// An argument cannot be passed: too many of them, or a handle that belongs to another module.
        public static let invalidArgument = Code(.invalidArgument)
        /// The arguments of one call do not fit into the argument arena.
        public static let argumentTooLarge = Code(.argumentTooLarge)
        /// The guest returned a value that its declared type does not allow, such as text that is not UTF-8.
        public static let invalidResult = Code(.invalidResult)
        /// A host function used an address that the guest does not own, or may not use that way.
        public static let invalidPointer = Code(.invalidPointer)
        /// An earlier call was killed or faulted half way, so the guest's memory may be inconsistent.
        public static let poisoned = Code(.poisoned)
        /// The sandbox has been closed.
        public static let closed = Code(.closed)
        /// A guest call was begun while another one of the same sandbox is still under way.
        public static let busy = Code(.busy)
        /// The call was ended by ``LinuxInterruptHandle/kill()``.
        public static let killed = Code(.killed)
        /// The call was ended because its time limit had passed.
        public static let timeLimitExceeded = Code(.timeLimitExceeded)
        /// The call was ended because the Swift task that awaited it was cancelled.
        public static let taskCancelled = Code(.taskCancelled)
        /// The guest did something illegal; ``SandboxError/fault`` says what.
        public static let guestFault = Code(.guestFault)
    }

    /// What went wrong.
    public var code: Code
    /// A full sentence for a person, which says what to do next where something can be done.
    public var message: String {
        get {
            text ?? interruption.map { "The guest call \(code.ending ?? "ended"), at \($0.place)." } ?? code.description
        }
        set { text = newValue }
    }
    /// The message, where it is not made from the other properties when it is asked for.
    private var text: String?
    /// What the guest did, when ``code`` is ``Code/guestFault``.
    public var fault: GuestFault?
    /// Where a call was when it was killed, when its time was over, or when its task was cancelled.
    public var interruption: GuestInterruption?
    /// The error that caused this one, an `Errno` for failed system calls.
    public var underlyingError: (any Error)?

    init(
        _ code: Code,
        _ message: String? = nil,
        fault: GuestFault? = nil,
        interruption: GuestInterruption? = nil,
        underlyingError: (any Error)? = nil
    ) {
        self.code = code
        text = message
        self.fault = fault
        self.interruption = interruption
        self.underlyingError = underlyingError
    }
}

extension SandboxError.Code {
    /// How a call ended, for the codes that say so.
    var ending: String? {
        switch kind {
        case .killed: "was killed"
        case .taskCancelled: "was ended because the task that awaited it was cancelled"
        case .timeLimitExceeded: "was ended because its time limit had passed"
        case .guestFault: "faulted"
        default: nil
        }
    }
}

extension SandboxError: CustomStringConvertible {
    /// The code, the message and the cause.
    public var description: String {
        "\(code): \(message)" + (underlyingError.map { " (\($0))" } ?? "")
    }
}
