import Foundation
import Testing

@Suite(.timeLimit(.minutes(2)))
struct RunResultTests {
    @Test(
        .requiresKVM,
        arguments: [
            (["add", "i64:2", "i64:-3"], "-1\n"),
            (["add_i8", "i8:-128", "i8:1", "--returns", "i8"], "-127\n"),
            (["dirty_u16", "--returns", "u16"], "2\n"),
            (["echo_u64", "u64:0xffffffffffffffff", "--returns", "u64"], "18446744073709551615\n"),
            (["add_f32", "f32:0.5", "f32:0.25", "--returns", "f32"], "0.75\n"),
            (["add_f64", "f64:-1.5", "f64:1e3", "--returns", "f64"], "998.5\n"),
            (["not_bool", "bool:true", "--returns", "bool"], "false\n"),
            (["nothing", "--returns", "void"], ""),
        ]
    )
    func `a result is one line on standard output`(arguments: [String], expected: String) async throws {
        let command = ["run", CommandRun.guest("arithmetic")] + arguments
        let run = try await CommandRun.microvm(command)
        #expect(run.outputText == expected)
        #expect(run.error == "")
        #expect(run.status == 0)
    }

    @Test(.requiresKVM)
    func `what the guest writes comes before the result`() async throws {
        let run = try await CommandRun.microvm("run", CommandRun.guest("hello"), "hello")
        #expect(run.outputText == "Hello from a micro-VM\n22\n")
        #expect(run.status == 0)
    }

    @Test(.requiresKVM)
    func `what the guest writes to standard error stays there`() async throws {
        let run = try await CommandRun.microvm(
            "run",
            CommandRun.guest("hello"),
            "complain",
            "string:-x",
            "--returns",
            "void"
        )
        #expect(run.error == "-x")
        #expect(run.outputText == "")
    }

    @Test(.requiresKVM)
    func `with JSON the guest's output leaves standard output alone`() async throws {
        let run = try await CommandRun.microvm("run", CommandRun.guest("hello"), "hello", "--json")
        #expect(run.error == "Hello from a micro-VM\n")
        let json = try run.json()
        #expect(json["outcome"] as? String == "returned")
        #expect(json["exitStatus"] as? Int == 0)
        #expect(json["result"] as? Int == 22)
        #expect(json["returns"] as? String == "i64")
        #expect(try #require(json["durationMicroseconds"] as? Double) > 0)
    }

    @Test(.requiresKVM)
    func `bytes are Base64 in JSON, and no result is null`() async throws {
        let bytes = try await CommandRun.microvm(
            "run",
            CommandRun.guest("echo"),
            "reverse",
            "string:abc",
            "--returns",
            "bytes",
            "--json"
        )
        #expect(try bytes.json()["result"] as? String == "Y2Jh")
        let nothing = try await CommandRun.microvm(
            "run",
            CommandRun.guest("arithmetic"),
            "nothing",
            "--returns",
            "void",
            "--json"
        )
        #expect(try nothing.json()["result"] is NSNull)
    }

    @Test(.requiresKVM)
    func `numbers that JSON has no form for are strings`() async throws {
        let run = try await CommandRun.microvm(
            "run",
            CommandRun.guest("arithmetic"),
            "negate_f64",
            "f64:inf",
            "--returns",
            "f64",
            "--json"
        )
        #expect(try run.json()["result"] as? String == "-inf")
    }

    @Test(.requiresKVM)
    func `standard input and files are passed as bytes, and many bytes come back through a pipe`() async throws {
        // More than a pipe and the usual argument arena hold.
        let bytes = Data((0..<20_000_000).map { UInt8(truncatingIfNeeded: $0 &* 31 >> 3) })
        let echoed = try await CommandRun.microvm(
            "run",
            CommandRun.guest("echo"),
            "echo",
            "stdin:",
            "--returns",
            "bytes",
            input: bytes
        )
        #expect(echoed.status == 0)
        #expect(echoed.output == bytes)

        let file = FileManager.default.temporaryDirectory.appending(path: "microvm-argument-\(UUID().uuidString)")
        try bytes.write(to: file)
        defer { try? FileManager.default.removeItem(at: file) }
        let measured = try await CommandRun.microvm(
            "run",
            CommandRun.guest("echo"),
            "byte_length",
            "file:\(file.path)"
        )
        #expect(measured.outputText == "20000000\n")
    }

    @Test(.requiresKVM)
    func `an argument of nothing is passed as no bytes`() async throws {
        for argument in ["string:", "stdin:", "file:/dev/null"] {
            let run = try await CommandRun.microvm("run", CommandRun.guest("echo"), "byte_length", argument)
            #expect(run.outputText == "0\n")
        }
    }

    @Test(.requiresKVM)
    func `the arguments leave a usual heap, however large they are`() async throws {
        let path = "/tmp/microvm-sparse-\(UUID().uuidString)"
        try #require(FileManager.default.createFile(atPath: path, contents: nil))
        defer { try? FileManager.default.removeItem(atPath: path) }
        let file = try FileHandle(forWritingTo: URL(filePath: path))
        try file.truncate(atOffset: 100 << 20)
        try file.close()
        let run = try await CommandRun.microvm("run", CommandRun.guest("echo"), "byte_length", "file:\(path)")
        #expect(run.outputText == "104857600\n")
    }

    @Test(.requiresKVM)
    func `a reader that leaves ends a guest that writes for ever`() async throws {
        let run = try await CommandRun.microvm(
            "-c",
            "\"$0\" run \"$1\" spin_with_output | head -c 3; exit ${PIPESTATUS[0]}",
            CommandRun.executable.path,
            CommandRun.guest("spin"),
            program: "/bin/bash"
        )
        #expect(run.outputText == "xxx")
        #expect(run.status == 141)
    }

    @Test(.requiresKVM)
    func `a full disk is an error`() async throws {
        let run = try await CommandRun.microvm(
            "-c",
            "exec \"$0\" run \"$1\" answer > /dev/full",
            CommandRun.executable.path,
            CommandRun.guest("hello"),
            program: "/bin/bash"
        )
        #expect(run.status == 74)
        #expect(run.error.contains("No space left on device"))
    }
}
