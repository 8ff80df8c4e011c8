import LinuxKVM
import MicroVM

/// What doctor has found, for people and for programs.
struct DoctorReport: Encodable {
    struct Device: Encodable {
        var path: String
        var exists: Bool
        var opens: Bool
        var apiVersion: Int32?
    }

    struct Support: Encodable {
        var portPermission: String
        var avx: Bool
        var sharesRegisters: Bool
    }

    struct Polling: Encodable {
        var hits: UInt64
        var misses: UInt64
        var microseconds: Double
    }

    struct Measurements: Encodable {
        var guestCallMicroseconds: Double
        /// From elsewhere than the sandbox's thread, by callers and a guest that poll where that is possible.
        var polledCallMicroseconds: Double
        var polling: Polling
        var hostCallMicroseconds: Double
        var coldStartMicroseconds: Double
        /// XCR0 as the guest sees it.
        var extendedState: String
    }

    /// Whether sandboxes can be made and run here.
    var isReady: Bool
    var device: Device
    /// `kvm_intel` and the like, or `unknown`.
    var implementation: String
    var capabilities: [KVMDevice.Ability]
    var support: Support?
    var selfTest: Measurements?
    /// What confined the process during the self-test.
    var confinement: CommandConfinement.Report?
    var problem: String?
    var remedies: [String]

    init(
        path: String,
        device: KVMDevice,
        facts: HostFacts,
        support: HostSupport? = nil,
        selfTest: SelfTest? = nil,
        failure: CommandFailure? = nil
    ) {
        let isUsable = device.state == .usable
        self.device = Device(
            path: path,
            exists: device.state != .missing,
            opens: ![.missing, .notServed, .notPermitted].contains(device.state),
            apiVersion: isUsable ? KVM.expectedAPIVersion : nil
        )
        implementation = facts.implementation ?? "unknown"
        capabilities = device.abilities
        self.support = support.map {
            // Where KVM does not virtualise the extended state, the guest has it whatever KVM says it gives.
            let hasAVX = selfTest.map { $0.extendedState & 1 << 2 != 0 } ?? $0.hasAVX
            return Support(
                portPermission: $0.portPermission.rawValue,
                avx: hasAVX,
                sharesRegisters: $0.sharesRegisters
            )
        }
        self.selfTest = selfTest.map {
            Measurements(
                guestCallMicroseconds: TimeSpan($0.guestCall).microseconds,
                polledCallMicroseconds: TimeSpan($0.polledCall).microseconds,
                polling: Polling(
                    hits: $0.polling.hits,
                    misses: $0.polling.misses,
                    microseconds: TimeSpan($0.polling.timePolling).microseconds
                ),
                hostCallMicroseconds: TimeSpan($0.hostCall).microseconds,
                coldStartMicroseconds: TimeSpan($0.coldStart).microseconds,
                extendedState: $0.extendedState.hexadecimal
            )
        }
        isReady = isUsable && selfTest != nil && failure == nil
        let advice = Advice(device.state, facts, path: path)
        problem = advice?.problem ?? failure?.message
        remedies = advice?.remedies ?? []
        if advice == nil, failure != nil {
            remedies = ["Look for messages of the kernel: sudo dmesg | grep -i kvm."]
        }
    }

    var text: String {
        var rows: [[String]] = []
        func yesNo(_ isTrue: Bool) -> String { isTrue ? "yes" : "no" }
        rows.append([device.path, device.exists ? "there" : "missing"])
        if device.exists { rows.append(["may be opened", yesNo(device.opens)]) }
        if let version = device.apiVersion { rows.append(["version of the API", "\(version)"]) }
        rows.append(["implementation", implementation])
        for capability in capabilities {
            let missing = capability.isRequired ? "no: required" : "no"
            rows.append([capability.name, capability.isPresent ? "yes" : missing, capability.purpose])
        }
        if let support {
            rows.append(["AVX", yesNo(support.avx), "for guests"])
            let bitmap = support.portPermission == HostSupport.PortPermission.bitmap.rawValue
            rows.append([
                "port permission", bitmap ? "bitmap" : "privilege level",
                bitmap ? "the processor permits the library's ports only" : "the library refuses foreign ports",
            ])
        }
        if let selfTest {
            rows.append(["guest call", time(selfTest.guestCallMicroseconds), "median, from the host and back"])
            let polling = selfTest.polling
            let polled =
                polling.hits == 0
                ? "median, from elsewhere; no call has found the guest polling"
                : "median, from elsewhere; \(polling.hits) hits, \(polling.misses) misses, "
                    + "polling for \(time(polling.microseconds))"
            rows.append(["polled call", time(selfTest.polledCallMicroseconds), polled])
            rows.append(["host call", time(selfTest.hostCallMicroseconds), "median, from the guest and back"])
            rows.append(["cold start", time(selfTest.coldStartMicroseconds), "a new sandbox to its first result"])
        }
        if let confinement { rows += self.rows(confinement) }
        var lines = TextTable.lines(rows)
        lines.append("")
        if isReady {
            lines.append("This machine can run guests.")
        } else {
            lines.append("This machine cannot run guests. \(problem ?? "")")
            lines += remedies.map { "  - \($0)" }
        }
        return lines.joined(separator: "\n") + "\n"
    }

    private func rows(_ confinement: CommandConfinement.Report) -> [[String]] {
        let state = confinement.isApplied ? "on" : confinement.failure == nil ? "off" : "fails"
        let capabilities = confinement.capabilities.isEmpty ? "none" : "\(confinement.capabilities.count)"
        return [
            ["confinement", state, confinement.failure ?? "of this process during these measurements"],
            ["capabilities", capabilities, confinement.capabilities.prefix(3).joined(separator: ", ")],
            ["new privileges", confinement.forbidsNewPrivileges ? "forbidden" : "possible", "by running programs"],
            ["system calls", confinement.filtersSystemCalls ? "filtered" : "all", "by seccomp"],
        ]
    }

    private func time(_ microseconds: Double) -> String { "\(microseconds.decimal(places: 1)) µs" }
}
