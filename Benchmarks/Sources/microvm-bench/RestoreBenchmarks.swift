extension Benchmark {
    /// Those of snapshots, restores and forks.
    ///
    /// - Parameters:
    ///   - library: with 64 MiB of memory.
    ///   - large: with 1 GiB.
    ///   - supervision: of requests.
    static func restores(
        _ module: RawModule,
        _ library: RestoreLoops,
        _ large: RestoreLoops,
        _ supervision: SupervisionLoops
    ) throws -> [Benchmark] {
        let machine = try RawRestorableMachine(module: module)
        let bareExit = Series(name: "raw_call", sample: machine.guestCall)
        let many = MemoryOfMany()
        let growth = Growth()
        var benchmarks: [Benchmark] = []
        for pages in [0, 8, 64, 512] {
            benchmarks.append(
                Benchmark(
                    name: "restore_\(pages)_pages",
                    ours: library.restore(pages: UInt64(pages)),
                    raw: machine.restore(pages: pages),
                    others: [bareExit],
                    derived: ofBareExit
                )
            )
        }
        for pages in [0, 16, 64, 128, 512] {
            benchmarks.append(
                Benchmark(
                    name: "call_with_restore_\(pages)",
                    ours: library.callWithRestore(pages: UInt64(pages)),
                    raw: machine.callWithRestore(pages: pages),
                    others: [bareExit, Series(name: "raw_refault", sample: machine.callWithRefault(pages: pages))],
                    derived: { medians in
                        guard let ours = medians["ours"], let refault = medians["raw_refault"] else { return [] }
                        return ofBareExit(medians) + [("refault_of_ours", refault.p50 / ours.p50)]
                    }
                )
            )
        }
        benchmarks += [
            Benchmark(
                name: "snapshot_64_pages_of_1GiB",
                share: 0.1,
                ours: large.takeSnapshot(pages: 64),
                raw: machine.takeSnapshot(pages: 64),
                others: [Series(name: "of_64MiB", sample: library.takeSnapshot(pages: 64))],
                derived: { medians in
                    guard let ours = medians["ours"], let small = medians["of_64MiB"] else { return [] }
                    return [("of_small_memory", ours.p50 / small.p50)]
                }
            ),
            Benchmark(
                name: "fork_first_call",
                batch: 10,
                share: 0.1,
                ours: library.forkFirstCall,
                raw: machine.forkFirstCall(withCPUID: false),
                others: [Series(name: "raw_cpuid", sample: machine.forkFirstCall(withCPUID: true))],
                derived: ofRawWithCPUID
            ),
            Benchmark(
                name: "fork_from_warm",
                ours: library.forkFromWarm,
                raw: machine.guestCall,
                others: [bareExit],
                derived: ofBareExit
            ),
            Benchmark(
                name: "pool_request",
                batch: 500,
                placement: .anywhere,
                ours: library.poolRequest(tasks: 1),
                raw: machine.callWithRestore(pages: 0),
                others: [Series(name: "two_tasks", sample: library.poolRequest(tasks: 2))],
                derived: { medians in
                    guard let one = medians["ours"], let two = medians["two_tasks"] else { return [] }
                    return [("speed_of_two", one.p50 / two.p50)]
                }
            ),
            Benchmark(
                name: "supervised_call",
                batch: 500,
                placement: .anywhere,
                ours: supervision.supervised(isWatched: true),
                raw: machine.callWithRestore(pages: 0),
                others: [
                    Series(name: "unwatched", sample: supervision.supervised(isWatched: false)),
                    Series(name: "submitted", sample: supervision.submitted()),
                    Series(name: "started", sample: supervision.started),
                    Series(name: "pool_request", sample: library.poolRequest(tasks: 1)),
                ],
                derived: { medians in
                    guard let ours = medians["ours"] else { return [] }
                    return ["unwatched", "submitted", "started", "pool_request"].compactMap { name in
                        medians[name].map { ("of_\(name)", ours.p50 / $0.p50) }
                    }
                }
            ),
            Benchmark(
                name: "lazy_page",
                batch: 10,
                share: 0.05,
                placement: .twoProcessors,
                ours: library.lazyPage,
                raw: machine.lazyPage
            ),
            load("load_snapshot_1GiB", library),
            Benchmark(
                name: "thousand_sandboxes",
                batch: 1000,
                share: 0.5,
                ours: growth.watching("ours", library.thousandSandboxes(many)),
                raw: growth.watching("raw") { try module.thousand(withThreads: false, count: $0) },
                others: [
                    Series(
                        name: "raw_threads",
                        sample: growth.watching("raw_threads") { try module.thousand(withThreads: true, count: $0) }
                    )
                ],
                derived: { _ in many.fields + growth.fields }
            ),
        ]
        return benchmarks
    }

    /// Plain C would read the header and map the file: less than a call costs, so a small file is the measure.
    private static func load(_ name: String, _ library: RestoreLoops) -> Benchmark {
        Benchmark(
            name: name,
            share: 0.1,
            ours: library.load(size: 1 << 30),
            raw: library.load(size: 1 << 20)
        )
    }

    private static func ofBareExit(_ medians: [String: Summary]) -> [(name: String, value: Double)] {
        guard let ours = medians["ours"], let exit = medians["raw_call"] else { return [] }
        return [("of_bare_exit", ours.p50 / exit.p50)]
    }
}
