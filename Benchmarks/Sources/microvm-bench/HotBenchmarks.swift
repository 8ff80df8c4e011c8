extension Benchmark {
    /// Those of polled calls, and of what polling costs where nobody gains from it.
    static func hot(_ module: RawModule, _ library: LibraryLoops, _ hot: HotLoops) throws -> [Benchmark] {
        let machine = try RawMachine(module: module)
        let hotMachine = try RawHotMachine(module: module)
        return [
            hotCall(
                "hot_guest_call",
                hot.guestCall,
                hotMachine.guestCall,
                others: [Series(name: "guest_call", sample: library.guestCall)],
                derived: { summaries in
                    guard let ours = summaries["ours"], let call = summaries["guest_call"] else { return [] }
                    return [("of_guest_call", ours.p50 / call.p50)]
                }
            ),
            hotCall("hot_host_call", hot.hostCall, hotMachine.hostCall),
            hotCall("hot_call_24k_in_8k_out", hot.foldCall, hotMachine.foldCall),
            Benchmark(
                name: "hot_one_processor",
                ours: hot.guestCallHop,
                raw: machine.guestCallHop,
                others: [Series(name: "never", sample: library.guestCallHop)],
                derived: { summaries in
                    guard let ours = summaries["ours"], let never = summaries["never"] else { return [] }
                    return [("of_never", ours.p50 / never.p50)]
                }
            ),
            Benchmark(
                name: "idle_pool_of_100",
                batch: 1,
                share: 0,
                leastSamples: 2,
                placement: .twoProcessors,
                countsAllocations: false,
                ours: hot.idlePool,
                raw: { try HotLoops.idle(count: $0) },
                derived: { summaries in
                    guard let ours = summaries["ours"] else { return [] }
                    return [("percent_of_a_processor", ours.p50 / 1e4 / Double(HotLoops.idleSeconds))]
                }
            ),
        ]
    }

    private static func hotCall(
        _ name: String,
        _ ours: (HotShare) -> Sampler,
        _ raw: @escaping Sampler,
        others: [Series] = [],
        derived: @escaping (_ summaries: [String: Summary]) -> [(name: String, value: Double)] = { _ in [] }
    ) -> Benchmark {
        let share = HotShare()
        return Benchmark(
            name: name,
            placement: .twoProcessors,
            needsTwoProcessors: true,
            ours: ours(share),
            raw: raw,
            others: others,
            derived: { derived($0) + [share.field] },
            complaints: { share.complaints }
        )
    }
}
