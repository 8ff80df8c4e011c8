import ArgumentParser
import BenchmarkThreads
import Foundation
import MicroVM
import RawLoops

@main
struct MicroVMBench: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "microvm-bench",
        abstract: "Measures the library beside plain C that does the same jobs on /dev/kvm.",
        discussion: """
            Both run the same guest module, and take turns in small batches, so that what else the machine does hits \
            both, with their threads confined to the same processors. Times are microseconds; a ratio is the \
            library's median over plain C's.

            Build it optimised: swift run -c release --package-path Benchmarks microvm-bench
            """
    )

    @Flag(help: "Print one JSON object a line instead of a table.")
    var json = false

    @Flag(
        help: """
            Confine the process before anything is measured. What that costs shows between runs with and without it: \
            plain C is confined as well. Only benchmarks on one processor run then: a confined virtual CPU's thread \
            moves to no other.
            """
    )
    var confined = false

    @Option(
        help: """
            Samples of each quick benchmark; kill_thousand takes half of it, cold_start, kills and stops a tenth, the \
            latter two at least 300.
            """
    )
    var iterations = 2000

    @Argument(help: "The benchmarks to run, by name; all when none is named.")
    var benchmarks: [String] = []

    func validate() throws {
        guard iterations >= 10 else {
            throw ValidationError("--iterations must be at least 10.")
        }
    }

    func run() async throws {
        guard let modulePath = Bundle.module.path(forResource: "workload", ofType: "so") else {
            throw ValidationError("The guest module workload.so is missing beside the executable. Build it again.")
        }
        let module = try RawModule(path: modulePath)
        let library = try await LibraryLoops(modulePath: modulePath)
        let restores = try await RestoreLoops(modulePath: modulePath)
        let large = try await RestoreLoops(modulePath: modulePath, memoryLimit: 1 << 30)
        let hot = try await HotLoops(modulePath: modulePath)
        let known =
            try Benchmark.all(module: module, library: library) + Benchmark.hot(module, library, hot)
            + Benchmark.restores(module, restores, large, SupervisionLoops(modulePath: modulePath))
        if let stranger = benchmarks.first(where: { name in !known.contains { $0.name == name } }) {
            let names = known.map(\.name).joined(separator: ", ")
            throw ValidationError("There is no benchmark \(stranger). There are: \(names).")
        }

        if confined {
            // Threads are placed, and counted, by way of /proc.
            try Confinement.apply { $0.permissions = [.makeSandboxes, .readFiles, .writeFiles] }
        }
        if !json {
            print(Report.tableHeader)
        }
        var complained = false
        for benchmark in known where benchmarks.isEmpty || benchmarks.contains(benchmark.name) {
            if confined, benchmark.placement != .oneProcessor { continue }
            if benchmark.needsTwoProcessors, !Placement.hasTwoProcessors {
                complain("\(benchmark.name) is left out, because it needs two processors.")
                continue
            }
            let report = try await benchmark.run(iterations: iterations)
            print(json ? report.jsonLine : report.tableRows)
            fflush(nil)
            complained = complained || !report.complaints.isEmpty
        }
        if complained {
            complain("Some of these results are not of what was to be measured; they say so.")
            throw ExitCode.failure
        }
    }

    /// Where it is no part of the results.
    private func complain(_ text: String) {
        FileHandle.standardError.write(Data((text + "\n").utf8))
    }
}
