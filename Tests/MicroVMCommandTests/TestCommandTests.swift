import Foundation
import Testing

/// `microvm test`: what becomes of tests, and which of them run.
@Suite(.timeLimit(.minutes(5)))
struct TestCommandTests {
    /// All but those that do not end by themselves, or not always in the same way.
    private static let steady = "^(?!.*(hangs|flaky))"

    // MARK: - Endings

    @Test(.requiresKVM)
    func `every way to end is told apart, and one test does not disturb the next`() async throws {
        let run = try await TestCommandRun("outcomes", "--filter", Self.steady, "--time-limit", TestCommandRun.ample)
        #expect(run.run.status == 1)
        #expect(run.run.error == "")
        #expect(run.summary == "4 passed, 14 failed, 1 skipped")
        #expect(
            run.results.filter { $0.hasPrefix("PASS") } == [
                "PASS outcomes/test_passes", "PASS outcomes/test_is_in_a_fresh_sandbox", "PASS outcomes/test_floods",
                "PASS outcomes/test_leaks",
            ]
        )
        #expect(run.lines.contains("SKIP   outcomes/test_skips: there is no network in here"))
        #expect(
            run.details("test_fails_a_check") == [
                "c/outcomes.c:16: CHECK_EQ(6 * 7, 41): 42 (0x2a) is not 41 (0x29)", "output:", "| before the check",
                "| after the check",
            ]
        )
        #expect(run.details("test_fails_a_requirement") == ["c/outcomes.c:58: REQUIRE(runs == 1) does not hold"])
        #expect(run.details("test_returns_seven") == ["The test returned 7."])
        let crash = run.details("test_crashes")
        try #require(crash.count == 4)
        #expect(crash[0].hasPrefix("Illegal memory access at test_crashes+0x"))
        #expect(crash[0].hasSuffix(", write of 0x10"))
        #expect(crash[1].hasPrefix("at 0x") && crash[1].contains(" test_crashes+0x"))
        #expect(crash.suffix(2) == ["output:", "| about to crash"])
        let both = run.details("test_crashes_after_a_check")
        try #require(both.count == 3)
        #expect(both[0] == "c/outcomes.c:71: CHECK(runs == 1) does not hold")
        #expect(both[1].hasPrefix("Illegal memory access"))
        #expect(run.detail("test_aborts").hasSuffix(": out of \\u{1B}[31mluck\\n"))
        #expect(run.detail("test_asserts").contains("assertion failed: runs == 1"))
        #expect(run.detail("test_overflows_the_stack").hasPrefix("Stack overflow at descend"))
        #expect(run.details("test_skips_after_a_failure") == ["c/outcomes.c:104: CHECK(runs == 1) does not hold"])
        #expect(
            run.details("test_reports_nonsense") == [
                "(not in the guest's memory):4294967295: (not in the guest's memory)"
            ]
        )
    }

    @Test(.requiresKVM)
    func `checks say what was compared, and what it was`() async throws {
        let run = try await TestCommandRun("outcomes", "--filter", "fails_every_check")
        #expect(run.run.status == 1)
        let messages = run.details("test_fails_every_check").map { $0.split(separator: ":", maxSplits: 2)[2] }
        #expect(
            messages == [
                " CHECK(runs == 1) does not hold",
                " CHECK_EQ(-1, 0xffffffffu): -1 is not 4294967295 (0xffffffff)",
                " CHECK_EQ((uint8_t)200, (int8_t)-56): 200 (0xc8) is not -56 (-0x38)",
                " CHECK_EQ(UINT64_MAX, INT64_MIN): 18446744073709551615 (0xffffffffffffffff) is not "
                    + "-9223372036854775808 (-0x8000000000000000)",
                " CHECK_EQ(true, false): 1 is not 0",
                " CHECK_EQ(1.5, 1): 1.5 is not 1",
                " CHECK_EQ((void *)16, null): 0x10 is not (nil)",
                " CHECK_NE(runs, 0): 0 is 0",
                " CHECK_LT(3, 3u): 3 is not less than 3",
                " CHECK_LE(0x10, 2): 16 (0x10) is greater than 2",
                " CHECK_GT(-2, -1): -2 is not greater than -1",
                " CHECK_GE(1, 1.25f): 1 is less than 1.25",
                " CHECK_NEAR(1.0, 1.5): 1 and 1.5 differ by 0.5, more than 0.25",
                " CHECK_STR(\"one\\ttext\", \"one\\nother\"): \"one\\x09text\" is not \"one\\nother\"",
                " CHECK_STR(\"some\", null): \"some\" is not null",
                " CHECK_MEM(left, right, sizeof left): 40 bytes differ from byte 2 on: "
                    + "03\(String(repeating: " 00", count: 15)) is not 04\(String(repeating: " 00", count: 15))",
                " CHECK_EQ(0.0 / 0.0, 0.0 / 0.0): nan cannot be compared with nan",
            ]
        )
    }

    @Test(.requiresKVM)
    func `checks in Swift do the same`() async throws {
        let run = try await TestCommandRun("swift_tests")
        #expect(run.run.status == 1)
        #expect(
            run.results == [
                "PASS swift_tests/test_strings", "PASS swift_tests/test_collections",
                "FAIL swift_tests/test_fails_checks", "FAIL swift_tests/test_fails_a_required_equality",
                "FAIL swift_tests/test_fails_a_requirement", "FAIL swift_tests/test_traps",
                "SKIP swift_tests/test_skips",
            ]
        )
        #expect(
            run.details("test_fails_checks") == [
                "swift_tests/swift_tests.swift:26: checkEqual(_:_:): 2 is not 3",
                "swift_tests/swift_tests.swift:27: checkEqual(_:_:): left is not right",
                "swift_tests/swift_tests.swift:28: a number was expected",
                "swift_tests/swift_tests.swift:29: checkNotEqual(_:_:): 2 is 2",
                "swift_tests/swift_tests.swift:30: checkLess(_:_:): 3 is not less than 3",
                "swift_tests/swift_tests.swift:31: checkLessOrEqual(_:_:): b is greater than a",
                "swift_tests/swift_tests.swift:32: checkNear(_:_:_:): 1.0 is not near 1.5",
            ]
        )
        #expect(
            run.details("test_fails_a_required_equality") == [
                "swift_tests/swift_tests.swift:43: requireEqual(_:_:): 1 is not 2"
            ]
        )
        #expect(
            run.details("test_fails_a_requirement") == ["swift_tests/swift_tests.swift:51: require(_:) is nil"]
        )
        #expect(run.detail("test_traps").hasPrefix("Invalid instruction at "))
    }

    @Test(.requiresKVM)
    func `a time limit ends tests that hang, in the guest and in host calls`() async throws {
        let run = try await TestCommandRun("outcomes", "--filter", "hangs", "--time-limit", "200ms")
        #expect(run.run.status == 1)
        #expect(run.summary == "0 passed, 2 failed, 0 skipped")
        for test in ["test_hangs", "test_hangs_in_host_calls"] {
            #expect(run.detail(test).contains("its time limit had passed, at \(test)+0x"))
        }
    }

    @Test(.requiresKVM)
    func `the limits are those of the initialisers too, and memory is one of them`() async throws {
        let hanging = try await TestCommandRun("setup_hangs_tests", "--time-limit", "200ms")
        #expect(hanging.run.status == 1)
        #expect(hanging.summary == "0 passed, 1 failed, 0 skipped, 2 not run")
        #expect(hanging.lines.dropFirst().first?.contains("its time limit had passed, at set_up") == true)
        let leaking = try await TestCommandRun("outcomes", "--filter", "leaks", "--memory", "8MiB")
        #expect(leaking.details("test_leaks").first?.hasSuffix("REQUIRE(bytes != NULL) does not hold") == true)
    }

    @Test(.requiresKVM)
    func `what tests write and report is bounded, and cannot act on a terminal`() async throws {
        let run = try await TestCommandRun(
            "outcomes",
            "--filter",
            "floods|hostile|thousand",
            "--time-limit",
            TestCommandRun.ample,
            report: true
        )
        #expect(run.run.status == 1)
        let flood = run.details("test_floods_and_fails")
        #expect(flood.count < 110)
        #expect(flood.contains("| the beginning") && flood.last == "| the end")
        #expect(flood.allSatisfy { $0.count < 600 })
        #expect(flood.contains { $0.contains("bytes left out]") })
        #expect(run.details("test_fails_a_thousand_checks").last == "and 980 more failed checks")
        #expect(
            run.run.outputText.unicodeScalars.allSatisfy { $0 == "\n" || $0.properties.generalCategory != .control }
        )
        #expect(run.run.output.count < 100_000)
        let report = try #require(run.report)
        JUnitSchema.check(report)
        let cases = report.children("testsuite")[0].children("testcase")
        let sizes = cases.flatMap(\.children).map(\.text.utf8.count)
        #expect(sizes.allSatisfy { $0 < 70_000 })
        #expect(try #require(sizes.max()) > 60_000)
        #expect(cases.contains { $0.children("failure").first?.text.contains("and 900 more failed checks") == true })
    }

    @Test(.requiresKVM)
    func `initialisers that fail are one failure, and those that skip skip all`() async throws {
        let paths = ["setup_fails_tests", "setup_skips_tests"].map(CommandRun.guest)
        let run = try await TestCommandRun(paths + ["--parallel", "4"], report: true)
        #expect(run.run.status == 1)
        #expect(run.summary == "0 passed, 1 failed, 2 skipped, 3 not run")
        try #require(run.lines.count > 1)
        #expect(run.lines[0].hasPrefix("FAIL   setup_fails_tests: initialisers  "))
        #expect(run.lines[1].hasSuffix(": no tables to be had"))
        #expect(run.lines.contains("       | setting up"))
        #expect(run.lines.contains("SKIP   setup_skips_tests/test_two: not on this machine"))
        let report = try #require(run.report)
        JUnitSchema.check(report)
        let suites = report.children("testsuite")
        #expect(suites.map { $0.attributes["name"] } == ["setup_fails_tests", "setup_skips_tests"])
        #expect(suites[0].children("testcase").map { $0.attributes["name"] } == ["initialisers"])
        let skipped = try await TestCommandRun("setup_skips_tests")
        #expect(skipped.run.status == 0)
    }

    @Test(.requiresKVM)
    func `without a test runner failures go to standard error, and a skip is an abort`() async throws {
        func run(_ function: String) async throws -> CommandRun {
            try await CommandRun.microvm("run", CommandRun.guest("outcomes"), function, "--returns", "i32")
        }
        let passed = try await run("test_passes")
        #expect(passed.outputText == "0\n")
        let failed = try await run("test_fails_every_check")
        #expect(failed.status == 0)
        #expect(failed.outputText == "17\n")
        #expect(failed.error.contains("c/outcomes.c:24: CHECK(runs == 1) does not hold\n"))
        let required = try await run("test_fails_a_requirement")
        #expect(required.status == 134)
        #expect(required.error.contains("Guest abort: c/outcomes.c:58: REQUIRE(runs == 1) does not hold"))
        let skipped = try await run("test_skips")
        #expect(skipped.status == 134)
        #expect(skipped.error.contains("Guest abort: skipped: there is no network in here"))
    }

    // MARK: - Real libraries

    @Test(.requiresKVM)
    func `the distribution's zlib and lz4 pass their tests`() async throws {
        let run = try await TestCommandRun(
            ["zlib_tests", "lz4_tests"].map(CommandRun.guest) + ["--time-limit", TestCommandRun.ample]
        )
        #expect(run.run.status == 0)
        #expect(try #require(run.summary).hasSuffix(" passed, 0 failed, 0 skipped"))
        #expect(run.results.count { $0.hasPrefix("PASS zlib_tests/") } > 30)
        #expect(run.results.count { $0.hasPrefix("PASS lz4_tests/") } > 20)
    }

    // MARK: - Many

    @Test(.requiresKVM, arguments: [1, 7])
    func `hundreds of tests with crashes, hangs and leaks among them leave nothing behind`(
        parallel: Int
    ) async throws {
        // Each sandbox has descriptors, so one that stays is found out.
        let run = try await CommandRun.microvm(
            ["-c", "ulimit -n 100; exec \"$@\"", "sh", CommandRun.executable.path, "test"]
                + [CommandRun.guest("many_tests"), "--time-limit", isEmulated ? "2s" : "300ms"]
                + ["--parallel", "\(parallel)", "--repeat", isEmulated ? "1" : "3"],
            program: "/bin/sh"
        )
        #expect(run.status == 1)
        let lines = run.outputText.split(separator: "\n").filter { $0.first != " " }
        #expect(lines.last == "222 passed, 63 failed, 15 skipped")
        #expect(lines.count == 301)
        for (number, line) in lines.dropLast().enumerated() {
            let digits = String(number)
            let name = String(repeating: "0", count: 3 - digits.count) + digits
            let verdict =
                switch number % 20 {
                case 3, 11, 13, 17: "FAIL"
                case 7: "SKIP"
                default: number % 100 == 50 ? "FAIL" : "PASS"
                }
            #expect(line.hasPrefix("\(verdict)   many_tests/test_\(name)"))
        }
    }

    @Test(.requiresKVM)
    func `how many run at once does not change what is reported`() async throws {
        let paths = ["swift_tests", "zlib_tests", "setup_fails_tests"].map(CommandRun.guest)
        let one = try await TestCommandRun(paths + ["--parallel", "1", "--time-limit", TestCommandRun.ample])
        let many = try await TestCommandRun(paths + ["--parallel", "16", "--time-limit", TestCommandRun.ample])
        #expect(one.results == many.results)
        #expect(one.summary == many.summary)
        #expect(one.results.first == "PASS swift_tests/test_strings")
        #expect(one.results.last == "FAIL setup_fails_tests")
    }

    // MARK: - Which run, and how often

    @Test func `tests are listed in the order of the source, without KVM`() async throws {
        let run = try await TestCommandRun("setup_fails_tests", "--list")
        #expect(run.run.status == 0)
        #expect(
            run.run.outputText == """
                setup_fails_tests/test_one
                setup_fails_tests/test_two
                setup_fails_tests/test_three

                """
        )
        let all = try await TestCommandRun("many_tests", "--list")
        #expect(all.lines.count == 300 && all.lines == all.lines.sorted())
    }

    @Test func `a filter is looked for in module and name`() async throws {
        let paths = ["setup_fails_tests", "setup_skips_tests"].map(CommandRun.guest)
        func list(_ filter: String) async throws -> [String] {
            try await TestCommandRun(paths + ["--list", "--filter", filter]).lines
        }
        #expect(try await list("fails.*/test_t") == ["setup_fails_tests/test_two", "setup_fails_tests/test_three"])
        #expect(try await list("/test_one$") == ["setup_fails_tests/test_one", "setup_skips_tests/test_one"])
        #expect(try await list("^setup_s").count == 2)
        let none = try await TestCommandRun(paths + ["--filter", "nothing\u{1b}"])
        #expect(none.run.status == 66)
        #expect(none.run.error == "Error: No test matches --filter nothing\\u{1B}.\n")
    }

    @Test func `modules of the same name are told apart by their paths`() async throws {
        let path = CommandRun.guest("setup_skips_tests")
        let run = try await TestCommandRun([path, path, "--list", "--filter", "test_one$"])
        #expect(run.lines == ["setup_skips_tests/test_one", "\(path)/test_one"])
    }

    @Test(.requiresKVM)
    func `tests that fail now and then are flaky, and have failed`() async throws {
        // It fails every other time: 64 times the same would be strange.
        let run = try await TestCommandRun(
            "outcomes",
            "--filter",
            "flaky|passes|seven",
            "--repeat",
            "64",
            report: true
        )
        #expect(run.run.status == 1)
        #expect(run.summary == "1 passed, 2 failed, 0 skipped")
        #expect(
            run.results.dropLast() == [
                "PASS outcomes/test_passes", "FAIL outcomes/test_returns_seven", "FLAKY outcomes/test_is_flaky",
            ]
        )
        let flaky = try #require(run.lines.dropLast().last)
        #expect(flaky.wholeMatch(of: /Flaky: outcomes\/test_is_flaky failed [0-9]+ of 64 times\./) != nil)
        let report = try #require(run.report)
        JUnitSchema.check(report)
        let failures = report.children("testsuite")[0].children("testcase").flatMap { $0.children("failure") }
        #expect(failures.map { $0.attributes["message"]?.hasPrefix("flaky: ") } == [false, true])
    }

    @Test(.requiresKVM)
    func `after the first failure no more begin, if that is wanted`() async throws {
        let run = try await TestCommandRun("many_tests", "--fail-fast", "--parallel", "1")
        #expect(run.run.status == 1)
        #expect(run.summary == "3 passed, 1 failed, 0 skipped, 296 not run")
        let many = try await TestCommandRun("many_tests", "--fail-fast", "--parallel", "5")
        #expect(many.run.status == 1)
        #expect(try #require(many.summary).hasSuffix(" not run"))
    }

    // MARK: - Reports

    @Test(.requiresKVM)
    func `names that are no names do no harm`() async throws {
        let run = try await TestCommandRun("hostile_tests", report: true)
        #expect(run.run.status == 1)
        #expect(run.summary == "5 passed, 1 failed, 0 skipped")
        #expect(
            run.run.outputText.unicodeScalars.allSatisfy {
                $0 == "\n" || ![.control, .format].contains($0.properties.generalCategory)
            }
        )
        let report = try #require(run.report)
        JUnitSchema.check(report)
        let names = report.children("testsuite")[0].children("testcase").compactMap { $0.attributes["name"] }
        #expect(names.contains("test_\\u{1B}[2J\\u{1B}]0;title\\u{07}"))
        #expect(names.contains("test_</testcase><script a=\"'&amp;]]>"))
        #expect(names.contains("test_two\\nlines\\r\\tand \\u{7F}"))
        let list = try await TestCommandRun("hostile_tests", "--list")
        #expect(list.lines.count == 6)
    }

    @Test(.requiresKVM)
    func `the report has all that is known, and replaces what was there`() async throws {
        let file = FileManager.default.temporaryDirectory.appending(path: "microvm-report-\(UUID().uuidString).xml")
        defer { try? FileManager.default.removeItem(at: file) }
        try Data("old".utf8).write(to: file)
        let paths = ["outcomes", "swift_tests"].map(CommandRun.guest)
        let arguments = ["--filter", Self.steady, "--junit", file.path, "--time-limit", TestCommandRun.ample]
        _ = try await TestCommandRun(paths + arguments)
        let root = try XMLElement.parse(Data(contentsOf: file))
        JUnitSchema.check(root)
        #expect(root.children("testsuite").map { $0.attributes["name"] } == ["outcomes", "swift_tests"])
        func test(_ name: String) throws -> XMLElement {
            let cases = root.children("testsuite").flatMap { $0.children("testcase") }
            return try #require(cases.first { $0.attributes["name"] == name })
        }
        #expect(try test("test_passes").children.isEmpty)
        let failure = try #require(try test("test_fails_a_check").children.first)
        #expect(failure.name == "failure" && failure.attributes["type"] == "check")
        #expect(failure.attributes["message"] == "c/outcomes.c:16: CHECK_EQ(6 * 7, 41): 42 (0x2a) is not 41 (0x29)")
        #expect(try test("test_fails_a_check").children("system-out")[0].text == "before the check\nafter the check\n")
        let crash = try #require(try test("test_crashes").children.first)
        #expect(crash.name == "error" && crash.attributes["type"] == "fault")
        #expect(try test("test_aborts").children[0].attributes["type"] == "abort")
        let skip = try #require(try test("test_skips").children.first)
        #expect(skip.name == "skipped")
        let hostile = try test("test_writes_hostile_bytes").children("system-out")[0].text
        #expect(hostile.hasPrefix("\\u{1B}[2J]]></system-out>&amp;\u{FFFD}\u{FFFD}\\u{01}"))
        let folder = file.deletingLastPathComponent()
        let left = try FileManager.default.contentsOfDirectory(atPath: folder.path)
        #expect(left.filter { $0.contains(file.lastPathComponent) } == [file.lastPathComponent])
    }

    // MARK: - Wrong usage

    @Test(
        arguments: [
            (["--parallel", "0"], 64, "--parallel 0 is not between 1 and 1024."),
            (["--repeat", "0"], 64, "--repeat 0 is less than 1."),
            (["--filter", "("], 64, "is not a regular expression"),
            (["--time-limit", "5"], 64, "has no unit"), (["--memory", "1MiB"], 64, "--memory 1MiB is too little"),
            (["--junit", "/nonexistent/report.xml"], 64, "--junit /nonexistent/report.xml cannot be written"),
            (["/proc/self/maps"], 65, "The module \"maps\" cannot be loaded"),
            (["/nonexistent.so"], 65, "cannot be read"),
            ([CommandRun.guest("hello")], 66, "hello.so exports no function whose name begins with test_."),
            ([CommandRun.guest("missing_import")], 65, "first_missing_function, second_missing_function"),
        ]
    )
    func `what cannot be is refused before anything runs`(
        arguments: [String],
        status: Int32,
        message: String
    ) async throws {
        let run = try await TestCommandRun([CommandRun.guest("setup_skips_tests")] + arguments)
        #expect(run.run.status == status)
        #expect(run.run.error.contains(message))
        #expect(run.run.outputText == "")
    }
}
