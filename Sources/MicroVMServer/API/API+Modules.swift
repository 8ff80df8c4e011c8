#if Server
import MicroVM
import MicroVMSupervisor

extension API {
    /// How the calls of an uploaded module are run. What is not set is as the server has it.
    package struct ModuleOptions: Codable, Sendable, Hashable {
        package var poolMinimum: Int?
        package var poolMaximum: Int?
        package var memoryBytes: UInt64?
        package var stackBytes: UInt64?
        package var timeMicroseconds: Double?
        package var cpuTimeMicroseconds: Double?
        package var outputBytes: UInt64?
        package var cpuTimePerMinuteMicroseconds: Double?
        package var outputBytesPerMinute: UInt64?

        package init() {}
    }

    /// The size of a pool.
    package struct PoolSize: Codable, Sendable, Hashable {
        package var minimum: Int
        package var maximum: Int

        package init(minimum: Int, maximum: Int) {
            self.minimum = minimum
            self.maximum = maximum
        }

        private enum CodingKeys: String, CodingKey, CaseIterable { case minimum, maximum }

        package init(from decoder: any Decoder) throws {
            try decoder.allowOnly(CodingKeys.self)
            let container = try decoder.container(keyedBy: CodingKeys.self)
            minimum = try container.decode(Int.self, forKey: .minimum)
            maximum = try container.decode(Int.self, forKey: .maximum)
        }
    }

    /// A module's pool.
    package struct Pool: Codable, Sendable, Hashable {
        package var minimum: Int
        package var maximum: Int
        package var sandboxes: Int
        package var idle: Int
        package var inUse: Int
        package var waiting: Int
        package var loans: Int
        package var restores: Int
        package var failedRestores: Int
    }

    /// How many calls there have been.
    package struct Totals: Codable, Sendable, Hashable {
        package var accepted: UInt64
        package var refused: UInt64
        package var returned: UInt64
        package var faulted: UInt64
        package var killed: UInt64
        package var limited: UInt64
        package var failed: UInt64
        package var cpuTimeMicroseconds: Double
        package var outputBytes: UInt64

        init(_ totals: CallTotals) {
            accepted = totals.accepted
            refused = totals.refused
            returned = totals.returned
            faulted = totals.faulted
            killed = totals.killed
            limited = totals.limited
            failed = totals.failed
            cpuTimeMicroseconds = totals.cpuTime.microseconds
            outputBytes = totals.output
        }
    }

    /// A registered module.
    package struct Module: Codable, Sendable {
        package var name: String
        package var registered: String
        package var functions: [String]
        package var memoryBytes: UInt64
        package var pool: Pool
        package var running: Int
        package var queued: Int
        package var totals: Totals

        init(_ module: ModuleStatus) {
            name = module.name
            registered = module.registered.text
            functions = module.module.exports.filter { $0.kind == .function }.map(\.name).sorted()
            memoryBytes = module.memoryLimit
            let statistics = module.poolStatistics
            pool = Pool(
                minimum: module.pool.lowerBound,
                maximum: module.pool.upperBound,
                sandboxes: statistics.sandboxes,
                idle: statistics.idle,
                inUse: statistics.inUse,
                waiting: statistics.waiting,
                loans: statistics.loans,
                restores: statistics.restores,
                failedRestores: statistics.failedRestores
            )
            running = module.running
            queued = module.queued
            totals = Totals(module.totals)
        }
    }

    /// The modules there are.
    package struct Modules: Codable, Sendable {
        package var modules: [Module]
    }

    /// How much there is of everything.
    package struct Overview: Codable, Sendable {
        /// How long calls take: of the last ones that are over, so many of a hundred took no longer than this.
        package struct Latency: Codable, Sendable {
            package var calls: Int
            package var p50Microseconds: Double
            package var p90Microseconds: Double
            package var p99Microseconds: Double
        }

        package var started: String
        package var now: String
        package var running: Int
        package var queued: Int
        package var stopped: Int
        package var throttled: Int
        package var memoryBytes: UInt64
        package var cpuTimeInMinuteMicroseconds: Double
        package var outputBytesInMinute: UInt64
        package var poolSandboxes: Int
        package var poolInUse: Int
        package var poolMaximum: Int
        package var totals: Totals
        package var latency: Latency?
        package var isShuttingDown: Bool
    }

    /// Whether the server is well.
    package struct Health: Codable, Sendable {
        package var status: String
    }
}
#endif
