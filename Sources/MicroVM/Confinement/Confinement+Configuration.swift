#if Confinement
extension Confinement {
    /// What is done to the process, each step by itself.
    public struct Configuration: Sendable {
        /// Whether all threads give up all capabilities: effective, permitted, inheritable and ambient ones, and those
        /// of the bounding set where the process has CAP_SETPCAP. True unless set.
        public var dropsCapabilities = true
        /// Whether no program that the process runs can gain rights (no_new_privs). True unless set; filters need it.
        public var forbidsNewPrivileges = true
        /// What the process may use of the system's resources.
        public var limits = Limits()
        /// Whether system calls are filtered at all. True unless set.
        public var filtersSystemCalls = true
        /// Whether threads of virtual CPUs are filtered more narrowly than the rest of the process. True unless set. A
        /// sandbox can be left out by ``SandboxConfiguration/confinesThread``.
        public var filtersVirtualCPUThreads = true
        /// What the process may do beyond computing, talking over what is open, and running the sandboxes there are;
        /// making more of them, unless set.
        public var permissions: Permissions = .makeSandboxes
        /// System calls that the process may make besides, by their names, with any arguments. Threads of virtual CPUs
        /// may not.
        public var additionalSystemCalls: [String] = []
        /// What becomes of a virtual CPU's thread that attempts something else; the process ends, unless set.
        public var violations = ViolationResponse.endProcess
        /// The descriptor that a line about each violation is written to; that of standard error, unless set.
        public var reportDescriptor: Int32 = 2

        /// Everything, with the permission to make sandboxes.
        public init() {}

        func validate() throws(SandboxError) {
            guard forbidsNewPrivileges || !filtersSystemCalls else {
                throw SandboxError(
                    .invalidConfiguration,
                    "A process can filter its system calls only with forbidsNewPrivileges."
                )
            }
            guard !permissions.contains(.childProcesses) || permissions.isSuperset(of: [.readFiles, .loadCode]) else {
                throw SandboxError(
                    .invalidConfiguration,
                    "What a process runs is filtered as it is itself: childProcesses needs readFiles and loadCode."
                )
            }
        }
    }

    /// What a violation on a virtual CPU's thread does. On any other thread it ends the process: somebody else's code
    /// is at work in it, whose memory all threads share.
    public enum ViolationResponse: Sendable, Hashable {
        /// Ends the process by SIGSYS, before the system call has done anything.
        case endProcess
        /// Fails the system call with EPERM, and ends the guest call with
        /// ``SandboxError/Code/confinementViolated``; outside of a guest call, ends the process. For host functions
        /// that nobody has the time to read, at the price that somebody who has taken over the thread goes on in it.
        case endCall
    }

    /// What the process may still do, beyond the least.
    public struct Permissions: OptionSet, Sendable {
        // swift-format-ignore: AllPublicDeclarationsHaveDocumentation
        public let rawValue: UInt32

        // swift-format-ignore: AllPublicDeclarationsHaveDocumentation
        public init(rawValue: UInt32) { self.rawValue = rawValue }

        /// Make virtual machines and virtual CPUs by the `/dev/kvm` that is open, and page-fault handlers likewise.
        public static let makeSandboxes = Permissions(rawValue: 1 << 0)
        /// Open files and directories for reading, and look at them.
        public static let readFiles = Permissions(rawValue: 1 << 1)
        /// Make files that were not there before, list directories, and remove files: what core dumps need.
        public static let newFiles = Permissions(rawValue: 1 << 2)
        /// Open files for writing too, and change, rename and remove them and directories.
        public static let writeFiles = Permissions(rawValue: 1 << 3)
        /// Make sockets of the families UNIX, IPv4 and IPv6, and connect, bind and listen.
        public static let network = Permissions(rawValue: 1 << 4)
        /// Map memory that is executable, as the dynamic loader does.
        public static let loadCode = Permissions(rawValue: 1 << 5)
        /// Begin processes and run programs, which stay confined as this process is.
        public static let childProcesses = Permissions(rawValue: 1 << 6)
    }
}
#endif
