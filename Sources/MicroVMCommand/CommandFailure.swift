import MicroVM
import SystemPackage

/// Why a command did not do what it was asked to.
struct CommandFailure: Error {
    var status: ExitStatus
    /// The name of the failure in JSON: that of ``SandboxError/Code``, or one of the command's own.
    var code: String
    /// Full sentences.
    var message: String

    init(_ status: ExitStatus, _ code: String, _ message: String) {
        self.status = status
        self.code = code
        self.message = message
    }

    /// What the library has refused; not how a guest call ended.
    init(_ error: SandboxError) {
        // What the system said; other causes are in the message already.
        let cause = (error.underlyingError as? Errno).map { " (\($0).)" } ?? ""
        self.init(Self.status(of: error.code), error.code.description, error.message.printable + cause)
    }

    private static func status(of code: SandboxError.Code) -> ExitStatus {
        switch code {
        case .kvmUnavailable: .unavailable
        case .invalidModule, .missingImports, .unknownExport, .invalidResult: .unusable
        case .invalidConfiguration, .invalidArgument, .argumentTooLarge: .usage
        default: .systemError
        }
    }
}
