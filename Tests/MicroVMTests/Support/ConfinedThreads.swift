import Glibc
import SystemPackage

/// What `/proc` tells about each thread of this process: a confined one may look if it may read files.
struct ConfinedThread {
    var name = ""
    /// The values of CapInh, CapPrm, CapEff, CapBnd and CapAmb.
    var capabilities: [String: UInt64] = [:]
    var hasNoNewPrivileges = false
    var seccompMode = 0
    var filterCount = 0
    /// Whether it is one that the kernel has put into this process, which never runs code of the process.
    var isKernels = false

    static func all() throws -> [ConfinedThread] {
        guard let stream = unsafe opendir("/proc/self/task") else { throw Errno(rawValue: errno) }
        defer { unsafe _ = closedir(stream) }
        var threads: [ConfinedThread] = []
        // An entry is good until the next one is read.
        while let entry = unsafe readdir(stream) {
            let name = unsafe withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
                unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            guard Int(name) != nil else { continue }
            // A thread may have ended since.
            if let thread = try? ConfinedThread(folder: FilePath("/proc/self/task/\(name)")) { threads.append(thread) }
        }
        return threads
    }

    private init(folder: FilePath) throws {
        for line in try Self.text(folder.appending("status")).split(separator: "\n") {
            let parts = line.split(separator: ":", maxSplits: 1)
            guard parts.count == 2 else { continue }
            let value = String(parts[1].drop { " \t".contains($0) })
            switch parts[0] {
            case "Name": name = value
            case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
                capabilities[String(parts[0])] = UInt64(value, radix: 16)
            case "NoNewPrivs": hasNoNewPrivileges = value == "1"
            case "Seccomp": seccompMode = Int(value) ?? -1
            case "Seccomp_filters": filterCount = Int(value) ?? -1
            default: break
            }
        }
        // Behind the name, which may have anything in it: state, five numbers, the flags.
        let fields = try Self.text(folder.appending("stat")).split(separator: ")").last?.split(separator: " ") ?? []
        guard fields.count > 6, let flags = UInt64(fields[6]) else { throw Errno.invalidArgument }
        isKernels = flags & 0x4010 != 0  // PF_USER_WORKER, PF_IO_WORKER
    }

    private static func text(_ path: FilePath) throws -> String {
        let file = try FileDescriptor.open(path, .readOnly)
        return try file.closeAfter {
            unsafe try String(unsafeUninitializedCapacity: 1 << 14) { buffer in
                // Bounded by the buffer, and the count of what was read.
                unsafe try file.read(into: UnsafeMutableRawBufferPointer(buffer))
            }
        }
    }
}
