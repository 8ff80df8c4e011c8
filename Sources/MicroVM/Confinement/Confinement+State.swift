#if Confinement
import CCapabilities
import CShims

extension Confinement {
    /// What confines the calling thread, by whomever it was done.
    public struct State: Sendable, Hashable {
        /// The names of the capabilities that the thread has in any of its sets: effective, permitted, inheritable and
        /// ambient.
        public let capabilities: [String]
        /// The names of those that programs it runs could gain.
        public let boundingCapabilities: [String]
        /// Whether programs that it runs can gain no rights.
        public let forbidsNewPrivileges: Bool
        /// Whether its system calls are filtered.
        public let filtersSystemCalls: Bool
        /// Whether it is filtered as its role in this library needs, more narrowly than the process is.
        public let isNarrowed: Bool

        /// Whether it has no capability, can gain none, and is filtered.
        public var isConfined: Bool { capabilities.isEmpty && forbidsNewPrivileges && filtersSystemCalls }

        /// Asks the kernel about the calling thread.
        public static func current() -> State {
            State(
                capabilities: names { capability in
                    isInSet(capability) || shim_ambient_capability(capability)
                },
                boundingCapabilities: names { shim_bounding_capability($0) },
                forbidsNewPrivileges: shim_has_no_new_privileges(),
                filtersSystemCalls: shim_seccomp_mode() == 2,
                isNarrowed: shim_thread_is_confined()
            )
        }

        private static func isInSet(_ capability: cap_value_t) -> Bool {
            // Each call makes a state of its own, which is freed here.
            guard let state = unsafe cap_get_proc() else { return false }
            defer { unsafe _ = cap_free(UnsafeMutableRawPointer(state)) }
            return [CAP_EFFECTIVE, CAP_PERMITTED, CAP_INHERITABLE].contains { set in
                var value = CAP_CLEAR
                return unsafe cap_get_flag(state, capability, set, &value) == 0 && value == CAP_SET
            }
        }

        private static func names(where condition: (cap_value_t) -> Bool) -> [String] {
            (0..<cap_max_bits()).filter(condition).map { capability in
                guard let name = unsafe cap_to_name(capability) else { return "\(capability)" }
                defer { unsafe _ = cap_free(UnsafeMutableRawPointer(name)) }
                return unsafe String(cString: name)
            }
        }
    }
}
#endif
