public import SystemPackage

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
            case poisoned, closed, busy, reentrantCall, callTooDeep, contextExpired
            case incompatibleSnapshot, invalidSnapshot, outOfMemory
            case poolExhausted, poolShutDown
            case killed, timeLimitExceeded, cpuTimeLimitExceeded, taskCancelled, guestFault
            case confinementFailed, confinementViolated
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
        /// An earlier call was killed or faulted half way, so the guest's memory may be inconsistent; a restore heals
        /// it.
        public static let poisoned = Code(.poisoned)
        /// The sandbox has been closed.
        public static let closed = Code(.closed)
        /// A guest call was begun while another one of the same sandbox is still under way, or something that must not
        /// come in between.
        public static let busy = Code(.busy)
        /// A host function called the sandbox that is waiting for it, instead of its ``HostCallContext``: it would have
        /// waited for itself for ever.
        public static let reentrantCall = Code(.reentrantCall)
        /// Nested calls are deeper than ``SandboxConfiguration/maximumCallDepth``.
        public static let callTooDeep = Code(.callTooDeep)
        /// A ``HostCallContext`` was used after its host call, or on another thread than it may be.
        public static let contextExpired = Code(.contextExpired)
        /// A snapshot is of another module, of other memory sizes or of other host functions.
        public static let incompatibleSnapshot = Code(.incompatibleSnapshot)
        /// A file is no snapshot, is not whole, or was made for another processor.
        public static let invalidSnapshot = Code(.invalidSnapshot)
        /// The guest's memory cannot grow any more.
        public static let outOfMemory = Code(.outOfMemory)
        /// All sandboxes of a pool are lent, and no more callers may wait for one, or this one has waited long enough.
        public static let poolExhausted = Code(.poolExhausted)
        /// A pool has been shut down and lends no more sandboxes.
        public static let poolShutDown = Code(.poolShutDown)
        /// The call was ended by ``LinuxInterruptHandle/kill()`` or ``KillSwitch/terminate()``.
        public static let killed = Code(.killed)
        /// The call was ended because its time limit had passed.
        public static let timeLimitExceeded = Code(.timeLimitExceeded)
        /// The call was ended because it had used up its CPU time.
        public static let cpuTimeLimitExceeded = Code(.cpuTimeLimitExceeded)
        /// The call was ended because the Swift task that awaited it was cancelled.
        public static let taskCancelled = Code(.taskCancelled)
        /// The guest did something illegal; ``SandboxError/fault`` says what.
        public static let guestFault = Code(.guestFault)
        /// The process could not be confined, or not as it was asked for; the message says what is missing.
        public static let confinementFailed = Code(.confinementFailed)
        /// The call was ended because its thread attempted a system call that its confinement forbids, as a rule in a
        /// host function; the message names it.
        public static let confinementViolated = Code(.confinementViolated)
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
    public var fault: GuestFault? { details?.fault }
    /// Where a call was when it was killed, when its time was over, or when its task was cancelled.
    public var interruption: GuestInterruption? { details?.interruption }
    /// What the call had cost, when the guest, a kill, a limit or a cancellation ended it.
    public var statistics: CallStatistics? { details?.statistics }
    /// The file to which the call's core dump was written, where ``SandboxConfiguration/coreDumps`` says so.
    public var coreDump: FilePath? { try? details?.coreDump?.get() }
    /// Why there is no core dump where there should be one. The call itself ended as ``code`` says.
    public var coreDumpFailure: (any Error)? {
        guard case .failure(let error) = details?.coreDump else { return nil }
        return error
    }
    /// The error that caused this one: an `Errno` for failed system calls; for a call that was ended from outside, what
    /// its host function threw when it ended after that.
    public var underlyingError: (any Error)?
    private let details: Details?

    typealias CoreDumpResult = Result<FilePath, SandboxError>

    /// What is known about the end of a call. Behind one reference, so that an error is quickly thrown.
    final class Details: Sendable {
        let fault: GuestFault?
        let interruption: GuestInterruption?
        let coreDump: CoreDumpResult?
        private let meter: CallMeter
        /// Put into durations when somebody asks.
        var statistics: CallStatistics { meter.statistics }

        /// - Parameter meter: of a call that has ended.
        init(
            fault: GuestFault? = nil,
            interruption: GuestInterruption? = nil,
            coreDump: CoreDumpResult? = nil,
            meter: CallMeter
        ) {
            self.fault = fault
            self.interruption = interruption
            self.coreDump = coreDump
            self.meter = meter
        }
    }

    init(
        _ code: Code,
        _ message: String? = nil,
        _ details: Details? = nil,
        underlyingError: (any Error)? = nil
    ) {
        self.code = code
        text = message
        self.details = details
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
        case .cpuTimeLimitExceeded: "was ended because it had used up its CPU time"
        case .guestFault: "faulted"
        case .confinementViolated: "was ended because its thread attempted what its confinement forbids"
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
