#if Confinement
import CSeccomp

/// A system call that a filter permits, with the values that its arguments must have.
struct SystemCallRule: Sendable {
    /// What the bits of `mask` of an argument must be.
    struct Argument: Sendable {
        var index: UInt32
        var mask: UInt64
        var value: UInt64

        /// An argument of 32 bits, which is all that the kernel reads of it.
        static func word(_ index: UInt32, _ value: UInt32) -> Argument {
            Argument(index: index, mask: 0xffff_ffff, value: UInt64(value))
        }

        static func bits(_ index: UInt32, _ mask: UInt64, are value: UInt64 = 0) -> Argument {
            Argument(index: index, mask: mask, value: value)
        }
    }

    enum Action: Sendable {
        case allow
        /// The system call fails as if the kernel did not have it.
        case deny(errno: UInt32)
        case killProcess

        var rawValue: UInt32 {
            switch self {
            case .allow: UInt32(SCMP_ACT_ALLOW)
            case .deny(let errno): 0x0005_0000 | errno & 0xffff  // SCMP_ACT_ERRNO
            case .killProcess: UInt32(SCMP_ACT_KILL_PROCESS)
            }
        }
    }

    var name: String
    var arguments: [Argument]
    var action: Action

    init(_ name: String, _ arguments: Argument..., action: Action = .allow) {
        self.name = name
        self.arguments = arguments
        self.action = action
    }
}
#endif
