#if Logging
import Logging
import Testing

@testable import MicroVM

/// What a guest says through `microvm_log`, and what of it arrives.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct GuestLogTests {
    private let log = LogRecorder()

    private func sandbox(
        _ level: Logger.Level? = .trace,
        _ limits: (inout GuestLogLimits) -> Void = { _ in },
        clock: Shared<UInt64> = Shared(0),
        event: @escaping @Sendable (Int64) -> Void = { _ in }
    ) async throws -> Sandbox {
        try await Guest.logging.sandbox([HostFunction("host_event") { (number: Int64) in event(number) }]) {
            $0.logger = level.map { log.logger($0) }
            $0.guestLogClock = { clock.value ?? 0 }
            limits(&$0.guestLogLimits)
        }
    }

    @Test func `a line of each level arrives as it was said, as the guest's`() async throws {
        let sandbox = try await sandbox()
        for level in 0...6 as ClosedRange<Int32> { try await sandbox.call("log_line", level, "level \(level)") }
        #expect(log.guests.map(\.level) == [.trace, .debug, .info, .notice, .warning, .error, .critical])
        #expect(log.guests.map(\.text) == (0...6).map { "level \($0)" })
        #expect(
            log.guests.allSatisfy { $0["function"] == "log_line" && $0["sandbox"]?.hasPrefix("logging.so#") == true }
        )
        #expect(Set(log.guests.compactMap { $0["call"] }).count == 7)
    }

    @Test func `lines below the logger's level vanish, and do not count`() async throws {
        let sandbox = try await sandbox(.warning, { $0.burst = 1 })
        for _ in 0..<3 { try await sandbox.call("log_same_line", 3 as Int32, 10) }
        #expect(log.lines.count == 0)
        try await sandbox.call("log_line", 4 as Int32, "now")
        #expect(log.guests.map(\.text) == ["now"] && log.lines.count == 1)
    }

    @Test func `without a logger all lines vanish`() async throws {
        let sandbox = try await sandbox(nil)
        try await sandbox.call("log_lines", 6 as Int32, 10)
        #expect(log.lines.count == 0)
    }

    @Test(arguments: [-1, 7, .min, .max] as [Int32], [Logger.Level.trace, .critical, nil])
    func `there are seven levels and no others, whoever listens`(_ level: Int32, _ listening: Logger.Level?)
        async throws
    {
        let sandbox = try await sandbox(listening)
        let error = await #expect(throws: SandboxError.self) { try await sandbox.call("log_line", level, "text") }
        #expect(error?.fault?.kind == .invalidHostCall && error?.fault?.symbol?.name == "log_line")
        #expect(log.guests.isEmpty)
    }

    @Test(
        arguments: [(0, 1), (0x7f00_0000_0000, 16), (0x10000, 1), (0x21000, 8), (.max, 1), (1 << 63, .max)]
            as [(UInt64, UInt64)],
        [Logger.Level.trace, .critical, nil]
    )
    func `a pointer that is not the guest's own is a fault, whoever listens`(
        _ line: (address: UInt64, length: UInt64),
        _ listening: Logger.Level?
    ) async throws {
        let sandbox = try await sandbox(listening, { $0.burst = 0 })
        let error = await #expect(throws: SandboxError.self) {
            try await sandbox.call("log_at", 2 as Int32, line.address, line.length)
        }
        #expect(error?.fault?.kind == .invalidPointer && error?.fault?.address == line.address)
        #expect(error?.fault?.access == .read && log.guests.isEmpty)
    }

    @Test func `no bytes at all may be anywhere`() async throws {
        let sandbox = try await sandbox()
        try await sandbox.call("log_at", 2 as Int32, UInt64.max, 0 as UInt64)
        #expect(log.guests.map(\.text) == [""])
    }

    @Test func `hostile text arrives harmless`() async throws {
        let sandbox = try await sandbox()
        let text: [UInt8] = Array("a\n2026-01-01 forged\u{1B}[2J".utf8) + [0xff, 0] + Array("\u{202E}end".utf8)
        try await sandbox.call("log_line", 2 as Int32, text)
        #expect(log.guests.map(\.text) == [#"a\n2026-01-01 forged\u{1B}[2J"# + "\u{FFFD}" + #"\0\u{202E}end"#])
    }

    @Test func `a long line is cut between two characters`() async throws {
        let sandbox = try await sandbox(.info, { $0.maximumLength = 10 })
        try await sandbox.call("log_line", 2 as Int32, "0123456789")
        try await sandbox.call("log_line", 2 as Int32, "01234567😀")
        try await sandbox.call("log_line", 2 as Int32, String(repeating: "x", count: 1 << 20))
        #expect(log.guests.map(\.text) == ["0123456789", "01234567…", "xxxxxxxxxx…"])
    }

    @Test func `as much of a guest's memory as it likes is not read`() async throws {
        let sandbox = try await sandbox()
        let heap = try await sandbox.run { try $0.memory.addressSpace.heap }
        try await sandbox.call("log_at", 2 as Int32, heap.lowerBound, UInt64(heap.count))
        // All zero, and each escaped.
        #expect(log.guests.map(\.text) == [String(repeating: #"\0"#, count: 1024) + "…"])
    }

    @Test func `formatted lines are one host call each, and cut by the guest`() async throws {
        let sandbox = try await sandbox(.trace, { $0.maximumLength = 65_536 })
        try await sandbox.call("log_long_line", 2 as Int32, 1000)
        #expect(log.guests.map(\.text.utf8.count) == [1023])
        #expect(log.lines("The call has returned").map { $0["host_calls"] } == ["1"])
    }

    @Test func `lines that come too soon are counted, and told of at the call's end`() async throws {
        let clock = Shared<UInt64>(5)
        let limits = { (limits: inout GuestLogLimits) in (limits.linesPerSecond, limits.burst) = (2, 3) }
        let sandbox = try await sandbox(.info, limits, clock: clock)
        try await sandbox.call("log_lines", 2 as Int32, 10)
        #expect(log.guests.map(\.text) == ["line 0", "line 1", "line 2"])
        #expect(log.lines("The guest logs faster").map { $0["suppressed"] } == ["7"])
        #expect(log.lines("The guest logs faster").allSatisfy { $0.level == .notice && $0["function"] == "log_lines" })
        try await sandbox.call("log_lines", 2 as Int32, 1)
        #expect(log.guests.count == 3 && log.lines("The guest logs faster").map { $0["suppressed"] } == ["7", "1"])
        clock.value = 1_000_000_005
        try await sandbox.call("log_lines", 2 as Int32, 3)
        #expect(log.guests.dropFirst(3).map(\.text) == ["line 0", "line 1"])
        #expect(log.lines("The guest logs faster").map { $0["suppressed"] } == ["7", "1", "1"])
        clock.value = 2_000_000_005
        try await sandbox.call("log_lines", 2 as Int32, 2)
        #expect(log.guests.count == 7 && log.lines("The guest logs faster").count == 3)
    }

    @Test func `what was suppressed is told of before the next line`() async throws {
        let clock = Shared<UInt64>(0)
        let limits = { (limits: inout GuestLogLimits) in (limits.linesPerSecond, limits.burst) = (1, 1) }
        let sandbox = try await sandbox(.info, limits, clock: clock) { clock.value = UInt64($0) }
        try await sandbox.call("log_around_event", 999_999_999 as Int64)
        try await sandbox.call("log_around_event", 1_000_000_000 as Int64)
        let texts = log.lines.all.map(\.text)
        #expect(
            texts == [
                "before 999999999", "The guest logs faster than it may.", "The guest logs faster than it may.",
                "after 1000000000",
            ]
        )
    }

    @Test func `a guest that does nothing else is told of once`() async throws {
        let sandbox = try await sandbox(.info, { $0.burst = 0 })
        let count = Surroundings.scaled(5000)
        let quiet = try await self.sandbox(.critical, { $0.burst = 0 })
        try await quiet.call("log_same_line", 5 as Int32, 10)
        #expect(log.lines.count == 0)
        try await quiet.call("log_same_line", 6 as Int32, 10)
        #expect(log.lines.all.map { $0["suppressed"] } == ["10"])
        try await sandbox.call("log_same_line", 6 as Int32, count)
        #expect(log.lines.all.map { $0["suppressed"] } == ["10", "\(count)"])
    }

    @Test func `a sandbox's limit is its own`() async throws {
        let first = try await sandbox(.info, { $0.burst = 2 })
        let second = try await sandbox(.info, { $0.burst = 2 })
        for sandbox in [first, second] { try await sandbox.call("log_lines", 2 as Int32, 3) }
        #expect(log.guests.count == 4 && Set(log.guests.compactMap { $0["sandbox"] }).count == 2)
    }

    @Test func `the last words of a guest that faults arrive before its fault`() async throws {
        let sandbox = try await sandbox()
        await #expect(throws: SandboxError.self) { try await sandbox.call("log_and_trap", "it hurts") }
        #expect(log.lines.all.suffix(2).map(\.text) == ["it hurts", "The guest faulted."])
        #expect(log.lines.all.suffix(2).map(\.level) == [.error, .notice])
        #expect(Set(log.lines.all.suffix(2).map { $0["call"] }).count == 1)
    }

    @Test(arguments: [(-1, 1, 1), (1, -1, 1), (1, 1, 0), (1_000_001, 1, 1), (1, 1_000_001, 1), (1, 1, 65_537)])
    func `limits that make no sense are refused`(_ perSecond: Int, _ burst: Int, _ length: Int) async {
        let error = await #expect(throws: SandboxError.self) {
            _ = try await sandbox(
                .info,
                {
                    ($0.linesPerSecond, $0.burst, $0.maximumLength) = (perSecond, burst, length)
                }
            )
        }
        #expect(error?.code == .invalidConfiguration && error?.message.contains("guestLogLimits") == true)
    }
}
#endif
