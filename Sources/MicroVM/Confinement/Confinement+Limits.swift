#if Confinement
import Glibc
import SystemPackage

extension Confinement {
    /// Limits of the process (setrlimit(2)), soft and hard ones alike; nothing stays as it is. A limit is never raised.
    public struct Limits: Sendable, Hashable {
        /// The bytes of the core file that the kernel writes when the process crashes: zero unless set, because all
        /// guests' memory would be in it. ``CoreDumpPolicy`` is not concerned.
        public var coreFileSize: UInt64? = 0
        /// The bytes of memory that the process may lock: zero unless set.
        public var lockedMemory: UInt64? = 0
        /// One more than the highest number of a descriptor. Each sandbox takes two, and one for its memory.
        public var openFiles: UInt64?
        /// The bytes of the largest file that the process may write; more end it by SIGXFSZ.
        public var fileSize: UInt64?
        /// How many threads the process's user may have.
        public var threads: UInt64?
        /// The bytes of addresses that the process may map. Sandboxes reserve addresses, not memory.
        public var addressSpace: UInt64?

        /// No core file, and no locked memory.
        public init() {}

        var values: [(resource: __rlimit_resource, limit: UInt64)] {
            let all = [
                (RLIMIT_CORE, coreFileSize), (__RLIMIT_MEMLOCK, lockedMemory), (RLIMIT_NOFILE, openFiles),
                (RLIMIT_FSIZE, fileSize), (__RLIMIT_NPROC, threads), (RLIMIT_AS, addressSpace),
            ]
            return all.compactMap { resource, limit in limit.map { (resource, $0) } }
        }

        static func set(_ resource: __rlimit_resource, to value: UInt64) throws(SandboxError) {
            var limit = rlimit()
            // The structure outlives both calls.
            var succeeds = unsafe getrlimit(__rlimit_resource_t(resource.rawValue), &limit) == 0
            if succeeds {
                limit.rlim_max = min(limit.rlim_max, rlim_t(value))
                limit.rlim_cur = min(limit.rlim_cur, limit.rlim_max)
                succeeds = unsafe setrlimit(__rlimit_resource_t(resource.rawValue), &limit) == 0
            }
            guard succeeds else {
                throw SandboxError(
                    .confinementFailed,
                    "The limit \(resource.rawValue) of the process cannot be set to \(value).",
                    underlyingError: Errno(rawValue: errno)
                )
            }
        }
    }
}
#endif
