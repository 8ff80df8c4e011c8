import BenchmarkThreads
import SystemPackage

/// Which processors the process's threads run on while a benchmark does.
enum Placement {
    /// All on one.
    case oneProcessor
    /// The virtual CPUs' threads on another one than the rest.
    case twoProcessors
    /// Wherever the scheduler puts them.
    case anywhere

    /// In words, what becomes of this placement where the process runs.
    var outcome: String {
        switch self {
        case .oneProcessor: "one processor"
        case .anywhere: "all processors"
        case .twoProcessors: Self.hasTwoProcessors ? "two processors" : "one processor for want of two"
        }
    }

    /// Whether the process may run on more than one, no placement being in force.
    static var hasTwoProcessors: Bool { placement_has_two_processors() }

    /// Moves every thread, also those of the cooperative pool, until ``end()``.
    func begin() throws(Errno) {
        if self == .anywhere { return }
        try check(placement_begin(self == .twoProcessors))
    }

    static func end() throws(Errno) {
        try check(placement_end())
    }

    /// Moves the calling thread, a virtual CPU's, to where the placement in force has such threads.
    static func adoptGuest() throws(Errno) {
        try check(placement_adopt_guest())
    }
}
