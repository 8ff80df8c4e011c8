import Testing

@testable import MicroVM

/// Guests in Embedded Swift.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct SwiftGuestTests {
    @Test func `print goes to standard output`() async throws {
        let output = Recorder<[UInt8]>()
        let sandbox = try await Guest.swiftHello.sandbox { $0.output = .handler { _, bytes in output.append(bytes) } }
        try await sandbox.call("hello")
        #expect(String(decoding: output.all.joined(), as: UTF8.self) == "Hello from Swift in a micro-VM\n")
        #expect(try await sandbox.call("answer") == 42)
    }

    @Test func `numbers go in and come out`() async throws {
        let sandbox = try await Guest.swiftArithmetic.sandbox()
        #expect(try await sandbox.call("add", Int.max, 1) == Int.min)
        #expect(try await sandbox.call("sum_9", 1, 2, 3, 4, 5, 6, 7, 8, 9) == 285)
        #expect(try await sandbox.call("mix", Int32(1), 2.0, UInt8(3), Float(4), 5, true) == 61.0)
        #expect(try await sandbox.call("echo_f32", Float(1.5)) == Float(1.5))
        #expect(try await sandbox.call("echo_f64", -0.0, returning: Double.self).sign == .minus)
        #expect(try await sandbox.call("echo_bool", true) == true)
        #expect(try await sandbox.call("average", 101) == 50.0)
    }

    @Test func `strings, arrays and dictionaries work inside`() async throws {
        let sandbox = try await Guest.swiftStrings.sandbox()
        #expect(try await sandbox.call("echo", "né 🎉") == "né 🎉")
        #expect(try await sandbox.call("echo", "") == "")
        #expect(try await sandbox.call("uppercase", "straße") == "STRASSE")
        #expect(try await sandbox.call("reverse_characters", "añ👨‍👩‍👧b") == "b👨‍👩‍👧ña")
        #expect(try await sandbox.call("character_count", "👨‍👩‍👧é") == 2)
        #expect(try await sandbox.call("sort", [3, 1, 2] as [UInt8]) == [1, 2, 3] as [UInt8])
        #expect(try await sandbox.call("most_frequent", "a b a c a b") == 3)
        #expect(try await sandbox.call("describe", -7) == "the number -7")
    }

    @Test func `host functions are called from Swift as from C`() async throws {
        let lines = Recorder<String>()
        let sandbox = try await Guest.swiftHostCalls.sandbox([
            HostFunction("host_add") { (left: Int, right: Int) -> Int in left + right },
            HostFunction("host_log") { (text: String) in lines.append(text) },
            HostFunction("host_scale") { (value: Double, factor: Float) -> Double in value * Double(factor) },
        ])
        #expect(try await sandbox.call("call_add", 20, 22) == 42)
        #expect(try await sandbox.call("add_in_a_loop", 100) == 4950)
        #expect(try await sandbox.call("call_scale", 3.0, Float(0.5)) == 1.5)
        try await sandbox.call("log_number", 99)
        #expect(lines.all == ["the number is 99"])
        #expect(try await sandbox.call("real_time", returning: UInt64.self) > 0)
        let error = await #expect(throws: SandboxError.self) { try await sandbox.call("give_up", 3) }
        #expect(error?.fault?.kind == .abort && error?.fault?.message == "gave up at 3")
    }

    @Test(arguments: [
        ("element", 3), ("successor", Int.max), ("unwrap_nothing", 2), ("fail_precondition", 1), ("stop", 0),
    ])
    func `what Swift stops by itself is an invalid instruction`(_ function: String, _ argument: Int) async throws {
        let sandbox = try await Guest.swiftTraps.sandbox()
        let error = await #expect(throws: SandboxError.self) { try await sandbox.call(function, argument) }
        #expect(error?.fault?.kind == .invalidInstruction && error?.fault?.vector == 6)
        await expectPoisoned(sandbox)
    }

    @Test func `what is in order is not stopped`() async throws {
        let sandbox = try await Guest.swiftTraps.sandbox()
        #expect(try await sandbox.call("element", 2) == 3)
        #expect(try await sandbox.call("successor", 41) == 42)
        #expect(try await sandbox.call("divide", 84, 2) == 42)
    }
}
