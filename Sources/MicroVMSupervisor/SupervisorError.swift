/// Why a supervisor did not do what it was asked to.
public struct SupervisorError: Error, Sendable, Hashable, CustomStringConvertible {
    /// What went wrong, as a value to compare with.
    public enum Code: String, Sendable, Hashable, CaseIterable {
        /// There is no module of that name.
        case unknownModule
        /// There is a module of that name already.
        case moduleExists
        /// The module exports no such function.
        case unknownFunction
        /// A name, a label, an argument or a limit is not one.
        case invalidRequest
        /// There is no such call, or it has been forgotten.
        case unknownCall
        /// The call is over, so that nothing can be done about it any more.
        case callFinished
        /// The call has not begun, so that there is nothing to be seen of it yet.
        case callNotRunning
        /// There is no such snapshot.
        case unknownSnapshot
        /// As many snapshots are kept as may be.
        case tooManySnapshots
        /// As many calls wait as may.
        case queueFull
        /// The supervisor shuts down.
        case shuttingDown
        /// The call's limits can never be met: it needs more memory than all calls together may have.
        case limitTooSmall
    }

    /// What went wrong.
    public var code: Code
    /// A full sentence for a person.
    public var message: String

    init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
    }

    /// The code and the message.
    public var description: String { "\(code.rawValue): \(message)" }
}
