/// A line of /proc/self/maps.
struct MemoryMapping {
    var range: Range<UInt>
    /// As it is printed there, such as `rw-p`.
    var access: Substring

    static var all: [MemoryMapping] {
        Resources.lines(of: "/proc/self/maps").compactMap { line in
            let words = line.split(separator: " ")
            let bounds = words[0].split(separator: "-").compactMap { UInt($0, radix: 16) }
            return bounds.count == 2 ? MemoryMapping(range: bounds[0]..<bounds[1], access: words[1]) : nil
        }
    }
}
