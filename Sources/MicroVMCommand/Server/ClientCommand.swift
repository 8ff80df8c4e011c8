#if Server
import ArgumentParser
import MicroVM
import MicroVMServer

/// A command that talks to a server.
protocol ClientCommand: AsyncParsableCommand {
    var options: ClientOptions { get }

    /// Does what the command does.
    func run(_ client: APIClient) async throws
}

extension ClientCommand {
    func run() async throws {
        do {
            try await run(options.client())
        } catch let failure as CommandFailure {
            StandardStream.error.write("Error: \(failure.message)\n")
            throw failure.status.exitCode
        } catch let error as ClientError {
            StandardStream.error.write("Error: \(error.message.printable)\n")
            throw error.exitStatus.exitCode
        }
    }

    /// Writes an answer as JSON, or as lines.
    func write<Value: Decodable>(_ answer: APIClient.Answer, as type: Value.Type, _ text: (Value) -> String) throws {
        let value = try answer.json(type)
        if options.json {
            StandardStream.output.write(answer.body + [UInt8(ascii: "\n")])
        } else {
            StandardStream.output.write(text(value))
        }
    }
}

extension ClientError {
    var exitStatus: ExitStatus {
        switch code {
        case "noServer", "brokenConnection", "notUnderstood", "shuttingDown": .unavailable
        case "unauthorized", "invalidRequest": .usage
        default: status.map { $0 >= 500 ? .systemError : .unusable } ?? .systemError
        }
    }
}

/// The number of a call on the command line.
struct CallArgument: ParsableArguments {
    @Argument(help: "The numbers of calls, as microvm ps shows them.")
    var calls: [UInt64]
}
#endif
