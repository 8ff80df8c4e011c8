#if Server
import ArgumentParser
import Glibc
import MicroVM
import MicroVMServer

/// `microvm top`.
struct TopCommand: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "top",
        abstract: "Watch the calls of a server, and end or hold them.",
        discussion: """
            A full screen that is drawn anew every second. Running calls are looked at for it, each for some tens of \
            microseconds.

            KEYS
              arrows, n, p   select a call
              k              kill it, after a question
              s, c           stop it, continue it
              f, /           show only calls with a text in their number, module, function, state or labels
              o              sort by CPU, time, memory, exits or number
              q              quit
            """
    )

    @Option(
        help: ArgumentHelp("How often the screen is drawn; 1s unless given.", valueName: "time"),
        transform: TimeSpan.init(parsing:)
    )
    var interval = TimeSpan(.seconds(1))

    @OptionGroup var options: ClientOptions

    private enum Input: Sendable {
        case keys([UInt8])
        case calls([API.Call], API.Overview)
        case message(String)
        case failure(ClientError)
        case end
    }

    func validate() throws {
        if options.json { throw ValidationError("top is for people; microvm ps --json is for programs.") }
    }

    func run(_ client: APIClient) async throws {
        guard KeyTerminal.shared.begin(fullScreen: true) else {
            throw CommandFailure(.usage, "noTerminal", "top needs a terminal; microvm ps does without.")
        }
        // However this ends; signals see to it themselves.
        defer { KeyTerminal.shared.end() }
        let (inputs, input) = AsyncStream.makeStream(of: Input.self)
        let hasThread = startThread {
            while let keys = KeyTerminal.shared.keys() {
                if !keys.isEmpty { input.yield(.keys(keys)) }
            }
            input.yield(.end)
        }
        guard hasThread else { throw CommandFailure(.systemError, "noThread", "No thread is to be had for the keys.") }
        let looking = Task {
            while !Task.isCancelled {
                input.yield(await Self.look(client))
                try? await Task.sleep(for: interval.duration)
            }
        }
        defer { looking.cancel() }
        try await show(inputs, input, client)
    }

    private func show(
        _ inputs: AsyncStream<Input>,
        _ input: AsyncStream<Input>.Continuation,
        _ client: APIClient
    ) async throws {
        var screen = TopScreen()
        var keys = TopKeys()
        for await next in inputs {
            switch next {
            case .end: return
            case .failure(let error): throw error
            case .message(let text): screen.message = text
            case .calls(let calls, let overview): screen.update(calls, overview)
            case .keys(let bytes):
                for action in keys.actions(bytes, &screen) {
                    if action == .quit { return }
                    // Not here: the keys go on meanwhile.
                    Task {
                        if let text = await Self.perform(action, client) { input.yield(.message(text)) }
                        input.yield(await Self.look(client))
                    }
                }
            }
            draw(screen)
        }
    }

    private func draw(_ screen: TopScreen) {
        let (columns, rows) = KeyTerminal.shared.size
        let text = screen.lines(columns: columns, rows: rows).map { $0 + "\u{1b}[K" }.joined(separator: "\r\n")
        KeyTerminal.shared.draw("\u{1b}[H" + text + "\u{1b}[J")
    }

    private static func look(_ client: APIClient) async -> Input {
        do throws(ClientError) {
            let calls: API.Calls = try await client.request("GET", "/v1/calls?sample=true").json()
            let overview: API.Overview = try await client.request("GET", "/v1/overview").json()
            return .calls(calls.calls, overview)
        } catch {
            return .failure(error)
        }
    }

    private static func perform(_ action: TopKeys.Action, _ client: APIClient) async -> String? {
        let path: String
        switch action {
        case .kill(let id): path = "/v1/calls/\(id)/kill"
        case .stop(let id): path = "/v1/calls/\(id)/stop"
        case .resume(let id): path = "/v1/calls/\(id)/continue"
        case .quit: return nil
        }
        do throws(ClientError) {
            try await client.request("POST", path).check()
            return nil
        } catch {
            return error.message
        }
    }
}
#endif
