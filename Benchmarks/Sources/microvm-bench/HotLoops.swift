import Glibc
import MicroVM
import RawLoops
import SystemPackage

/// The library's side of the benchmarks of polled calls, on the same guest module as plain C's.
///
/// The sandboxes are configured as they are for everybody who sets nothing, and the calls are ordinary ones, awaited
/// from a task that is not on the sandbox's thread.
struct HotLoops {
    private let module: GuestModule
    private let sandbox: Sandbox

    init(modulePath: String) async throws {
        module = try GuestModule(contentsOf: FilePath(modulePath))
        sandbox = try await Sandbox(module, hostFunctions: [.hostAdd])
    }

    /// `add`: a sample is the time of RAW_HOT_CALLS, divided by as many.
    func guestCall(_ share: HotShare) -> Sampler {
        { count in try await calls(of: "add", count, share) }
    }

    /// The same with a function that makes one host call.
    func hostCall(_ share: HotShare) -> Sampler {
        { count in try await calls(of: "call_host_once", count, share) }
    }

    private func calls(of name: String, _ count: Int, _ share: HotShare) async throws -> [UInt64] {
        let function = try sandbox.function(name, as: ((UInt64, UInt64) -> UInt64).self)
        try await warmUp()
        var times = [UInt64](repeating: 0, count: count)
        let each = UInt64(RAW_HOT_CALLS)
        let hits = sandbox.pollingStatistics.hits
        for index in 0..<count {
            let begin = now()
            for call in 0..<each {
                guard try await function(call, 42) == call + 42 else { throw Errno.protocolError }
            }
            times[index] = (now() - begin) / each
        }
        share.note(hits: sandbox.pollingStatistics.hits - hits, calls: each * UInt64(count))
        return times
    }

    /// `fold` with 24 KiB, returning 8 KiB as a new array: each call is a sample.
    func foldCall(_ share: HotShare) -> Sampler {
        { count in
            let fold = try sandbox.function("fold", as: (([UInt8]) -> [UInt8]).self)
            let input = (0..<24 << 10).map { UInt8(truncatingIfNeeded: $0 &* 31) }
            try await warmUp()
            // Finds the memory cold, as plain C's first one does.
            _ = try await fold(input)
            var times = [UInt64](repeating: 0, count: count)
            let hits = sandbox.pollingStatistics.hits
            for index in 0..<count {
                let begin = now()
                let output = try await fold(input)
                times[index] = now() - begin
                guard output.count == 8 << 10 else { throw Errno.protocolError }
            }
            share.note(hits: sandbox.pollingStatistics.hits - hits, calls: UInt64(count))
            return times
        }
    }

    /// Calls until they are polled ones, and for as long as plain C does before its first sample.
    private func warmUp() async throws {
        try await sandbox.run { _ in try Placement.adoptGuest() }
        let add = try sandbox.function("add", as: ((UInt64, UInt64) -> UInt64).self)
        for call in 0..<16 * UInt64(RAW_HOT_CALLS) {
            guard try await add(call, 42) == call + 42 else { throw Errno.protocolError }
        }
    }

    /// What `LibraryLoops.guestCallHop` does, with a sandbox that polls where that is worth it.
    func guestCallHop(count: Int) async throws -> [UInt64] {
        try await sampleCallsFromElsewhere(sandbox, count)
    }

    // MARK: Idling

    /// How long sandboxes are left alone.
    static let idleSeconds = 2

    /// A sample is the CPU time that the process uses while a hundred sandboxes, each just called often enough to be
    /// polled for, have nothing to do.
    func idlePool(count: Int) async throws -> [UInt64] {
        try raiseDescriptorLimit()
        var sandboxes: [Sandbox] = []
        for _ in 0..<100 {
            let sandbox = try await Sandbox(module, hostFunctions: [.hostAdd])
            try await sandbox.run { _ in try Placement.adoptGuest() }
            sandboxes.append(sandbox)
        }
        var times: [UInt64] = []
        for _ in 0..<count {
            for sandbox in sandboxes {
                for call in 0..<8 as Range<UInt64> {
                    let sum: UInt64 = try await sandbox.call("add", call, 3 as UInt64)
                    guard sum == call + 3 else { throw Errno.protocolError }
                }
            }
            times.append(try Self.cpuTimeOfIdling())
        }
        for sandbox in sandboxes { await sandbox.close() }
        return times
    }

    /// The same without them.
    static func idle(count: Int) throws -> [UInt64] {
        // The end of those of the other side goes on for a while in the kernel.
        sleep(1)
        return try (0..<count).map { _ in try cpuTimeOfIdling() }
    }

    private static func cpuTimeOfIdling() throws -> UInt64 {
        let before = try cpuTime()
        // On this thread, because a task that sleeps has others at work.
        sleep(UInt32(idleSeconds))
        return try cpuTime() - before
    }

    /// Of the process, in nanoseconds: what its guests use is part of it.
    private static func cpuTime() throws -> UInt64 {
        var usage = rusage()
        guard unsafe getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage) == 0 else { throw Errno(rawValue: errno) }
        let microseconds = [usage.ru_utime, usage.ru_stime].map { $0.tv_sec * 1_000_000 + $0.tv_usec }
        return UInt64(microseconds[0] + microseconds[1]) * 1000
    }
}

/// How many of a benchmark's calls really were polled ones.
///
/// A call that is not takes hundreds of times as long, but a median does not show a few of them.
final class HotShare: @unchecked Sendable {
    // Written and read by the one task that runs the benchmarks.
    private var hits: UInt64 = 0
    private var calls: UInt64 = 0

    private static let least = 0.99

    func note(hits: UInt64, calls: UInt64) {
        self.hits += hits
        self.calls += calls
    }

    private var value: Double { calls == 0 ? 0 : Double(hits) / Double(calls) }

    var field: (name: String, value: Double) { ("hot_share", value) }

    /// Where it was fewer than 99 of 100.
    var complaints: [String] {
        value >= Self.least ? [] : ["only \(hits) of \(calls) calls were polled ones"]
    }
}
