import MicroVM
import SystemPackage

/// Where the core dump is that a run has left, or why there is none.
struct CoreDumpReport: Encodable {
    var path: String?
    var failure: String?

    /// None where none was asked for.
    init?(_ error: SandboxError) {
        path = error.coreDump?.string
        failure = error.coreDumpFailure.map { "\($0)" }
        if path == nil, failure == nil { return nil }
    }

    var line: String {
        path.map { "Core dump: \($0.printable)" } ?? "No core dump was written: \((failure ?? "").printable)"
    }
}
