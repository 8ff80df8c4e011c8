#if Confinement
import Foundation
import Synchronization
import Testing

/// The command's own confinement, seen from outside. All other tests of the command run it confined too.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct ConfinementTests {
    /// What a shell script says, which gets the executable and the guests' folder as its first two arguments.
    private func script(_ text: String) async throws -> CommandRun {
        try await CommandRun.microvm(
            "-c",
            text,
            "sh",
            CommandRun.executable.path,
            GuestImages.directory,
            program: "/bin/sh"
        )
    }

    @Test func `a guest runs in a process without privileges that is filtered`() async throws {
        let status = Recorded()
        let run = try await CommandRun.microvm(
            "run",
            CommandRun.guest("spin"),
            "spin",
            "--time-limit",
            "5s",
            whileRunning: { number in
                // Until the process has confined itself, or ended without.
                while kill(number, 0) == 0 {
                    guard let text = try? String(contentsOfFile: "/proc/\(number)/status", encoding: .utf8) else {
                        break
                    }
                    if text.contains("Seccomp:\t2") {
                        status.set(text)
                        kill(number, SIGINT)
                        break
                    }
                    usleep(1_000)
                }
            }
        )
        #expect(run.status == 130, "\(run.error)")
        let text = status.value
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] { #expect(text.contains("\(set):\t0000000000000000")) }
        #expect(text.contains("NoNewPrivs:\t1"))
    }

    @Test func `or, if that is not wanted, in one as it was`() async throws {
        let run = try await CommandRun.microvm("doctor", "--json", "--no-confinement")
        let report = try #require(try run.json()["confinement"] as? [String: Any])
        #expect(report["isApplied"] as? Bool == false && report["filtersSystemCalls"] as? Bool == false)
    }

    @Test func `doctor shows what is in force`() async throws {
        let run = try await CommandRun.microvm("doctor")
        #expect(run.status == 0, "\(run.error)")
        #expect(run.outputText.contains("capabilities                 none"))
        #expect(run.outputText.contains("system calls                 filtered"))
        let report = try #require(
            try await CommandRun.microvm("doctor", "--json").json()["confinement"] as? [String: Any]
        )
        #expect(report["isApplied"] as? Bool == true && (report["capabilities"] as? [String])?.isEmpty == true)
    }

    @Test(.enabled(if: FileManager.default.isExecutableFile(atPath: "/usr/bin/strace"), "This test needs strace."))
    func `a confined loop of guest calls makes no system call but KVM_RUN`() async throws {
        let run = try await script(
            """
            trace=$(mktemp)
            trap 'rm -f "$trace"' EXIT
            strace -f -qq -e signal=none -o "$trace" "$1" doctor >&2 || exit 9
            cat "$trace"
            """
        )
        try #require(run.status == 0, "\(run.error)")
        // The longest run of KVM_RUN alone on any thread: the self-test's loop makes some two thousand calls.
        var lengths: [Substring: Int] = [:]
        var longest = 0
        for line in run.outputText.split(separator: "\n") {
            let parts = line.split(separator: " ", maxSplits: 1, omittingEmptySubsequences: true)
            guard parts.count == 2 else { continue }
            // A call that another thread's comes in between is shown in two halves.
            if parts[1].contains("resumed>") { continue }
            let call = parts[1].drop { $0 == " " }
            let isEntry = call.hasPrefix("ioctl(") && call.contains("KVM_RUN")
            lengths[parts[0]] = isEntry ? lengths[parts[0], default: 0] + 1 : 0
            longest = max(longest, lengths[parts[0], default: 0])
        }
        #expect(longest >= 2_000)
        #expect(run.outputText.contains("seccomp(SECCOMP_SET_MODE_FILTER"))
    }

    /// Begins a command as somebody who is nobody, and may open a `/dev/kvm` that belongs to a group: made so in a
    /// namespace of mounts of its own, where the machine's may be root's alone.
    private static let asNobody = """
        exec unshare --mount sh -c '
            mount --make-rprivate / && mount -t tmpfs -o mode=755 none /mnt || exit 70
            mknod /mnt/kvm c 10 232 && chgrp 4242 /mnt/kvm && chmod 660 /mnt/kvm || exit 70
            mount --bind /mnt/kvm /dev/kvm || exit 70
            exec setpriv --reuid=65534 --regid=65534 --groups=4242 "$@"
        ' sh
        """

    /// Whether that can be done here, and nobody can read what was built.
    private static let canBeNobody: Bool = {
        let process = Process()
        process.executableURL = URL(filePath: "/bin/sh")
        process.arguments = [
            "-c", asNobody + " \"$@\"", "sh", "/bin/sh", "-c",
            "test -r /dev/kvm && test -x \"$1\" && test -r \"$2/arithmetic.so\" && \"$1\" --help >/dev/null", "sh",
            CommandRun.executable.path, GuestImages.directory,
        ]
        guard (try? process.run()) != nil else { return false }
        process.waitUntilExit()
        return process.terminationStatus == 0
    }()

    @Test(
        .enabled(
            if: canBeNobody,
            "This test becomes nobody, by root's rights, and nobody must be able to read the build."
        )
    )
    func `an ordinary user in the device's group is confined as well`() async throws {
        let run = try await script(
            "\(Self.asNobody) \"$1\" run \"$2/arithmetic.so\" add i64:40 i64:2"
        )
        #expect(run.status == 0, "\(run.error)")
        #expect(run.outputText == "42\n")
    }

    @Test func `reports, core dumps and debuggers' sockets can still be made`() async throws {
        let run = try await script(
            """
            folder=$(mktemp -d)
            trap 'rm -rf "$folder"' EXIT
            cd "$folder"
            "$1" test "$2/zlib_tests.so" --junit report.xml --time-limit 60s >&2 || exit 9
            grep -q '<testsuites' report.xml || exit 10
            "$1" run "$2/faults.so" write_null --core-dump . >&2
            [ $? = 139 ] || exit 11
            [ -n "$(ls | grep core)" ] || exit 12
            "$1" run "$2/arithmetic.so" add i64:1 i64:2 --gdb ./socket >&2 || exit 13
            [ ! -e socket ] || exit 14
            printf 'abc' > input
            "$1" run "$2/echo.so" echo file:input --returns bytes > output || exit 15
            cmp input output >&2 || exit 16
            """
        )
        #expect(run.status == 0, "\(run.error)")
    }
}

/// A text that another thread sets.
private final class Recorded: Sendable {
    private let text = Mutex("")

    var value: String { text.withLock { $0 } }

    func set(_ value: String) { text.withLock { $0 = value } }
}
#endif
