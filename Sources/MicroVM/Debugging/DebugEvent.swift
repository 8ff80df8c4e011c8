import CShims
import Glibc
import SystemPackage

/// Something that a thread waits for along with its sockets: an eventfd(2).
final class DebugEvent: Sendable {
    let descriptor: Int32

    init() throws(SandboxError) {
        descriptor = shim_event_open()
        guard descriptor >= 0 else {
            throw SandboxError(
                .systemCallFailed,
                "Could not make an event for the debug server.",
                underlyingError: Errno(rawValue: -descriptor)
            )
        }
    }

    deinit { Glibc.close(descriptor) }

    func set() { shim_event_set(descriptor) }
    func reset() { shim_event_reset(descriptor) }
}
