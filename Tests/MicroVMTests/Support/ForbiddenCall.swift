import Glibc
import RawSystemCalls

/// A system call that a confined thread may not make, with arguments that would make it succeed or do no harm.
enum ForbiddenCall: String, CaseIterable, Sendable {
    case open, openat, execve, socket, ptrace, mount, setuid, fork, unshare, bpf, setrlimit, kill, unlink
    case ioUring = "io_uring_setup"
    case writeToMemory = "process_vm_writev"
    /// Of the handler that reports violations.
    case setHandler = "rt_sigaction"
    /// Of memory that can be executed.
    case mapCode = "mmap"
    /// A virtual CPU's request that the library does not make.
    case setMSRs = "ioctl"

    /// What only the threads of virtual CPUs may not do.
    static let onVirtualCPUThreads: [ForbiddenCall] = allCases

    /// Attempts it on the calling thread.
    ///
    /// - Returns: what the kernel has returned.
    @discardableResult
    func attempt() -> Int {
        let number = unsafe system_call_number(rawValue)
        precondition(number >= 0, "no number for \(rawValue)")
        return unsafe "/etc/hostname".withCString { path in
            // The path outlives the call.
            let path = Int(bitPattern: path)
            switch self {
            case .open, .execve, .unlink: return raw_system_call(number, path, 0, 0, 0, 0)
            case .openat: return raw_system_call(number, Int(AT_FDCWD), path, 0, 0, 0)
            case .socket: return raw_system_call(number, Int(AF_INET), 1, 0, 0, 0)
            case .kill: return raw_system_call(number, 1, 0, 0, 0, 0)
            case .setHandler: return raw_system_call(number, Int(SIGSYS), 0, 0, 8, 0)
            case .setMSRs: return raw_system_call(number, -1, unlisted_virtual_cpu_request(), 0, 0, 0)
            case .mapCode: return raw_system_call(number, 0, 4096, Int(PROT_READ | PROT_EXEC), 0x22, -1)
            // A handle of no process, a state of nothing: whatever it is, it is not reached.
            default: return raw_system_call(number, -1, 0, 0, 0, 0)
            }
        }
    }
}
