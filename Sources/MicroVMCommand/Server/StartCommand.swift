#if Server
import ArgumentParser
import MicroVM
import MicroVMServer
import MicroVMSupervisor

/// `microvm start`.
struct StartCommand: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "start",
        abstract: "Start a call on a server.",
        discussion: """
            The module is one that the server has; microvm upload gives it one. Arguments and result are written as \
            for microvm run. Without --wait the number of the call goes to standard output, with it the result.

            EXAMPLES
              microvm start plugin add i64:2 i64:3 --wait
              microvm start plugin handle string:Ada --label tenant=a --priority 5
              microvm start inflate gunzip file:words.gz --returns bytes --wait > words
              microvm start plugin spin --returns void --time-limit 2s
            """
    )

    @Argument(help: "The name under which the server has the module.")
    var module: String

    @Argument(help: "The name of a function that the module exports.")
    var function: String

    @Argument(
        help: ArgumentHelp("An argument of the function.", valueName: "type:value"),
        transform: ArgumentSpecification.init(parsing:)
    )
    var arguments: [ArgumentSpecification] = []

    @Option(
        help: ArgumentHelp("What the function returns; i64 unless given.", valueName: "type"),
        completion: .list(ResultType.names),
        transform: ResultType.init(parsing:)
    )
    var returns = ResultType.value(.i64)

    @Option(
        help: ArgumentHelp("How long the call may run, such as 500ms.", valueName: "time"),
        transform: TimeSpan.init(parsing:)
    )
    var timeLimit: TimeSpan?

    @Option(
        help: ArgumentHelp("How much CPU time the call may use.", valueName: "time"),
        transform: TimeSpan.init(parsing:)
    )
    var cpuLimit: TimeSpan?

    @Option(
        help: ArgumentHelp("How many bytes of output the guest may write.", valueName: "size"),
        transform: ByteCount.init(parsing:)
    )
    var outputLimit: ByteCount?

    @Option(
        help: ArgumentHelp("How long the call may wait for its turn.", valueName: "time"),
        transform: TimeSpan.init(parsing:)
    )
    var queueLimit: TimeSpan?

    @Option(name: .customLong("label"), help: ArgumentHelp("A label of the call.", valueName: "name=value"))
    var labels: [String] = []

    @Option(help: "Calls of a higher priority start first.")
    var priority = 0

    @Flag(help: "Wait for the end of the call, and write what it returned. Ends with its status, as microvm run.")
    var wait = false

    @OptionGroup var options: ClientOptions

    func validate() throws {
        guard arguments.count(where: \.isStandardInput) <= 1 else {
            throw ValidationError("stdin: can be given only once: there is only one standard input.")
        }
        for label in labels where !label.dropFirst().contains("=") {
            throw ValidationError("“\(label.printable)” is no label; write NAME=VALUE.")
        }
    }

    func run(_ client: APIClient) async throws {
        let arguments = try ArgumentBytes(reading: arguments, limit: 1 << 30)
        var limits = CallLimits()
        limits.time = timeLimit?.duration
        limits.cpuTime = cpuLimit?.duration
        limits.output = outputLimit?.bytes
        limits.queueTime = queueLimit?.duration
        let start = API.Start(
            module: module,
            function: function,
            arguments: try arguments.values.map { API.Value(try CallValue($0)) },
            returns: returns.name,
            limits: API.Limits(limits),
            labels: Dictionary(
                labels.map { label in
                    let parts = label.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
                    return (String(parts[0]), String(parts[1]))
                },
                uniquingKeysWith: { $1 }
            ),
            priority: priority
        )
        let answer = try await client.request("POST", "/v1/calls", json: start)
        let call: API.Call = try answer.json()
        guard wait else { return try write(answer, as: API.Call.self) { "\($0.id)\n" } }
        try await CallWaiting.wait(for: call.id, client, options)
    }
}

extension CallValue {
    /// A value from the command line.
    init(_ value: any GuestValue) throws(CommandFailure) {
        switch value {
        case let value as Int8: self = .i8(value)
        case let value as UInt8: self = .u8(value)
        case let value as Int16: self = .i16(value)
        case let value as UInt16: self = .u16(value)
        case let value as Int32: self = .i32(value)
        case let value as UInt32: self = .u32(value)
        case let value as Int64: self = .i64(value)
        case let value as UInt64: self = .u64(value)
        case let value as Float: self = .f32(value)
        case let value as Double: self = .f64(value)
        case let value as Bool: self = .bool(value)
        case let value as String: self = .string(value)
        case let value as [UInt8]: self = .bytes(value)
        default:
            throw CommandFailure(.usage, "invalidArgument", "Values of type \(Swift.type(of: value)) cannot be sent.")
        }
    }
}

/// Waiting for the end of a call.
enum CallWaiting {
    /// Waits, and writes the end.
    ///
    /// - Throws: an exit code for calls that have not returned, as `microvm run` has it.
    static func wait(for id: UInt64, _ client: APIClient, _ options: ClientOptions) async throws {
        var answer: APIClient.Answer
        var call: API.Call
        repeat {
            answer = try await client.request("GET", "/v1/calls/\(id)/wait?timeMicroseconds=30000000")
            call = try answer.json()
        } while call.outcome == nil
        if options.json {
            StandardStream.output.write(answer.body + [UInt8(ascii: "\n")])
        } else if call.outcome?.kind == "returned" {
            if let result = call.outcome?.result { StandardStream.output.write(CallText.value(result)) }
        } else {
            StandardStream.error.write(CallText.ending(call))
        }
        let status = exitStatus(call)
        if status != .success { throw status.exitCode }
    }

    private static func exitStatus(_ call: API.Call) -> ExitStatus {
        switch call.outcome?.kind {
        case "returned": .success
        case "faulted": call.outcome?.fault?.kind == "abort" ? .abort : .fault
        case "limited": .timeLimit
        case "killed": .interrupted
        case "lost": .unavailable
        default: .unusable
        }
    }
}
#endif
