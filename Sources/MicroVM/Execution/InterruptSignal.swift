import CShims
import SystemPackage

/// The real-time signal that kicks virtual CPUs out of the guest.
struct InterruptSignal {
    let number: Int32

    static func isAvailable(offset: Int32) -> Bool {
        offset >= 0 && offset <= shim_signal_maximum() - shim_signal_minimum()
    }

    /// Installs the handler, once in a process for each number.
    init(offset: Int32) throws(SandboxError) {
        number = shim_signal_minimum() + offset
        let code = shim_interrupt_install(number)
        guard code == 0 else {
            throw SandboxError(
                .systemCallFailed,
                "Could not install the handler of signal SIGRTMIN+\(offset).",
                underlyingError: Errno(rawValue: code)
            )
        }
    }
}
