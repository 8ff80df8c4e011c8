extension Benchmark {
    /// Every benchmark, in the order in which they run and are printed.
    static func all(module: RawModule, library: LibraryLoops) throws -> [Benchmark] {
        let machine = try RawMachine(module: module)
        let spinner = try RawMachine(module: module)
        let counter = try RawMachine(module: module)
        return [
            Benchmark(name: "guest_call", ours: library.guestCall, raw: machine.guestCall),
            guestCallHop("guest_call_hop", .oneProcessor, machine, library),
            guestCallHop("guest_call_hop_other_processor", .twoProcessors, machine, library),
            Benchmark(
                name: "stream_calls",
                share: 0.1,
                ours: library.streamCalls,
                raw: machine.streamCalls,
                derived: { summaries in
                    guard let ours = summaries["ours"] else { return [] }
                    return [("calls_per_second", 1e6 / ours.p50)]
                }
            ),
            Benchmark(name: "host_call", ours: library.hostCall, raw: machine.hostCall),
            Benchmark(name: "call_24k_in_8k_out", ours: library.foldCall, raw: machine.foldCall),
            Benchmark(
                name: "cold_start",
                batch: 10,
                share: 0.1,
                ours: library.coldStart,
                raw: { try module.coldStart(withCPUID: false, count: $0) },
                others: [Series(name: "raw_cpuid") { try module.coldStart(withCPUID: true, count: $0) }],
                derived: ofRawWithCPUID
            ),
            killLatency("kill_latency", .twoProcessors, spinner, library),
            killLatency("kill_latency_same_processor", .oneProcessor, spinner, library),
            interruption("stop_latency", .twoProcessors, library.stopLatency, counter.stopLatency),
            interruption("continue_latency", .twoProcessors, library.continueLatency, counter.continueLatency),
            killThousand(spinner, library),
        ]
    }

    /// Beside plain C that gives the guest the whole processor as well.
    static func ofRawWithCPUID(_ medians: [String: Summary]) -> [(name: String, value: Double)] {
        guard let ours = medians["ours"], let raw = medians["raw_cpuid"] else { return [] }
        return [("of_raw_cpuid", ours.p50 / raw.p50)]
    }

    private static func guestCallHop(
        _ name: String,
        _ placement: Placement,
        _ machine: RawMachine,
        _ library: LibraryLoops
    ) -> Benchmark {
        Benchmark(
            name: name,
            placement: placement,
            ours: library.guestCallHop,
            raw: machine.guestCallHop,
            others: [
                Series(name: "raw_call", sample: machine.guestCall),
                Series(name: "handoff", sample: threadHandoff),
            ],
            derived: { summaries in
                // A call and three hand-offs between threads that are never asleep for long; and what is left of
                // plain C's own hop when its call is taken away: a hand-off round trip as it is in this use.
                guard let call = summaries["raw_call"]?.p50, let handoff = summaries["handoff"]?.p50,
                    let hop = summaries["raw"]?.p50
                else { return [] }
                return [("limit_p50", call + 3 * handoff), ("asleep_handoff_p50", hop - call)]
            }
        )
    }

    private static func killLatency(
        _ name: String,
        _ placement: Placement,
        _ machine: RawMachine,
        _ library: LibraryLoops
    ) -> Benchmark {
        interruption(name, placement, library.killLatency, machine.killLatency)
    }

    private static func interruption(
        _ name: String,
        _ placement: Placement,
        _ ours: @escaping Sampler,
        _ raw: @escaping Sampler
    ) -> Benchmark {
        Benchmark(
            name: name,
            batch: 20,
            share: 0.1,
            leastSamples: 300,
            placement: placement,
            comparesTails: true,
            ours: ours,
            raw: raw
        )
    }

    private static func killThousand(_ machine: RawMachine, _ library: LibraryLoops) -> Benchmark {
        Benchmark(
            name: "kill_thousand",
            // All sandboxes of one batch are there at once: a thousand, unless fewer samples are asked for.
            batch: 1000,
            share: 0.5,
            placement: .twoProcessors,
            ours: library.killMany,
            raw: machine.killLatency,
            others: [Series(name: "single", sample: library.killLatency)],
            derived: { summaries in
                guard let ours = summaries["ours"], let single = summaries["single"] else { return [] }
                let limit = Double(ours.count) * single.p90
                return [("total", ours.total), ("limit_total", limit), ("ratio_total", ours.total / limit)]
            }
        )
    }
}
