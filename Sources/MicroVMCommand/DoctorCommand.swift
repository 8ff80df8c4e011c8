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
            in both directions, in a process that is confined as that of microvm run is. Where something \
            is missing, it says what to do.

            EXAMPLES
              microvm doctor
              microvm doctor --json | jq .selfTest.guestCallMicroseconds

            EXIT STATUS
              0    guests can run here
              64   wrong usage
              69   guests cannot run here
            """
    )

    @Flag(inversion: .prefixedNo, help: ArgumentHelp(CommandConfinement.help))
    var confinement = true

    @Flag(help: "Write one JSON object.")
    var json = false

    func run() async throws {
        let report = await Self.examine(isConfined: confinement)
        if json {
            try StandardStream.output.writeJSON(report)
        } else {
            StandardStream.output.write(report.text)
        }
        if !report.isReady { throw ExitStatus.unavailable.exitCode }
    }

    private static func examine(isConfined: Bool) async -> DoctorReport {
        let path = KVM.defaultPath.string
        let device = KVMDevice()
        let facts = HostFacts.current()
        guard device.state == .usable else { return DoctorReport(path: path, device: device, facts: facts) }
        var report = DoctorReport(path: path, device: device, facts: facts)
        var support: HostSupport?
        var confinementFailure: CommandFailure?
        do {
            support = try HostSupport()
            do throws(CommandFailure) {
                if isConfined { try CommandConfinement(makesSandboxes: true).apply() }
            } catch {
                // Guests can run all the same.
                confinementFailure = error
            }
            let selfTest = try await SelfTest.run()
            report = DoctorReport(path: path, device: device, facts: facts, support: support, selfTest: selfTest)
        } catch {
            report = DoctorReport(path: path, device: device, facts: facts, support: support, failure: failure(error))
        }
        report.confinement = CommandConfinement.report(isApplied: isConfined, failure: confinementFailure)
        return report
    }

    private static func failure(_ error: any Error) -> CommandFailure {
        switch error {
        case let failure as CommandFailure: failure
        case let error as SandboxError: CommandFailure(error)
        default: CommandFailure(.unavailable, "selfTestFailed", "The self-test failed: \(error).")
        }
    }
}
