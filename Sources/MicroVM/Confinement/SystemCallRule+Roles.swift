#if Confinement
import CShims
import Glibc

/// What each role may do. A line is here because code of the library, of the Swift runtime or of the C library that the
/// role's threads run needs it; the article Confining processes says so in words.
extension SystemCallRule {
    // MARK: - Roles

    /// The thread of a virtual CPU: it runs the guest, answers its exits, and runs synchronous host functions.
    static var virtualCPU: [SystemCallRule] {
        common + requests(SHIM_REQUESTS_VIRTUAL_CPU) + requests(SHIM_REQUESTS_MEMORY) + requests(SHIM_REQUESTS_PAGES)
            + requests(SHIM_REQUESTS_TERMINAL_SIZE)
    }

    /// The thread that serves page faults: it waits for messages, reads sources, and fills pages.
    static var pageFaults: [SystemCallRule] { common + requests(SHIM_REQUESTS_PAGES) }

    /// Everybody else, and with them the threads above, which have both filters.
    static func process(_ permissions: Confinement.Permissions) -> [SystemCallRule] {
        var rules = common + threads + descriptors
        for group in [
            SHIM_REQUESTS_VIRTUAL_CPU, SHIM_REQUESTS_MEMORY, SHIM_REQUESTS_PAGES, SHIM_REQUESTS_TERMINAL,
        ] { rules += requests(group) }
        if permissions.contains(.makeSandboxes) { rules += requests(SHIM_REQUESTS_MACHINE) }
        if !permissions.isDisjoint(with: [.readFiles, .writeFiles]) { rules += filesForReading }
        if !permissions.isDisjoint(with: [.newFiles, .writeFiles]) { rules += newFiles }
        if permissions.contains(.writeFiles) { rules += filesForWriting }
        if permissions.contains(.network) { rules += network }
        if permissions.contains(.loadCode) { rules += named("mmap mprotect pkey_mprotect") }
        if permissions.contains(.childProcesses) { rules += childProcesses }
        return rules
    }

    // MARK: - Parts

    /// What every thread of a Swift program needs once it runs.
    private static var common: [SystemCallRule] {
        let own = UInt32(getpid())
        let noExecution = Argument.bits(2, UInt64(PROT_EXEC))
        return named(
            // Locks, and giving way.
            "futex sched_yield membarrier",
            // What is open.
            """
            read readv pread64 preadv write writev pwrite64 pwritev lseek close ftruncate fallocate fstat poll \
            ppoll restart_syscall
            """,
            // Memory: of the allocator, of guests, and files in memory for snapshots.
            "munmap mremap madvise mincore brk memfd_create",
            // Time, where the C library does not have it without a system call.
            "clock_gettime clock_getres gettimeofday time clock_nanosleep nanosleep getcpu getrusage",
            // Limits of calls.
            "timer_create timer_settime timer_gettime timer_getoverrun timer_delete",
            // Signals, and who one is.
            """
            rt_sigprocmask rt_sigreturn sigaltstack getpid gettid getppid getpgrp getpgid getsid getuid geteuid \
            getgid getegid sched_getaffinity getrandom capget exit exit_group
            """
        ) + [
            SystemCallRule("mmap", noExecution), SystemCallRule("mprotect", noExecution),
            // By a descriptor, not by a path.
            SystemCallRule("newfstatat", .word(3, 0x1000)),  // AT_EMPTY_PATH
            SystemCallRule("statx", .bits(2, 0x1000, are: 0x1000)),
            // To this process alone: kicks of virtual CPUs, raise(3), and copies of memory whose file may shrink.
            SystemCallRule("tgkill", .word(0, own)), SystemCallRule("rt_tgsigqueueinfo", .word(0, own)),
            SystemCallRule("process_vm_readv", .word(0, own)),
            // Looking at limits, not setting them.
            SystemCallRule("getrlimit"), SystemCallRule("prlimit64", .bits(2, .max)),
        ] + threadControl
    }

    /// Naming threads and mappings, and asking what confines a thread. The C library's names of these are not imported.
    private static var threadControl: [SystemCallRule] {
        let dumpable: UInt32 = 3
        let setName: UInt32 = 15
        let name: UInt32 = 16
        let seccompMode: UInt32 = 21
        let boundingCapability: UInt32 = 23
        let noNewPrivileges: UInt32 = 39
        let ambientCapability: UInt32 = 47
        let isSet: UInt32 = 1
        let setMappingName: UInt32 = 0x5356_4d41
        let options = [dumpable, setName, name, seccompMode, boundingCapability, noNewPrivileges, setMappingName]
        return options.map { SystemCallRule("prctl", .word(0, $0)) } + [
            SystemCallRule("prctl", .word(0, ambientCapability), .word(1, isSet))
        ]
    }

    /// Beginning threads, and the signals of the process.
    private static var threads: [SystemCallRule] {
        let own = UInt32(getpid())
        // Of the flags: threads, and no namespaces. clone3(2) has its flags in memory, where no filter sees them;
        // without it the C library takes clone(2).
        let namespaces: UInt64 = 0x7e02_0080  // CLONE_NEW…
        let thread: UInt64 = 0x1_0100  // CLONE_THREAD and CLONE_VM
        let handlers =
            (0..<6).map { bit in
                // Signals that differ from SIGSYS in this bit: its handler stays.
                SystemCallRule(
                    "rt_sigaction",
                    .bits(0, 1 << bit, are: ~UInt64(SIGSYS) & 1 << bit)
                )
            } + [SystemCallRule("rt_sigaction", .bits(0, ~0x3f & 0xffff_ffff, are: 0x40))]
        return named(
            """
            set_robust_list rseq set_tid_address sched_setaffinity sched_getparam sched_getscheduler \
            sched_get_priority_max sched_get_priority_min rt_sigtimedwait rt_sigpending rt_sigsuspend pause \
            times uname sysinfo getpriority getresuid getresgid \
            getgroups
            """
        ) + handlers + [
            SystemCallRule("clone", .bits(0, namespaces | thread, are: thread)),
            SystemCallRule("clone3", action: .deny(errno: UInt32(ENOSYS))),
            SystemCallRule("kill", .word(0, own)),
            // libdispatch has its threads go by what their work is worth. To be worth more than others takes a
            // capability, for want of which libdispatch would write to the system's log: it is told that it was done.
            SystemCallRule("setpriority", .word(0, 0), .word(1, 0), .bits(2, 1 << 31)),
            SystemCallRule(
                "setpriority",
                .word(0, 0),
                .word(1, 0),
                .bits(2, 1 << 31, are: 1 << 31),
                action: .deny(errno: 0)
            ),
            // What a thread puts on narrows it (SECCOMP_SET_MODE_FILTER); but not one by which another process decides
            // (SECCOMP_FILTER_FLAG_NEW_LISTENER).
            SystemCallRule("seccomp", .word(0, 1), .bits(1, 8)),
        ]
    }

    /// Waiting for what is open, and talking over it.
    private static var descriptors: [SystemCallRule] {
        named(
            """
            epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 timerfd_create timerfd_settime \
            timerfd_gettime pipe2 select pselect6 dup dup2 dup3 fcntl recvfrom recvmsg recvmmsg sendto sendmsg \
            sendmmsg sendfile accept accept4 shutdown getsockopt setsockopt getsockname getpeername fsync \
            fdatasync fadvise64 flock copy_file_range splice tee msync
            """
        )
    }

    private static let accessMode = UInt64(O_ACCMODE)
    private static let making = UInt64(O_CREAT | O_EXCL | O_TRUNC) | 0x41_0000  // O_TMPFILE

    private static var filesForReading: [SystemCallRule] {
        let directory: UInt64 = 0x1_0000
        let changing = accessMode | making & ~directory
        return named(
            """
            stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents64 statfs \
            fstatfs getcwd getxattr lgetxattr fgetxattr inotify_init1 inotify_add_watch inotify_rm_watch
            """
        ) + [SystemCallRule("open", .bits(1, changing)), SystemCallRule("openat", .bits(2, changing))]
    }

    private static var newFiles: [SystemCallRule] {
        let fresh = UInt64(O_WRONLY | O_CREAT | O_EXCL)
        let directory: UInt64 = 0x1_0000
        return named("getdents64 unlink unlinkat") + [
            SystemCallRule("openat", .bits(2, accessMode | making, are: fresh)),
            SystemCallRule("openat", .bits(2, accessMode | making, are: directory)),
        ]
    }

    private static var filesForWriting: [SystemCallRule] {
        named(
            """
            open openat creat mkdir mkdirat unlink unlinkat rmdir rename renameat renameat2 link linkat symlink \
            symlinkat chmod fchmod fchmodat fchown truncate utimensat futimesat sync_file_range umask chdir fchdir
            """
        )
    }

    private static var network: [SystemCallRule] {
        let families = [AF_UNIX, AF_INET, AF_INET6].map { SystemCallRule("socket", .word(0, UInt32($0))) }
        return families + named("connect bind listen") + [SystemCallRule("socketpair", .word(0, UInt32(AF_UNIX)))]
    }

    private static var childProcesses: [SystemCallRule] {
        let namespaces: UInt64 = 0x7e02_0080  // CLONE_NEW…
        return named(
            "fork vfork execve wait4 waitid setpgid setsid kill arch_prctl chdir pidfd_open pidfd_send_signal"
        ) + [SystemCallRule("clone", .bits(0, namespaces))]
    }

    // MARK: -

    /// Rules for names with spaces in between, whatever the arguments are.
    private static func named(_ names: String...) -> [SystemCallRule] {
        names.flatMap { $0.split(separator: " ") }.map { SystemCallRule(String($0)) }
    }

    private static func requests(_ group: Int32) -> [SystemCallRule] {
        // A table of constants.
        let requests = unsafe shim_requests(group)
        return unsafe UnsafeBufferPointer(start: requests.values, count: requests.count).map { request in
            SystemCallRule("ioctl", .word(1, request))
        }
    }
}
#endif
