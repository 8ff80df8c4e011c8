import Glibc

/// What this process has. Counted in the order in which a sandbox that ends gives it back, so that where no thread and
/// no machine is seen, nothing of them is counted either.
struct Resources: CustomStringConvertible {
    /// Those that sandboxes have begun.
    let sandboxThreads = Self.sandboxThreads()
    let threads = Self.names(in: "/proc/self/task").count
    let descriptors: Int
    /// Those of virtual machines and virtual CPUs.
    let machineDescriptors: Int
    let mappings: Int
    let residentKibibytes: Int

    init() {
        // From one list: of what is being closed, all is there in it or a part that says so.
        let targets = Self.descriptorTargets
        descriptors = targets.count
        machineDescriptors = targets.count { $0.hasPrefix("anon_inode:kvm-") }
        mappings = Self.lines(of: "/proc/self/maps").count
        residentKibibytes = Self.residentKibibytes()
    }

    var description: String {
        """
        \(descriptors) descriptors, \(threads) threads (\(sandboxThreads) of sandboxes), \(mappings) mappings, \
        \(residentKibibytes) KiB resident
        """
    }

    /// What the descriptors are for.
    static var descriptorTargets: [String] {
        names(in: "/proc/self/fd").compactMap { name in
            var buffer = [UInt8](repeating: 0, count: 256)
            let length = unsafe buffer.withUnsafeMutableBytes { bytes in
                // No longer than the buffer, which is told.
                unsafe readlink("/proc/self/fd/\(name)", bytes.baseAddress!, bytes.count)
            }
            return length > 0 ? String(decoding: buffer[..<length], as: UTF8.self) : nil
        }
    }

    private static func names(in folder: String) -> [String] {
        // The stream is this function's until it is closed, and an entry good until the next one is read.
        guard let stream = unsafe opendir(folder) else { return [] }
        defer { unsafe closedir(stream) }
        var names: [String] = []
        while let entry = unsafe readdir(stream) {
            unsafe withUnsafePointer(to: &entry.pointee.d_name) { name in
                unsafe name.withMemoryRebound(to: CChar.self, capacity: 256) {
                    unsafe names.append(String(cString: $0))
                }
            }
        }
        return names
    }

    private static func sandboxThreads() -> Int { threads(named: "microvm-vcpu") }

    static func threads(named name: String) -> Int {
        names(in: "/proc/self/task").count { lines(of: "/proc/self/task/\($0)/comm").first ?? "" == name }
    }

    static func lines(of path: String) -> [Substring] {
        // As above; the buffer is as long as is said.
        guard let file = unsafe fopen(path, "r") else { return [] }
        defer { unsafe fclose(file) }
        var text: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while true {
            let count = unsafe fread(&buffer, 1, buffer.count, file)
            if count == 0 { break }
            text += buffer[..<count]
        }
        return String(decoding: text, as: UTF8.self).split(separator: "\n")
    }

    private static func residentKibibytes() -> Int {
        let line = lines(of: "/proc/self/status").first { $0.hasPrefix("VmRSS:") }
        return line?.split(separator: " ").compactMap { Int($0) }.first ?? 0
    }

    /// Threads end a moment after their sandbox: waits for them, but not for ever.
    static func settled(_ isSettled: (Resources) -> Bool) async -> Resources {
        for _ in 0..<5000 {
            let now = Resources()
            if isSettled(now) { return now }
            try? await Task.sleep(for: .milliseconds(2))
        }
        return Resources()
    }

    /// Nothing more, but for less than a mapping a round: the allocator has some for each thread, and keeps a few.
    func isWithin(_ limit: Resources) -> Bool {
        descriptors <= limit.descriptors && threads <= limit.threads && mappings <= limit.mappings + 60
    }
}
