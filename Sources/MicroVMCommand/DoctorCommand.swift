import ArgumentParser
import LinuxKVM
import MicroVM
import SystemPackage

/// `microvm doctor`.
struct DoctorCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor",
        abstract: "Tell whether this machine can run guests, and what to do if not.",
        discussion: """
            Looks for /dev/kvm, opens it, asks for what the library uses, and runs a built-in guest to measure calls \
            in both directions. Where something is missing, it says what to do.

            EXAMPLES
              microvm doctor
              microvm doctor --json | jq .selfTest.guestCallMicroseconds

            EXIT STATUS
              0    guests can run here
              64   wrong usage
              69   guests cannot run here
            """
    )

    @Flag(help: "Write one JSON object.")
    var json = false

    func run() async throws {
        let report = await Self.examine()
        if json {
            try StandardStream.output.writeJSON(report)
        } else {
            StandardStream.output.write(report.text)
        }
        if !report.isReady { throw ExitStatus.unavailable.exitCode }
    }

    private static func examine() async -> DoctorReport {
        let path = KVM.defaultPath.string
        let device = KVMDevice()
        let facts = HostFacts.current()
        guard device.state == .usable else { return DoctorReport(path: path, device: device, facts: facts) }
        var support: HostSupport?
        do {
            support = try HostSupport()
            let selfTest = try await SelfTest.run()
            return DoctorReport(path: path, device: device, facts: facts, support: support, selfTest: selfTest)
        } catch {
            return DoctorReport(path: path, device: device, facts: facts, support: support, failure: failure(error))
        }
    }

    private static func failure(_ error: any Error) -> CommandFailure {
        switch error {
        case let failure as CommandFailure: failure
        case let error as SandboxError: CommandFailure(error)
        default: CommandFailure(.unavailable, "selfTestFailed", "The self-test failed: \(error).")
        }
    }
}
