/// The library's side of each benchmark, on the same guest module as plain C's.
///
/// A sampler is nil as long as the library cannot do the job. Each does what the function of the same name in
/// RawLoops.h does, and takes its times at the same points.
struct LibraryLoops {
    init(modulePath: String) async throws {}

    /// `add` with two integers, called from code isolated to the sandbox.
    var guestCall: Sampler? { nil }

    /// `add` with two integers, awaited from another task.
    var guestCallHop: Sampler? { nil }

    /// `call_host` with count + 1: a sample is the time between two entries of the host function `host_add`.
    var hostCall: Sampler? { nil }

    /// `fold` with 24 KiB, returning 8 KiB as a new array.
    var foldCall: Sampler? { nil }

    /// From the parsed module to `add` returned; the sandbox's end is not counted.
    var coldStart: Sampler? { nil }

    /// `spin` for a millisecond, then from kill() entered to the call ended, as its own thread sees it.
    var killLatency: Sampler? { nil }
}
