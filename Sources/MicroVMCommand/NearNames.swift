/// Finds what may have been meant by a name that is not there.
enum NearNames {
    private static let most = 3
    /// Longer names are not looked at: a module can be made of them.
    private static let longest = 128

    /// At most three of the names, the nearest first: those that differ by a few letters, then those that contain the
    /// name, as mangled ones do.
    static func find(_ name: String, in names: [String]) -> [String] {
        let wanted = Array(name.lowercased().utf8)
        guard !wanted.isEmpty, wanted.count <= longest else { return [] }
        let allowed = max(1, wanted.count / 3)
        var ranked: [(name: String, distance: Int)] = []
        for candidate in names where candidate.utf8.count <= longest {
            let other = Array(candidate.lowercased().utf8)
            if abs(other.count - wanted.count) <= allowed, case let distance = distance(wanted, other),
                distance <= allowed
            {
                ranked.append((candidate, distance))
            } else if wanted.count >= 3, candidate.lowercased().contains(name.lowercased()) {
                ranked.append((candidate, longest + other.count))
            }
        }
        return ranked.sorted { ($0.distance, $0.name) < ($1.distance, $1.name) }.prefix(most).map(\.name)
    }

    /// The least number of letters to insert, remove or change.
    private static func distance(_ left: [UInt8], _ right: [UInt8]) -> Int {
        var row = Array(0...right.count)
        for (index, letter) in left.enumerated() {
            var diagonal = row[0]
            row[0] = index + 1
            for column in right.indices {
                let changed = diagonal + (letter == right[column] ? 0 : 1)
                diagonal = row[column + 1]
                row[column + 1] = min(changed, diagonal + 1, row[column] + 1)
            }
        }
        return row[right.count]
    }
}
