import MicroVM
import MicroVMTesting
import Synchronization
import Testing

/// Guests' tests as Swift tests.
@Suite(.timeLimit(.minutes(5)))
struct GuestTestsTests {
    private static func path(_ guest: String) -> String { "\(GuestImages.directory)/\(guest).so" }

    private static func test(_ name: String, in guest: String = "outcomes") throws -> GuestTest {
        try #require(GuestTests(path(guest)).first { $0.name == name })
    }

    /// What a test's run is recorded as: its issues, and what it throws.
    private static func issues(
        _ name: String,
        in guest: String = "outcomes",
        timeLimit: Duration = .seconds(20)
    ) async throws -> [Issue] {
        let test = try #require(GuestTests(path(guest), timeLimit: timeLimit).first { $0.name == name })
        let issues = Mutex<[Issue]>([])
        try await withKnownIssue {
            try await test.run()
        } matching: { issue in
            issues.withLock { $0.append(issue) }
            return true
        }
        return issues.withLock { $0 }
    }

    // MARK: - As they are meant to be used

    @Test(.requiresKVM, arguments: GuestTests(path("lz4_tests")))
    func lz4(_ test: GuestTest) async throws { try await test.run() }

    @Test(.requiresKVM, arguments: GuestTests(path("zlib_tests"), timeLimit: .seconds(60)))
    func zlib(_ test: GuestTest) async throws { try await test.run() }

    @Test(.requiresKVM, arguments: GuestTests(path("setup_skips_tests")))
    func `a test that is skipped goes no further`(_ test: GuestTest) async throws {
        try await test.run()
        #if compiler(>=6.3)
        Issue.record("A skipped test has gone on.")
        #endif
    }

    // MARK: - The collection

    @Test func `tests are described by module and name, in the order of the source`() {
        let tests = GuestTests(Self.path("setup_fails_tests"))
        #expect(tests.map(\.id) == ["test_one", "test_two", "test_three"].map { "setup_fails_tests/\($0)" })
        #expect(tests.map(\.testDescription) == tests.map(\.id))
        #expect(tests[1].module == "setup_fails_tests" && tests[1].name == "test_two")
    }

    @Test func `descriptions cannot act on a terminal`() {
        let descriptions = GuestTests(Self.path("hostile_tests")).map(\.testDescription)
        #expect(descriptions.count == 6)
        #expect(descriptions.joined().unicodeScalars.allSatisfy { $0.properties.generalCategory != .control })
    }

    @Test(arguments: [
        ("/nonexistent.so", "cannot be read"), ("hello", "begins with test_"), ("/proc/self/maps", "cannot be loaded"),
    ])
    func `what has no tests is one test that fails`(guest: String, message: String) async throws {
        let tests = GuestTests(guest.hasPrefix("/") ? guest : Self.path(guest))
        #expect(tests.count == 1)
        let error = await #expect(throws: GuestTestError.self) { try await tests[0].run() }
        #expect(try #require(error).description.contains(message))
    }

    // MARK: - Endings

    @Test(.requiresKVM)
    func `failed checks are issues at the guest's file and line`() async throws {
        let issues = try await Self.issues("test_fails_a_check")
        #expect(issues.count == 1)
        let location = try #require(issues.first?.sourceLocation)
        #expect(location.fileID == "outcomes/outcomes.c" && location.line == 16)
        let comments = issues[0].comments.map(\.rawValue).joined()
        #expect(comments.hasPrefix("CHECK_EQ(6 * 7, 41): 42 (0x2a) is not 41 (0x29)\noutput:\n| before the check"))
        #expect(try await Self.issues("test_fails_every_check").count == 17)
        #expect(try await Self.issues("test_fails_a_thousand_checks").count == 100)
        let swift = try await Self.issues("test_fails_checks", in: "swift_tests")
        #expect(swift.map { $0.sourceLocation?.fileID } == Array(repeating: "swift_tests/swift_tests.swift", count: 7))
    }

    @Test(.requiresKVM, arguments: ["test_reports_nonsense", "test_writes_hostile_bytes"])
    func `a guest can say what it likes`(_ name: String) async throws {
        let issues = try await Self.issues(name)
        #expect(issues.count == 1)
        let text = issues[0].comments.map(\.rawValue).joined()
        #expect(text.unicodeScalars.allSatisfy { $0 == "\n" || $0.properties.generalCategory != .control })
    }

    @Test(.requiresKVM)
    func `a name that is no name is a test as any other`() async throws {
        for test in GuestTests(Self.path("hostile_tests")) where !test.name.contains("fails") { try await test.run() }
        #expect(try await Self.issues("test_<fails>\u{1b}", in: "hostile_tests").count == 2)
    }

    @Test(
        .requiresKVM,
        arguments: [
            ("test_returns_seven", "The test returned 7."),
            ("test_crashes", "Illegal memory access at test_crashes+0x"),
            ("test_aborts", "The guest aborted at test_aborts"),
            ("test_overflows_the_stack", "Stack overflow at descend"),
        ]
    )
    func `all other failures are errors that say what happened`(name: String, message: String) async throws {
        let test = try Self.test(name)
        let error = try #require(await #expect(throws: GuestTestError.self) { try await test.run() })
        #expect(error.test == "outcomes/\(name)")
        #expect(error.message.hasPrefix(message))
        #expect(error.description.hasPrefix("outcomes/\(name): \(message)"))
        #expect(error.backtrace.isEmpty == (name == "test_returns_seven"))
        #expect(error.output == (name == "test_crashes" ? ["about to crash"] : []))
    }

    @Test(.requiresKVM)
    func `a crash after a failed check is both`() async throws {
        let issues = try await Self.issues("test_crashes_after_a_check")
        #expect(issues.count == 2)
        #expect(issues.first?.sourceLocation?.line == 71)
        #expect((issues.last?.error as? GuestTestError)?.message.hasPrefix("Illegal memory access") == true)
    }

    @Test(.requiresKVM)
    func `a test that hangs is ended by its time limit`() async throws {
        let issues = try await Self.issues("test_hangs", timeLimit: .milliseconds(100))
        #expect((issues.first?.error as? GuestTestError)?.message.contains("its time limit had passed") == true)
    }

    @Test(.requiresKVM)
    func `cancelling the task ends the guest, and the next test runs`() async throws {
        let tests = GuestTests(Self.path("outcomes"), timeLimit: .seconds(3600))
        let hanging = try #require(tests.first { $0.name == "test_hangs" })
        let task = Task { try await hanging.run() }
        task.cancel()
        await #expect(throws: CancellationError.self) { try await task.value }
        try await #require(tests.first { $0.name == "test_passes" }).run()
    }

    @Test(.requiresKVM)
    func `initialisers that fail fail every test with the same reason`() async throws {
        for test in GuestTests(Self.path("setup_fails_tests")) {
            let error = try #require(await #expect(throws: GuestTestError.self) { try await test.run() })
            #expect(error.test == "setup_fails_tests: initialisers")
            #expect(error.message.hasSuffix(": no tables to be had"))
            #expect(error.output == ["setting up"])
        }
    }

    @Test(.requiresKVM)
    func `tests run at the same time, each in a fresh sandbox`() async throws {
        let tests = GuestTests(Self.path("outcomes"))
        let fresh = try #require(tests.first { $0.name == "test_is_in_a_fresh_sandbox" })
        try await withThrowingTaskGroup(of: Void.self) { group in
            for _ in 0..<40 { group.addTask { try await fresh.run() } }
            try await group.waitForAll()
        }
    }
}
