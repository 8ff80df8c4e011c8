import Foundation
import Testing

@Suite(.timeLimit(.minutes(2)))
struct InterruptionTests {
    /// Resets what the tests' own launcher may have had ignored, then becomes the command.
    private static let launcher = "/usr/bin/env"
    private static func arguments(_ command: [String]) -> [String] {
        ["--default-signal=INT,TERM", CommandRun.executable.path] + command
    }

    @Test(
        .requiresKVM,
        arguments: [(SIGINT, "spin"), (SIGTERM, "spin"), (SIGINT, "spin_with_host_calls"), (SIGINT, "spin_and_count")]
    )
    func `a signal ends the guest and tells where it was`(signal: Int32, function: String) async throws {
        let run = try await CommandRun.microvm(
            Self.arguments(["run", CommandRun.guest("spin"), function, "--returns", "void"]),
            program: Self.launcher
        ) { process in
            wait { process.runsGuest }
            kill(process, signal)
        }
        #expect(run.status == 130)
        #expect(run.error.hasPrefix("Interrupted after "))
        #expect(run.error.contains(", at \(function)"))
        #expect(run.outputText == "")
    }

    @Test(.requiresKVM)
    func `an interruption while initialising is an object in JSON`() async throws {
        let run = try await CommandRun.microvm(
            Self.arguments(["run", CommandRun.guest("spin_in_initializer"), "answer", "--json"]),
            program: Self.launcher
        ) { process in
            wait { process.runsGuest }
            kill(process, SIGINT)
        }
        #expect(run.status == 130)
        let json = try run.json()
        #expect(json["outcome"] as? String == "interrupted")
        #expect(json["exitStatus"] as? Int == 130)
        #expect(try #require(json["durationMicroseconds"] as? Double) > 0)
        let symbol = (json["interruption"] as? [String: Any])?["symbol"] as? [String: Any]
        #expect(symbol?["name"] as? String == "spin_while_loading")
    }

    @Test func `a signal ends a command that waits for standard input`() async throws {
        let run = try await CommandRun.microvm(
            ["-c", "sleep 5 | \"$@\"", "sh"] + [Self.launcher]
                + Self.arguments(["run", CommandRun.guest("echo"), "byte_length", "stdin:"]),
            program: "/bin/bash"
        ) { shell in
            wait { childProcesses(of: shell).contains(where: \.isMicroVM) }
            let children = childProcesses(of: shell)
            for child in children where child.isMicroVM { kill(child, SIGINT) }
            // Not at once: the end of its input would end the command too.
            usleep(500_000)
            for child in children where !child.isMicroVM { kill(child, SIGKILL) }
        }
        // Had the signal done nothing, the end of the input would have ended the command, with 0.
        #expect(run.status == 130)
    }

    @Test(.requiresKVM)
    func `a second signal ends the command at once, whatever it waits for`() async throws {
        // The guest's output fills the pipe, so that the host call cannot return.
        let run = try await CommandRun.microvm(
            ["-c", "\"$@\" | sleep 30; exit ${PIPESTATUS[0]}", "sh"] + [Self.launcher]
                + Self.arguments(["run", CommandRun.guest("memory"), "print_long_line", "i32:100000000"]),
            program: "/bin/bash"
        ) { shell in
            wait { childProcesses(of: shell).contains(where: \.isWriting) }
            let children = childProcesses(of: shell)
            for child in children where child.isMicroVM { kill(child, SIGINT) }
            usleep(500_000)
            for child in children where child.isMicroVM { kill(child, SIGTERM) }
            // Not before the command is gone: a broken pipe would end it too.
            wait { !children.contains { $0.isMicroVM && !$0.isGone } }
            for child in children where !child.isMicroVM { kill(child, SIGKILL) }
        }
        #expect(run.status == 128 + SIGTERM)
        #expect(run.duration < .seconds(20))
    }
}

extension pid_t {
    /// Whether the process is the command, and not what it is connected with.
    fileprivate var isMicroVM: Bool { content(of: "comm") == "microvm\n" }

    /// Whether it has ended, and maybe only waits for its parent to ask how.
    fileprivate var isGone: Bool { fields(of: "stat").first.map { $0 == "Z" } ?? true }

    /// Whether a sandbox's thread has used so much time that a guest must be running on it.
    var runsGuest: Bool {
        sandboxThreads.contains { thread in
            // Time in user mode and in the kernel, in hundredths of a second.
            let times = fields(of: "task/\(thread)/stat").dropFirst(11).prefix(2).compactMap { Int($0) }
            return times.reduce(0, +) >= (isEmulated ? 50 : 10)
        }
    }

    /// Whether a sandbox's thread is in the system call `write`, or was when this looked.
    fileprivate var isWriting: Bool {
        sandboxThreads.contains { content(of: "task/\($0)/syscall").hasPrefix("1 ") }
    }

    private var sandboxThreads: [String] {
        let threads = try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(self)/task")
        return (threads ?? []).filter { content(of: "task/\($0)/comm") == "microvm-vcpu\n" }
    }

    private func content(of file: String) -> String {
        (try? String(contentsOfFile: "/proc/\(self)/\(file)", encoding: .utf8)) ?? ""
    }

    /// What comes behind the name in a `stat` file, from the state on.
    private func fields(of file: String) -> [Substring] {
        content(of: file).split(separator: ") ").last?.split(separator: " ") ?? []
    }
}

/// Waits until something is so, but not much longer than a command may run.
func wait(until isSo: () -> Bool) {
    for _ in 0..<6500 {
        if isSo() { return }
        usleep(10_000)
    }
}

/// The processes that a process has begun.
private func childProcesses(of process: pid_t) -> [pid_t] {
    let list = try? String(contentsOfFile: "/proc/\(process)/task/\(process)/children", encoding: .utf8)
    return (list ?? "").split(separator: " ").compactMap { pid_t($0) }
}
