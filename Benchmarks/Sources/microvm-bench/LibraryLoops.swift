import BenchmarkThreads
import Glibc
import MicroVM
import RawLoops
import Synchronization
import SystemPackage

/// The library's side of each benchmark, on the same guest module as plain C's.
///
/// Each sampler does what the function of the same name in RawLoops.h does, and takes its times at the same points.
struct LibraryLoops {
    private let module: GuestModule
    private let sandbox: Sandbox
    private let hostCallTimes: HostCallTimes

    init(modulePath: String) async throws {
        let module = try GuestModule(contentsOf: FilePath(modulePath))
        let times = HostCallTimes()
        self.module = module
        hostCallTimes = times
        sandbox = try await Sandbox(
            module,
            hostFunctions: [
                HostFunction("host_add") { (first: UInt64, second: UInt64) -> UInt64 in
                    times.record()
                    return first &+ second
                }
            ],
            configuration: .withoutPolling
        )
    }

    /// `add` with two integers, called from code isolated to the sandbox.
    func guestCall(count: Int) async throws -> [UInt64] {
        let add = try sandbox.function("add", as: ((UInt64, UInt64) -> UInt64).self)
        return try await sandbox.run { _ in
            try Placement.adoptGuest()
            var times = [UInt64](repeating: 0, count: count)
            for index in 0..<count {
                let begin = now()
                let sum = try await add(UInt64(index), 1)
                times[index] = now() - begin
                guard sum == UInt64(index) + 1 else { throw Errno.protocolError }
            }
            return times
        }
    }

    /// A stream of `add`: a sample is the time that RAW_BATCH results took, divided by as many.
    func streamCalls(count: Int) async throws -> [UInt64] {
        let add = try sandbox.function("add", as: ((UInt64, UInt64) -> UInt64).self)
        let batch = UInt64(RAW_BATCH)
        return try await sandbox.run { _ in
            try Placement.adoptGuest()
            var times = [UInt64](repeating: 0, count: count)
            // As many before the first sample, because a stream begins with few calls at a time.
            let requests = (0..<UInt64(count + 1) * batch).lazy.map { ($0, UInt64(42)) }
            var sums = add.stream(requests, maximumBatch: Int(RAW_BATCH)).makeAsyncIterator()
            var begin = now()
            for index in 0...count {
                for call in UInt64(index) * batch..<UInt64(index + 1) * batch {
                    guard try await sums.next() == call + 42 else { throw Errno.protocolError }
                }
                let end = now()
                if index > 0 { times[index - 1] = (end - begin) / batch }
                begin = end
            }
            return times
        }
    }

    /// `add` with two integers, awaited from another task.
    func guestCallHop(count: Int) async throws -> [UInt64] {
        try await sampleCallsFromElsewhere(sandbox, count)
    }

    /// `call_host` with count + 1: a sample is the time between two entries of the host function `host_add`.
    func hostCall(count: Int) async throws -> [UInt64] {
        hostCallTimes.prepare(count + 1)
        try await sandbox.run { _ in try Placement.adoptGuest() }
        let sum: UInt64 = try await sandbox.call("call_host", UInt64(count + 1))
        guard sum == UInt64(count * (count + 1) / 2) else { throw Errno.protocolError }
        return hostCallTimes.differences()
    }

    /// `fold` with 24 KiB, returning 8 KiB as a new array.
    func foldCall(count: Int) async throws -> [UInt64] {
        let fold = try sandbox.function("fold", as: (([UInt8]) -> [UInt8]).self)
        let input = (0..<24 << 10).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        return try await sandbox.run { _ in
            try Placement.adoptGuest()
            var times = [UInt64](repeating: 0, count: count)
            for index in 0..<count {
                let begin = now()
                let output = try await fold(input)
                times[index] = now() - begin
                guard output.count == 8 << 10 else { throw Errno.protocolError }
            }
            return times
        }
    }

    /// From the parsed module to `add` returned; the sandbox's end is not counted.
    ///
    /// The new sandbox's thread stays where it is begun, as plain C's would only on one processor.
    func coldStart(count: Int) async throws -> [UInt64] {
        var times: [UInt64] = []
        for _ in 0..<count {
            let begin = now()
            let sandbox = try await Sandbox(module, hostFunctions: [.hostAdd])
            let sum: UInt64 = try await sandbox.call("add", UInt64(2), UInt64(3))
            times.append(now() - begin)
            guard sum == 5 else { throw Errno.protocolError }
            await sandbox.close()
        }
        return times
    }

    /// `spin` for a millisecond, then from kill() entered to the call ended, as its own thread sees it.
    func killLatency(count: Int) async throws -> [UInt64] {
        let killer = try Killer()
        var times: [UInt64] = []
        let sandbox = try await newSandbox()
        let snapshot = try await sandbox.snapshot()
        while times.count < count {
            if let time = try await kill(sandbox, by: killer) { times.append(time) }
            try await sandbox.restore(to: snapshot)
        }
        await sandbox.close()
        return times
    }

    /// The same one after another with as many sandboxes as samples, which are there all the while.
    func killMany(count: Int) async throws -> [UInt64] {
        try raiseDescriptorLimit()
        let killer = try Killer()
        var sandboxes: [Sandbox] = []
        for _ in 0..<count { sandboxes.append(try await newSandbox()) }
        var times: [UInt64] = []
        for sandbox in sandboxes {
            if let time = try await kill(sandbox, by: killer) { times.append(time) }
        }
        for sandbox in sandboxes { await sandbox.close() }
        return times
    }

    private func newSandbox() async throws -> Sandbox {
        return try await Sandbox(module, hostFunctions: [.hostAdd], configuration: .withoutPolling)
    }

    /// Has a call of `spin` killed; nothing where the killer found no guest running.
    private func kill(_ sandbox: Sandbox, by killer: Killer) async throws -> UInt64? {
        try await sandbox.run { sandbox in
            try Placement.adoptGuest()
            // Plain C's machine is not new either.
            let _: UInt64 = try await sandbox.call("add", UInt64(1), UInt64(1))
            killer.order(sandbox.interruptHandle)
            do {
                try await sandbox.call("spin")
                throw Errno.protocolError
            } catch let error as SandboxError where error.code == .killed {
                let end = now()
                return killer.finish().map { begin in end - begin }
            }
        }
    }

    /// `count_up` for a millisecond, then from beginExternalStop() entered to returned.
    func stopLatency(count: Int) async throws -> [UInt64] {
        try await stopAndGo(count).stops
    }

    /// Stopped for a millisecond, then from endExternalStop() entered to the guest seen to count.
    func continueLatency(count: Int) async throws -> [UInt64] {
        try await stopAndGo(count).continuations
    }

    private func stopAndGo(_ count: Int) async throws -> (stops: [UInt64], continuations: [UInt64]) {
        let sandbox = try await newSandbox()
        try await sandbox.run { _ in try Placement.adoptGuest() }
        let counter = try await GuestCounter(of: sandbox)
        let handle = sandbox.interruptHandle
        try handle.beginExternalStop()
        let call = try sandbox.start("count_up")
        // Not by sleeping on this thread: where there is one processor, it is the one that has to begin the call.
        while try await sandbox.pullFullState().isInCall == false { await Task.yield() }

        var times = (stops: [UInt64](repeating: 0, count: count), continuations: [UInt64](repeating: 0, count: count))
        // As often as samples and once more, like plain C, because the first time brings the guest into its loop.
        for index in 0...count {
            watch_pause()
            let last = counter.value
            var begin = now()
            try handle.endExternalStop()
            guard counter.hasChanged(from: last) else { throw Errno.protocolError }
            if index > 0 { times.continuations[index - 1] = now() - begin }

            watch_pause()
            begin = now()
            try handle.beginExternalStop()
            if index > 0 { times.stops[index - 1] = now() - begin }
        }
        try call.killSwitch.terminate()
        _ = try? await call.result
        await sandbox.close()
        return times
    }
}

/// The word that the guest's `count_up` counts in, seen while it counts.
@safe private struct GuestCounter: @unchecked Sendable {
    // Inside the sandbox's memory, which stays where it is until the sandbox is closed: after the last look. Only
    // whole words are read, atomically.
    private let word: UnsafeRawPointer

    init(of sandbox: Sandbox) async throws {
        let address: UInt64 = try await sandbox.call("counter_address")
        self = try await sandbox.run { sandbox in
            try sandbox.memory.withBytes(of: GuestBuffer(address: address, count: 8)) { bytes in
                unsafe bytes.withUnsafeBytes { unsafe GuestCounter(word: $0.baseAddress!) }
            }
        }
    }

    private init(word: UnsafeRawPointer) { unsafe self.word = word }

    var value: UInt64 { unsafe watch_word(word) }

    func hasChanged(from last: UInt64) -> Bool { unsafe watch_until_changed(word, last) }
}

extension HostFunction {
    /// The workload's one import.
    static let hostAdd = HostFunction("host_add") { (first: UInt64, second: UInt64) in first &+ second }
}

extension SandboxConfiguration {
    /// For what is not about polled calls: a guest that polls would take some of the processor from who is measured
    /// next, and calls meant to hop would not.
    static var withoutPolling: Self {
        var configuration = Self()
        configuration.polling = .never
        return configuration
    }
}

/// `add` with two integers, each call awaited from here, which is not the sandbox's thread.
func sampleCallsFromElsewhere(_ sandbox: Sandbox, _ count: Int) async throws -> [UInt64] {
    let add = try sandbox.function("add", as: ((UInt64, UInt64) -> UInt64).self)
    try await sandbox.run { _ in try Placement.adoptGuest() }
    var times = [UInt64](repeating: 0, count: count)
    for index in 0..<count {
        let begin = now()
        let sum = try await add(UInt64(index), 1)
        times[index] = now() - begin
        guard sum == UInt64(index) + 1 else { throw Errno.protocolError }
    }
    return times
}

/// Each sandbox has two descriptors, and processes begin with few.
func raiseDescriptorLimit() throws(Errno) {
    var limit = rlimit()
    guard unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else {
        throw Errno(rawValue: errno)
    }
    limit.rlim_cur = min(limit.rlim_max, 1 << 20)
    guard unsafe setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else {
        throw Errno(rawValue: errno)
    }
}

func now() -> UInt64 {
    var time = timespec()
    // Cannot fail for this clock.
    unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}

/// When the host function was entered. Its buffer is allocated before the call that is measured.
private final class HostCallTimes: Sendable {
    private let times = Mutex<(values: [UInt64], count: Int)>(([], 0))

    func prepare(_ count: Int) {
        times.withLock { $0 = (Array(repeating: 0, count: count), 0) }
    }

    func record() {
        let time = now()
        times.withLock { times in
            guard times.count < times.values.count else { return }
            times.values[times.count] = time
            times.count += 1
        }
    }

    func differences() -> [UInt64] {
        times.withLock { times in zip(times.values, times.values.dropFirst()).map { $1 - $0 } }
    }
}
