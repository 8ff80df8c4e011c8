#if Server
import ArgumentParser
import FoundationEssentials
import MicroVM
import MicroVMServer

/// `microvm ps`.
struct PSCommand: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "ps",
        abstract: "Show the calls of a server.",
        discussion: """
            Those that wait and run, and with --all those that are over and not forgotten.

            EXAMPLES
              microvm ps
              microvm ps --all --label tenant=a
              microvm ps --json | jq '.calls[] | select(.state == "running") | .id'
            """
    )

    @Flag(name: .shortAndLong, help: "Show calls that are over as well.")
    var all = false

    @Flag(help: "Look where running calls are now; each is taken out of its guest for a moment.")
    var sample = false

    @Option(help: "Only calls of this module.")
    var module: String?

    @Option(help: ArgumentHelp("Only calls with this label.", valueName: "name[=value]"))
    var label: String?

    @OptionGroup var options: ClientOptions

    func run(_ client: APIClient) async throws {
        var query = Query()
        query.add("sample", sample ? "true" : nil)
        query.add("finished", all ? "1000" : nil)
        query.add("module", module)
        query.add("label", label)
        let answer = try await client.request("GET", "/v1/calls\(query.text)")
        try write(answer, as: API.CallLines.self) { CallText.table($0.calls) }
    }
}

/// A query for a server.
struct Query {
    private var parts: [String] = []

    var text: String { parts.isEmpty ? "" : "?" + parts.joined(separator: "&") }

    mutating func add(_ name: String, _ value: String?) {
        if let value { parts.append("\(name)=\(Self.escaped(value))") }
    }

    static func escaped(_ text: String) -> String {
        var result = ""
        for byte in text.utf8 {
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "."), UInt8(ascii: "_"):
                result.unicodeScalars.append(Unicode.Scalar(byte))
            default:
                let digits = String(byte, radix: 16, uppercase: true)
                result += "%" + (digits.count == 1 ? "0" : "") + digits
            }
        }
        return result
    }
}

/// A command that does the same to each of some calls.
protocol CallActionCommand: ClientCommand {
    static var action: String { get }
    var arguments: CallArgument { get }
}

extension CallActionCommand {
    func run(_ client: APIClient) async throws {
        var failure: ClientError?
        for id in arguments.calls {
            do throws(ClientError) {
                let answer = try await client.request("POST", "/v1/calls/\(id)/\(Self.action)")
                let _: API.Call = try answer.json()
                if options.json { StandardStream.output.write(answer.body + [UInt8(ascii: "\n")]) }
            } catch {
                // The others are not to go on because one is gone.
                StandardStream.error.write("Error: \(error.message.printable)\n")
                failure = error
            }
        }
        if let failure { throw failure.exitStatus.exitCode }
    }
}

/// `microvm kill`.
struct KillCommand: CallActionCommand {
    static let configuration = CommandConfiguration(
        commandName: "kill",
        abstract: "End calls of a server now.",
        discussion: "A call that runs leaves its guest; one that waits never begins.\n\nEXAMPLE\n  microvm kill 17 18"
    )
    static let action = "kill"
    @OptionGroup var arguments: CallArgument
    @OptionGroup var options: ClientOptions
}

/// `microvm stop`.
struct StopCommand: CallActionCommand {
    static let configuration = CommandConfiguration(
        commandName: "stop",
        abstract: "Hold calls of a server still.",
        discussion: "Their limits of time wait until microvm continue.\n\nEXAMPLE\n  microvm stop 17"
    )
    static let action = "stop"
    @OptionGroup var arguments: CallArgument
    @OptionGroup var options: ClientOptions
}

/// `microvm continue`.
struct ContinueCommand: CallActionCommand {
    static let configuration = CommandConfiguration(
        commandName: "continue",
        abstract: "Let calls go on that are held.",
        discussion: "EXAMPLE\n  microvm continue 17"
    )
    static let action = "continue"
    @OptionGroup var arguments: CallArgument
    @OptionGroup var options: ClientOptions
}

/// `microvm wait`.
struct WaitCommand: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "wait",
        abstract: "Wait for the end of a call.",
        discussion: """
            What it returned goes to standard output, and how else it ended to standard error. The exit status is that \
            of microvm run.

            EXAMPLE
              id=$(microvm start plugin add i64:2 i64:3) && microvm wait $id
            """
    )

    @Argument(help: "The number of the call.")
    var call: UInt64

    @OptionGroup var options: ClientOptions

    func run(_ client: APIClient) async throws { try await CallWaiting.wait(for: call, client, options) }
}

/// `microvm inspect-call`.
struct InspectCallCommand: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "inspect-call",
        abstract: "Show where a call is, or how it ended.",
        discussion: """
            Registers, backtrace and cost. A running call is taken out of its guest for a moment, and goes on.

            EXAMPLES
              microvm inspect-call 17
              microvm inspect-call 17 --json | jq .place.symbol.name
            """
    )

    @Argument(help: "The number of the call.")
    var call: UInt64

    @OptionGroup var options: ClientOptions

    func run(_ client: APIClient) async throws {
        let answer = try await client.request("GET", "/v1/calls/\(call)/inspection")
        guard answer.status == 409 else {
            return try write(answer, as: API.Inspection.self, CallText.inspection)
        }
        // It has not begun, or is over.
        let known = try await client.request("GET", "/v1/calls/\(call)")
        try write(known, as: API.Call.self) { call in
            guard call.outcome?.kind == "returned" else { return CallText.ending(call) }
            return "Call \(call.id) has returned.\n"
        }
    }
}

/// `microvm logs`.
struct LogsCommand: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "logs",
        abstract: "Show what a call's guest has written.",
        discussion: """
            Its standard output goes to standard output and its standard error to standard error, byte by byte. The \
            server keeps the end of it.

            EXAMPLES
              microvm logs 17
              microvm logs --follow 17
            """
    )

    @Flag(name: .shortAndLong, help: "Go on until the call's end.")
    var follow = false

    @Argument(help: "The number of the call.")
    var call: UInt64

    @OptionGroup var options: ClientOptions

    func run(_ client: APIClient) async throws {
        guard follow || options.json else {
            for (stream, name) in [
                (StandardStream.output, "standardOutput"), (StandardStream.error, "standardError"),
            ] {
                let answer = try await client.request("GET", "/v1/calls/\(call)/output?stream=\(name)")
                try answer.check()
                stream.write(answer.body)
            }
            return
        }
        // Without --follow as much as there is now.
        let status: API.Call = try await client.request("GET", "/v1/calls/\(call)").json()
        let end = follow && status.outcome == nil ? UInt64.max : status.outputBytes
        guard end > 0 else { return }
        try await client.events("/v1/calls/\(call)/output/events") { name, data throws(ClientError) in
            guard name == "output" else { return name != "end" }
            guard let piece = try? JSONDecoder().decode(API.Output.self, from: Data(data)),
                let bytes = Data(base64Encoded: piece.base64)
            else { return true }
            if options.json {
                StandardStream.output.write(data + [UInt8(ascii: "\n")])
            } else {
                (piece.stream == "standardError" ? StandardStream.error : .output).write(Array(bytes))
            }
            return piece.offset + UInt64(bytes.count) < end
        }
    }
}
#endif
