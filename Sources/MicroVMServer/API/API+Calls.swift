#if Server
import HTTPTypes
import MicroVM
package import MicroVMSupervisor

extension API {
    /// What one call may use.
    package struct Limits: Codable, Sendable, Hashable {
        package var timeMicroseconds: Double?
        package var cpuTimeMicroseconds: Double?
        package var outputBytes: UInt64?
        package var queueTimeMicroseconds: Double?

        package init(_ limits: CallLimits) {
            timeMicroseconds = limits.time?.microseconds
            cpuTimeMicroseconds = limits.cpuTime?.microseconds
            outputBytes = limits.output
            queueTimeMicroseconds = limits.queueTime?.microseconds
        }

        private enum CodingKeys: String, CodingKey, CaseIterable {
            case timeMicroseconds, cpuTimeMicroseconds, outputBytes, queueTimeMicroseconds
        }

        package init(from decoder: any Decoder) throws {
            try decoder.allowOnly(CodingKeys.self)
            let container = try decoder.container(keyedBy: CodingKeys.self)
            timeMicroseconds = try container.decodeIfPresent(Double.self, forKey: .timeMicroseconds)
            cpuTimeMicroseconds = try container.decodeIfPresent(Double.self, forKey: .cpuTimeMicroseconds)
            outputBytes = try container.decodeIfPresent(UInt64.self, forKey: .outputBytes)
            queueTimeMicroseconds = try container.decodeIfPresent(Double.self, forKey: .queueTimeMicroseconds)
        }

        func limits() throws(Failure) -> CallLimits {
            func duration(_ microseconds: Double?, _ name: String) throws(Failure) -> Duration? {
                guard let microseconds else { return nil }
                guard let duration = Duration(microseconds: microseconds) else {
                    throw Failure(.badRequest, "invalidRequest", "\(name) must lie between 0 and 1e15, and be more.")
                }
                return duration
            }
            return CallLimits(
                time: try duration(timeMicroseconds, "timeMicroseconds"),
                cpuTime: try duration(cpuTimeMicroseconds, "cpuTimeMicroseconds"),
                output: outputBytes,
                queueTime: try duration(queueTimeMicroseconds, "queueTimeMicroseconds")
            )
        }
    }

    /// A call that is asked for.
    package struct Start: Codable, Sendable {
        package var module: String
        package var function: String
        package var arguments: [Value]?
        package var returns: String?
        package var limits: Limits?
        package var labels: [String: String]?
        package var priority: Int?

        package init(
            module: String,
            function: String,
            arguments: [Value],
            returns: String,
            limits: Limits? = nil,
            labels: [String: String]? = nil,
            priority: Int? = nil
        ) {
            self.module = module
            self.function = function
            self.arguments = arguments
            self.returns = returns
            self.limits = limits
            self.labels = labels
            self.priority = priority
        }

        private enum CodingKeys: String, CodingKey, CaseIterable {
            case module, function, arguments, returns, limits, labels, priority
        }

        package init(from decoder: any Decoder) throws {
            try decoder.allowOnly(CodingKeys.self)
            let container = try decoder.container(keyedBy: CodingKeys.self)
            module = try container.decode(String.self, forKey: .module)
            function = try container.decode(String.self, forKey: .function)
            arguments = try container.decodeIfPresent([Value].self, forKey: .arguments)
            returns = try container.decodeIfPresent(String.self, forKey: .returns)
            limits = try container.decodeIfPresent(Limits.self, forKey: .limits)
            labels = try container.decodeIfPresent([String: String].self, forKey: .labels)
            priority = try container.decodeIfPresent(Int.self, forKey: .priority)
        }

        func request() throws(Failure) -> CallRequest {
            CallRequest(
                module: module,
                function: function,
                arguments: (arguments ?? []).map(\.value),
                returns: try Failure.valueType(named: returns),
                limits: try limits?.limits() ?? CallLimits(),
                labels: labels ?? [:],
                priority: priority ?? 0
            )
        }
    }

    /// Labels for a call that goes on from another one.
    package struct Fork: Codable, Sendable {
        package var labels: [String: String]?

        package init(labels: [String: String]? = nil) { self.labels = labels }

        private enum CodingKeys: String, CodingKey, CaseIterable { case labels }

        package init(from decoder: any Decoder) throws {
            try decoder.allowOnly(CodingKeys.self)
            let container = try decoder.container(keyedBy: CodingKeys.self)
            labels = try container.decodeIfPresent([String: String].self, forKey: .labels)
        }
    }

    /// What was seen of a running call at one moment.
    package struct Sample: Codable, Sendable, Hashable {
        package var time: String
        package var statistics: Statistics
        package var memoryBytes: UInt64?
        /// Where it was, in a word or two.
        package var place: String
        package var hostFunction: String?
        package var cpuShare: Double
        package var exitsPerSecond: Double
        package var hostCallsPerSecond: Double

        init(_ sample: CallSample) {
            time = sample.time.text
            statistics = Statistics(sample.statistics)
            memoryBytes = sample.memory
            place = sample.symbol.map { $0.demangledName } ?? sample.instructionPointer.hexadecimal
            hostFunction = sample.hostFunction
            cpuShare = sample.cpuShare
            exitsPerSecond = sample.exitsPerSecond
            hostCallsPerSecond = sample.hostCallsPerSecond
        }
    }

    /// Why something was refused or has failed, inside of something else.
    package struct Problem: Codable, Sendable, Hashable {
        package var code: String
        package var message: String
    }

    /// What has become of a call.
    package struct Outcome: Codable, Sendable, Hashable {
        /// `returned`, `faulted`, `killed`, `limited`, `failed`, or `lost` when the server ended under it.
        package var kind: String
        package var result: Value?
        package var fault: Fault?
        package var place: Place?
        package var killedBy: String?
        package var limit: String?
        package var error: Problem?

        /// A call that was under way when the server ended without a word.
        static let lost = Outcome(kind: "lost")

        private init(kind: String) { self.kind = kind }

        /// - Parameter isWhole: whether results, registers and backtraces are in it.
        init(_ outcome: CallOutcome, isWhole: Bool) {
            switch outcome {
            case .returned(let value):
                kind = "returned"
                if isWhole { result = value.map(Value.init) }
            case .faulted(let fault):
                kind = "faulted"
                self.fault = Fault(fault)
                if isWhole { place = Place(fault) }
            case .killed(let killer, let interruption):
                kind = "killed"
                killedBy = killer.rawValue
                if isWhole { place = interruption.map(Place.init) }
            case .limited(let limit, let interruption):
                kind = "limited"
                self.limit = limit.rawValue
                if isWhole { place = interruption.map(Place.init) }
            case .failed(let error):
                kind = "failed"
                let failure = Failure(error)
                self.error = Problem(code: failure.code, message: failure.message)
            }
        }
    }

    /// A call that waits, runs, or is over.
    package struct Call: Codable, Sendable {
        package var id: UInt64
        package var module: String
        package var function: String
        package var returns: String
        package var labels: [String: String]
        package var priority: Int
        package var limits: Limits
        package var parent: UInt64?
        package var state: String
        package var accepted: String
        package var began: String?
        package var ended: String?
        /// How long it has waited in the queue, and how long it has been in its sandbox, until now or its end.
        package var queuedMicroseconds: Double
        package var elapsedMicroseconds: Double?
        package var outputBytes: UInt64
        package var sample: Sample?
        package var outcome: Outcome?
        package var statistics: Statistics?
        /// Whether a core dump of its end can be fetched.
        package var hasCoreDump: Bool

        package init(_ call: CallStatus, isWhole: Bool = true, now: WallTime = .now) {
            func microseconds(_ start: WallTime, _ end: WallTime?) -> Double {
                Double(max(0, (end ?? now).nanoseconds - start.nanoseconds)) / 1000
            }
            id = call.id.rawValue
            module = call.module
            function = call.function
            returns = call.returns.rawValue
            labels = call.labels
            priority = call.priority
            limits = Limits(call.limits)
            parent = call.parent?.rawValue
            state = call.state.rawValue
            accepted = call.accepted.text
            began = call.began?.text
            ended = call.ended?.text
            queuedMicroseconds = microseconds(call.accepted, call.began ?? call.ended)
            elapsedMicroseconds = call.began.map { microseconds($0, call.ended) }
            outputBytes = call.output
            sample = call.sample.map(Sample.init)
            outcome = call.outcome.map { Outcome($0, isWhole: isWhole) }
            statistics = call.statistics.map(Statistics.init)
            hasCoreDump = call.coreDump != nil
        }
    }

    /// What of a call is shown in a list: whoever wants no more of a thousand calls need not read the rest.
    package struct CallLine: Decodable, Sendable {
        package var id: UInt64
        package var module: String
        package var function: String
        package var labels: [String: String]
        package var state: String
        package var queuedMicroseconds: Double
        package var elapsedMicroseconds: Double?
        package var outputBytes: UInt64
        package var sample: Sample?
        package var outcome: Outcome?
        package var statistics: Statistics?
    }

    /// The same of several calls.
    package struct CallLines: Decodable, Sendable {
        package var calls: [CallLine]
    }

    /// Calls, the totals of which they may be a part.
    package struct Calls: Codable, Sendable {
        package var calls: [Call]
    }

    /// All that is to be known about where a running call is.
    package struct Inspection: Codable, Sendable {
        package var call: Call
        package var place: Place
        package var statistics: Statistics
        package var memoryBytes: UInt64?
    }

    /// A snapshot that is kept.
    package struct Snapshot: Codable, Sendable {
        package var id: UInt64
        package var call: UInt64
        package var module: String
        package var function: String
        package var taken: String
        package var pageCount: Int

        init(_ snapshot: SnapshotStatus) {
            id = snapshot.id.rawValue
            call = snapshot.call.rawValue
            module = snapshot.module
            function = snapshot.function
            taken = snapshot.taken.text
            pageCount = snapshot.pageCount
        }
    }

    /// The snapshots there are.
    package struct Snapshots: Codable, Sendable {
        package var snapshots: [Snapshot]
    }

    /// Something that has happened.
    package struct Event: Codable, Sendable {
        package var number: UInt64
        package var time: String
        package var kind: String
        package var detail: String?
        package var call: UInt64?
        package var module: String?
        package var function: String?

        init(_ event: SupervisorEvent) {
            number = event.number
            time = event.time.text
            kind = event.kind.name
            detail = event.kind.detail
            call = event.call?.rawValue
            module = event.module
            function = event.function
        }
    }

    /// Bytes that a guest has written, in Base64.
    package struct Output: Codable, Sendable {
        package var offset: UInt64
        package var stream: String
        package var base64: String
    }
}
#endif
