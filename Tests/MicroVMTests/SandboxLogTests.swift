#if Logging
import Logging
import Testing

@testable import MicroVM

/// What a sandbox and a pool tell a logger: with which level, and which metadata.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct SandboxLogTests {
    private struct OwnError: Error, CustomStringConvertible {
        var description: String { "no \u{1B}[31msuch\narticle" }
    }

    private let log = LogRecorder()

    private func sandbox(
        _ guest: Guest,
        _ hostFunctions: [HostFunction] = [],
        _ level: Logger.Level = .debug,
        configure: (inout SandboxConfiguration) -> Void = { _ in }
    ) async throws -> Sandbox {
        try await guest.sandbox(hostFunctions) {
            $0.logger = log.logger(level)
            // Exits are counted.
            $0.polling = .never
            configure(&$0)
        }
    }

    private func expectError(_ code: SandboxError.Code, _ body: () async throws -> Void) async {
        let error = await #expect(throws: SandboxError.self) { try await body() }
        #expect(error?.code == code)
    }

    @Test func `a sandbox is made and closed under a name of its own`() async throws {
        let first = try await sandbox(.hello)
        let second = try await sandbox(.hello)
        let made = log.lines("The sandbox has been made")
        let names = made.compactMap { $0["sandbox"] }
        #expect(made.allSatisfy { $0.level == .debug } && names.count == 2 && Set(names).count == 2)
        #expect(names.allSatisfy { $0.hasPrefix("hello.so#") && Int($0.dropFirst(9)) != nil })
        await second.close()
        #expect(log.lines("The sandbox has been closed").map { $0["sandbox"] } == [names[1]])
        await first.close()
        #expect(log.lines("The sandbox has been closed").map { $0["sandbox"] } == [names[1], names[0]])
        #expect(log.lines.count == 4)
    }

    @Test func `a call that returns is told of at the level trace alone`() async throws {
        let quiet = try await sandbox(.arithmetic, [], .debug)
        #expect(try await quiet.call("add", 2, 3) == 5)
        #expect(log.lines("The call").isEmpty)
        let sandbox = try await sandbox(.arithmetic, [], .trace)
        for _ in 0..<3 { #expect(try await sandbox.call("add", 2, 3) == 5) }
        let calls = log.lines("The call has returned")
        #expect(calls.map(\.level) == [.trace, .trace, .trace])
        #expect(calls.map { $0["function"] } == ["add", "add", "add"])
        let numbers = calls.compactMap { $0["call"].flatMap { Int($0) } }
        #expect(numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2])
        #expect(calls.allSatisfy { $0["exits"] == "1" && $0["host_calls"] == "0" && $0["duration"] != nil })
    }

    @Test func `a fault is told of with its kind, its place and its call`() async throws {
        let sandbox = try await sandbox(.logging, [HostFunction("host_event") { (_: Int64) in }])
        await expectError(.guestFault) { try await sandbox.call("trap") }
        let fault = try #require(log.lines("The guest faulted").first)
        #expect(fault.level == .notice && fault["fault"] == "invalidInstruction")
        #expect(fault["symbol"]?.hasPrefix("trap") == true && fault["function"] == "trap" && fault["call"] != nil)
        #expect(fault["instruction"]?.hasPrefix("0x") == true && fault["sandbox"]?.hasPrefix("logging.so#") == true)
        #expect(log.own.count == 2)
        // A call that is refused is no call.
        await expectError(.poisoned) { try await sandbox.call("trap") }
        #expect(log.own.count == 2)
    }

    @Test func `an abort is told of with the guest's words, made harmless`() async throws {
        let sandbox = try await sandbox(.memory)
        await expectError(.guestFault) { try await sandbox.call("fail_assertion", arguments: [0]) }
        let fault = try #require(log.lines("The guest faulted").first)
        #expect(fault["fault"] == "abort" && fault["message"]?.contains("assertion failed") == true)
    }

    @Test func `a call that is ended from outside is told of with the reason`() async throws {
        let killed = try await SpinningGuest { $0.logger = log.logger() }
        #expect(await onThread { killed.handle.kill() } == .signalled)
        _ = await killed.call.value
        let spinning = try await sandbox(.spin)
        await expectError(.timeLimitExceeded) { try await spinning.call("spin", timeLimit: .milliseconds(5)) }
        let working = try await sandbox(.spin)
        await expectError(.cpuTimeLimitExceeded) { try await working.call("spin", cpuTimeLimit: .milliseconds(5)) }
        let cancelled = try await sandbox(.echo)
        let task = Task {
            await waitUntil { Task.isCancelled }
            await expectError(.taskCancelled) { try await cancelled.call("add_to_static", 5) }
        }
        task.cancel()
        await task.value
        let ends = log.lines("The call was ended")
        #expect(ends.allSatisfy { $0.level == .notice })
        #expect(ends.map { $0["reason"] } == ["killed", "time_limit", "cpu_time_limit", "task_cancelled"])
        #expect(ends.map { $0["function"] } == ["spin_and_say_so", "spin", "spin", "add_to_static"])
        #expect(ends[1]["symbol"]?.hasPrefix("spin") == true && ends[1]["host_function"] == nil)
    }

    @Test func `a host function that throws is named, and what it throws is harmless`() async throws {
        let tick = HostFunction("host_tick") { () throws -> Void in throw OwnError() }
        let sandbox = try await sandbox(.hostCalls, hostFunctions(tick))
        await #expect(throws: OwnError.self) { try await sandbox.call("call_tick") }
        let failure = try #require(log.lines("A host function failed").first)
        #expect(failure.level == .warning && failure["host_function"] == "host_tick")
        #expect(failure["function"] == "call_tick" && failure["error"] == #"no \u{1B}[31msuch\narticle"#)
        #expect(log.own.count == 2)
    }

    @Test func `of host functions inside each other, the one that throws is named, once`() async throws {
        let descend = HostFunction("host_descend") { (context: HostCallContext, depth: Int64) throws -> Int64 in
            if depth == 0 { try context.call("call_tick") }
            return try context.call("descend", depth)
        }
        let tick = HostFunction("host_tick") { () throws -> Void in throw OwnError() }
        let sandbox = try await sandbox(.hostCalls, hostFunctions(descend, tick))
        await #expect(throws: OwnError.self) { try await sandbox.call("descend", 3 as Int64) as Int64 }
        #expect(log.lines("A host function failed").map { $0["host_function"] } == ["host_tick"])
        #expect(log.own.count == 2)
    }

    @Test func `a kill during a host function names it, and is no failure of its`() async throws {
        let sandbox = Shared<Sandbox>(nil)
        let tick = HostFunction("host_tick") { (context: HostCallContext) throws -> Void in
            #expect(sandbox.value?.interruptHandle.kill() == .pending)
            try context.checkCancellation()
        }
        sandbox.value = try await self.sandbox(.hostCalls, hostFunctions(tick))
        await expectError(.killed) { try await sandbox.value?.call("call_tick") }
        let end = try #require(log.lines("The call was ended").first)
        #expect(end["host_function"] == "host_tick" && end["reason"] == "killed" && log.own.count == 2)
        sandbox.value = nil
    }

    @Test func `another sandbox's fault in a host function is not this one's`() async throws {
        let inner = try await Guest.faults.sandbox()
        let tick = HostFunction("host_tick") { () async throws -> Void in try await inner.call("write_null") }
        let sandbox = try await sandbox(.hostCalls, hostFunctions(tick))
        await expectError(.guestFault) { try await sandbox.call("call_tick") }
        #expect(log.lines("A host function failed").count == 1 && log.lines("The guest faulted").isEmpty)
    }

    @Test func `the embedder's own mistakes are not told of`() async throws {
        let sandbox = try await sandbox(.echo) { $0.argumentArenaSize = 4096 }
        let text = String(repeating: "x", count: 10_000)
        await expectError(.argumentTooLarge) { _ = try await sandbox.call("byte_length", text) as Int }
        await expectError(.unknownExport) { try await sandbox.call("no_such_function") }
        #expect(log.own.count == 1)
    }

    @Test func `a restore that drops pages is told of`() async throws {
        let sandbox = try await sandbox(.state) { $0.residentMemoryAfterRestore = 0 }
        let snapshot = try await sandbox.snapshot()
        let none = try await sandbox.restore(to: snapshot)
        #expect(none.pagesDropped == 0 && log.own.count == 1)
        try await sandbox.call("write_pages", 0 as UInt64, 20 as UInt64, 1 as UInt64, 1 as UInt64)
        let statistics = try await sandbox.restore(to: snapshot)
        let line = try #require(log.lines("A restore has dropped pages").first)
        #expect(line.level == .debug && line["pages_dropped"] == "\(statistics.pagesDropped)")
        #expect(statistics.pagesDropped >= 20 && line["pages_copied"] == "\(statistics.pagesCopied)")
    }

    @Test func `a pool tells of itself, and of a crowd once`() async throws {
        var configuration = SandboxConfiguration()
        configuration.logger = log.logger(.debug)
        let pool = try await SandboxPool(
            Guest.logging.module(),
            hostFunctions: [HostFunction("host_event") { (_: Int64) in }],
            configuration: configuration,
            size: 1...1,
            maximumWaiters: 0,
            name: "plugins"
        )
        #expect(log.lines("The pool has been made").map { $0["pool"] } == ["plugins"])
        for round in 1...2 {
            let borrower = await Borrower(of: pool) { try? await $0.call("trap") }
            for _ in 0..<5 { await expectError(.poolExhausted) { try await pool.withSandbox { _ in } } }
            #expect(log.lines("The pool turns callers away").map(\.level) == Array(repeating: .warning, count: round))
            await borrower.finish()
            _ = await pool.settled()
        }
        let returns = log.lines("A sandbox came back")
        #expect(returns.map { $0["poisoned"] } == ["true", "true"] && returns.allSatisfy { $0.level == .debug })
        await pool.shutDown()
        await pool.shutDown()
        #expect(log.lines("The pool shuts down").count == 1)
        // The one that was prepared and the one that was lent.
        #expect(log.lines("The sandbox has been closed").count == 2)
    }

    @Test func `names out of files are made harmless`() async throws {
        let bytes = try GuestModule(contentsOf: Guest.hello.path).bytes
        let module = try GuestModule(bytes, name: "a\nb\u{202E}c" + String(repeating: "x", count: 1000))
        var configuration = SandboxConfiguration()
        configuration.logger = log.logger()
        let sandbox = try await Sandbox(module, configuration: configuration)
        let name = try #require(log.own.first?["sandbox"])
        #expect(name.hasPrefix(#"a\nb\u{202E}cxxx"#) && name.contains("x…#") && name.utf8.count < 300)
        await sandbox.close()
    }
}

/// Text of unknown origin, before it is logged.
struct HarmlessTextTests {
    @Test(arguments: [
        ("plain text, Größe, 日本語, 😀", "plain text, Größe, 日本語, 😀"),
        ("a\nb\r\tc\0", #"a\nb\r\tc\0"#),
        ("\u{1B}]0;title\u{7}", #"\u{1B}]0;title\u{07}"#),
        ("\u{7F}\u{85}\u{9B}31m", #"\u{7F}\u{0085}\u{009B}31m"#),
        ("\u{202E}abc\u{2066}\u{200F}\u{FEFF}", #"\u{202E}abc\u{2066}\u{200F}\u{FEFF}"#),
        ("a\u{2028}b\u{2029}", #"a\u{2028}b\u{2029}"#), ("", ""), (#"C:\new"#, #"C:\new"#),
    ])
    func `what has no shape is escaped, all else stays`(_ text: String, _ harmless: String) {
        #expect(HarmlessText.text(Array(text.utf8)) == harmless)
    }

    @Test func `what is not UTF-8 is replaced`() {
        #expect(HarmlessText.text([0x61, 0xff, 0x62]) == "a\u{FFFD}b")
        #expect(HarmlessText.text([0xc0, 0x80]) == "\u{FFFD}\u{FFFD}")
        #expect(HarmlessText.text([0xed, 0xa0, 0x80]).unicodeScalars.allSatisfy { $0 == "\u{FFFD}" })
        for _ in 0..<1000 {
            let bytes = (0..<Int.random(in: 0...40)).map { _ in UInt8.random(in: 0...(.max)) }
            let text = HarmlessText.text(bytes, isCut: .random())
            #expect(!text.unicodeScalars.contains { $0.properties.generalCategory == .control })
        }
    }

    @Test func `a character that is cut through goes as a whole`() {
        for count in 1...4 {
            let text = Array("ab😀".utf8.prefix(2 + count))
            #expect(HarmlessText.text(text, isCut: true) == (count == 4 ? "ab😀" : "ab"))
        }
        #expect(HarmlessText.text(String(repeating: "é", count: 100), limit: 5) == "éé…")
        #expect(HarmlessText.text("abc", limit: 3) == "abc")
        #expect(HarmlessText.text([0x80, 0x80, 0x80, 0x80], isCut: true).unicodeScalars.count == 4)
    }
}

struct TokenBucketTests {
    @Test func `a burst, then as many as the time allows`() {
        var bucket = TokenBucket(perSecond: 2, burst: 3, now: 100)
        var now: UInt64 = 100
        func taken() -> Int { (0..<10).count { _ in bucket.take(now: now) } }
        #expect(taken() == 3)
        now += 499_999_999
        #expect(taken() == 0)
        now += 1
        #expect(taken() == 1)
        now += 1_250_000_000
        #expect(taken() == 2)
        now += 250_000_000
        #expect(taken() == 1)
        now += 3_600_000_000_000
        #expect(taken() == 3)
        // A clock that goes back, and one that goes to the end of time.
        now -= 1_000_000_000
        #expect(taken() == 0)
        now = .max
        #expect(taken() == 3)
    }

    @Test func `nothing at all, and as much as can be`() {
        var nothing = TokenBucket(perSecond: 1_000_000, burst: 0, now: 0)
        let none = nothing.take(now: .max)
        #expect(!none)
        var burst = TokenBucket(perSecond: 0, burst: 1, now: 0)
        let (first, second) = (burst.take(now: 1), burst.take(now: .max))
        #expect(first && !second)
        var most = TokenBucket(perSecond: 1_000_000, burst: 1_000_000, now: 0)
        let taken = (0..<1_000_001).count { _ in most.take(now: 0) }
        let (one, two) = (most.take(now: 1000), most.take(now: 1000))
        #expect(taken == 1_000_000 && one && !two)
    }
}
#endif
