import Glibc
import SystemPackage
import Testing

@testable import MicroVM

/// How debuggers come and go, and what that costs, as the protocol shows it.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct DebugServerTests {
    private let interrupted = "T02thread:1;"
    private let trap = "T05thread:1;"

    // MARK: Attaching and leaving

    @Test func `a sandbox without a call can be looked at, and is held`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer()
        #expect(!server.isAttached)
        let client = try await GDBClient(server)
        #expect(try await client.exchange("?") == interrupted)
        #expect(server.isAttached)
        // A call that is made now waits.
        let call = Task { try await sandbox.call("measure", Int64(2), returning: Int64.self) }
        let place = try sandbox.address(of: "measure")
        try await client.setBreakpoint(place)
        #expect(try await client.resume() == trap)
        #expect(try await client.register("rip") == place)
        #expect(try await client.register("rdi") == 2)
        #expect(try await client.exchange("D") == "OK")
        #expect(try await call.value == 100)
    }

    @Test func `a guest that spins is interrupted, changed, and goes on`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer()
        let call = Task { try await sandbox.call("spin_until_stopped", returning: UInt64.self) }
        let word = try sandbox.address(of: "stop_spinning")
        for _ in 0..<5 {
            let client = try await GDBClient(server)
            #expect(try await client.exchange("?") == interrupted)
            // What is attached to has not been asked whether it is in the guest; in the end it is.
            client.tell("vCont;c")
            #expect(try await client.interrupt() == interrupted)
            #expect(try await client.exchange("D") == "OK")
        }
        let client = try await GDBClient(server)
        #expect(try await client.setMemory(word, [1]) == "OK")
        client.tell("vCont;c")
        _ = try await call.value
        // It is idle now, and can be interrupted all the same.
        #expect(try await client.interrupt() == interrupted)
        #expect(client.console.contains("No call is under way"))
        #expect(try await client.memory(word, 8) == [UInt8](repeating: 0, count: 8))
    }

    @Test func `a debugger that vanishes leaves the guest running and unpatched`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer()
        let place = try sandbox.address(of: "measure")
        let before = try await sandbox.run { sandbox in try sandbox.memory.inspect(at: place, count: 16) }
        do {
            let client = try await GDBClient(server)
            try await client.setBreakpoint(place)
            let call = Task { try await sandbox.call("recurse", Int64(3), returning: Int64.self) }
            #expect(try await client.resume() == trap)
            // Not while it is held, and not while it runs.
            #expect(try await client.memory(place, 16) == before)
            _ = consume client
            #expect(try await call.value == 28)
        }
        await waitUntil { !server.isAttached }
        do {
            let client = try await GDBClient(server)
            try await client.setBreakpoint(place)
            client.tell("vCont;c")
            // What comes next shows that it has been taken.
            #expect(try await client.interrupt() == interrupted)
            client.tell("vCont;c")
        }
        await waitUntil { !server.isAttached }
        #expect(try await sandbox.call("recurse", Int64(3), returning: Int64.self) == 28)
        let after = try await sandbox.run { sandbox in try sandbox.memory.inspect(at: place, count: 16) }
        #expect(after == before)
    }

    @Test(arguments: ["watchpoint", "range"])
    func `a debugger that vanishes in the middle of steps leaves a guest that runs on`(_ step: String) async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer()
        let word = try sandbox.address(of: "stop_spinning")
        let place = try sandbox.address(of: "spin_until_stopped")
        let size = try #require(sandbox.module.export(named: "spin_until_stopped")).size
        let call = Task { try await sandbox.call("spin_until_stopped", returning: UInt64.self) }
        for _ in 0..<(Surroundings.isEmulated ? 3 : 20) {
            let client = try await GDBClient(server)
            #expect(try await client.exchange("?") == interrupted)
            // Past the way in.
            try await client.setBreakpoint(place)
            client.tell("vCont;c")
            #expect(try await [interrupted, trap].contains(client.interrupt()))
            try await client.removeBreakpoint(place)
            if step == "watchpoint" {
                #expect(try await client.exchange("Z2,\(String(word, radix: 16)),8") == "OK")
                client.tell("vCont;c")
            } else {
                client.tell("vCont;r\(String(place, radix: 16)),\(String(place + size, radix: 16))")
            }
            // What comes next shows that it has been taken.
            client.tell("qC")
            #expect(try await client.receive() == "QC1")
            _ = consume client
            await waitUntil { !server.isAttached }
        }
        let client = try await GDBClient(server)
        #expect(try await client.exchange("?") == interrupted)
        #expect(try await client.setMemory(word, [1]) == "OK")
        #expect(try await client.exchange("D") == "OK")
        _ = try await call.value
        #expect(try await sandbox.call("measure", Int64(1), returning: Int64.self) == 25)
    }

    @Test func `a client that hardly takes what it is sent does not keep a server from closing`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer()
        let client = try await GDBClient(server)
        _ = try await client.exchange("?")
        let code = try sandbox.address(of: "measure")
        // Answers to them fill whatever sockets hold, and at this pace go on for longer than the test may take.
        let request = GDBPackets.frame(Array("m\(String(code, radix: 16)),2000".utf8))
        client.makeNonblocking()
        client.sendBytes(Array(repeating: request, count: 4000).flatMap(\.self))
        let isClosed = Flag()
        startThread {
            server.close()
            isClosed.set()
        }
        while !isClosed.isSet {
            client.drop(16384)
            try await Task.sleep(for: .milliseconds(200))
        }
        #expect(!server.isAttached)
        #expect(try await sandbox.call("measure", Int64(1), returning: Int64.self) == 25)
    }

    @Test func `a server that there cannot be gives its address back`() async throws {
        let workshop = try Workshop()
        let path = workshop.folder.appending("second")
        let sandbox = try await Guest.debug.sandbox()
        _ = try sandbox.testServer()
        let before = Resources()
        for _ in 0..<10 {
            #expect(throws: SandboxError.self) { try sandbox.debugServer(on: .unixSocket(path)) }
            #expect(throws: SandboxError.self) { try sandbox.testServer() }
        }
        // Sandboxes of before may still be going.
        #expect(Resources().descriptors <= before.descriptors)
        #expect(unsafe access(path.string, F_OK) != 0)
    }

    @Test func `debuggers come and go a hundred times while a guest runs`() async throws {
        let guest = try await SpinningGuest()
        let server = try guest.sandbox.testServer()
        let place = try guest.sandbox.address(of: "answer")
        for round in 0..<(Surroundings.isEmulated ? 10 : 100) {
            let client = try await GDBClient(server)
            #expect(try await client.exchange("?") == interrupted)
            try await client.setBreakpoint(place)
            if round % 2 == 0 { #expect(try await client.resume("s") == trap) }
            if round % 3 == 0 { client.tell("vCont;c") }
            if round % 6 == 0 { #expect(try await client.interrupt() == interrupted) }
            if round % 7 != 0 { client.tell("D") }
        }
        await waitUntil { !server.isAttached }
        #expect(guest.handle.kill() != .notRunning)
        #expect(await guest.call.value?.code == .killed)
    }

    @Test func `a sandbox whose thread is busy for long is held when it has come to that`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let client = try await GDBClient(sandbox.testServer())
        #expect(try await client.exchange("?") == interrupted)
        client.tell("vCont;c")
        let isBusy = Flag()
        let mayGoOn = Flag()
        let work = Task {
            try await sandbox.run { _ in
                isBusy.set()
                mayGoOn.block()
            }
        }
        await waitUntil { isBusy.isSet }
        client.sendBytes([3])
        // What is answered after that shows that it is not waited for any more.
        #expect(try await client.exchange("qC") == "QC1")
        mayGoOn.set()
        #expect(try await client.receive() == interrupted)
        #expect(try await client.exchange("D") == "OK")
        try await work.value
    }

    @Test func `a second debugger is turned away`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer()
        let first = try await GDBClient(server)
        #expect(try await first.exchange("?") == interrupted)
        await #expect(throws: (any Error).self) { try await GDBClient(rawly: server).exchange("?") }
        #expect(try await first.exchange("?") == interrupted)
    }

    @Test func `a sandbox has one server, which closes with it`() async throws {
        var sandbox: Sandbox? = try await Guest.debug.sandbox()
        let server = try sandbox!.testServer()
        #expect(throws: SandboxError.self) { try sandbox!.testServer() }
        let client = try await GDBClient(server)
        _ = try await client.exchange("?")
        client.tell("vCont;c")
        sandbox = nil
        #expect(try await client.receive() == "W00")
        await #expect(throws: (any Error).self) { try await client.receive() }
        server.close()
        server.close()
    }

    @Test func `a server that is closed detaches its debugger, and another can be made`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer()
        let client = try await GDBClient(server)
        _ = try await client.exchange("?")
        let call = Task { try await sandbox.call("measure", Int64(1), returning: Int64.self) }
        server.close()
        #expect(try await call.value == 25)
        await #expect(throws: (any Error).self) { try await client.exchange("?") }
        let other = try sandbox.testServer()
        #expect(try await GDBClient(other).exchange("?") == interrupted)
        await sandbox.close()
        #expect(throws: SandboxError.self) { try sandbox.testServer() }
    }

    @Test func `a socket in the file system is its owner's, and goes with the server`() async throws {
        let workshop = try Workshop()
        let path = workshop.folder.appending("debug")
        let sandbox = try await Guest.debug.sandbox()
        do {
            let server = try sandbox.debugServer(on: .unixSocket(path))
            var status = stat()
            #expect(unsafe stat(path.string, &status) == 0 && status.st_mode & 0o777 == 0o600)
            #expect(try await GDBClient(server).exchange("?") == interrupted)
            #expect(server.command == "gdb -ex 'target remote \(path)'")
            // Whatever is there already stays.
            let other = try await Guest.debug.sandbox()
            #expect(throws: SandboxError.self) { try other.debugServer(on: .unixSocket(path)) }
            server.close()
        }
        #expect(unsafe access(path.string, F_OK) != 0)
        let long = FilePath("/tmp/" + String(repeating: "x", count: 200))
        #expect(throws: SandboxError.self) { try sandbox.debugServer(on: .unixSocket(long)) }
    }

    // MARK: What it takes

    @Test func `servers give back what they take, whoever ends first`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        try sandbox.testServer().close()
        await waitUntil { Resources.threads(named: "microvm-debug") == 0 }
        let before = Resources()
        for round in 0..<30 {
            let server = try sandbox.testServer(holding: round % 2 == 0 ? .nextCall : [])
            if round % 3 == 0 { _ = try await GDBClient(server).exchange("?") }
            server.close()
        }
        #expect(Resources().descriptors == before.descriptors && Resources.threads(named: "microvm-debug") == 0)
        // Forgotten ones go with their sandboxes.
        for _ in 0..<10 {
            let other = try await Guest.debug.sandbox()
            _ = try other.testServer()
            await other.close()
        }
        // Whatever their debuggers do at that moment.
        for _ in 0..<(Surroundings.isEmulated ? 5 : 50) {
            let other = try await Guest.debug.sandbox()
            let client = try await GDBClient(try other.testServer())
            _ = try await client.exchange("?")
            let closing = Task { await other.close() }
            client.tell("D")
            await closing.value
        }
        await waitUntil { Resources.threads(named: "microvm-debug") == 0 }
        await waitUntil { Resources().descriptors == before.descriptors }
        #expect(try await sandbox.call("measure", Int64(1), returning: Int64.self) == 25)
    }

    @Test func `a server that nobody uses leaves calls as they are`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        _ = try await sandbox.call("measure", Int64(1), returning: Int64.self)
        _ = try sandbox.testServer(holding: .faults)
        // The first one after that looks at what has been called attention to.
        _ = try await sandbox.call("measure", Int64(1), returning: Int64.self)
        let count = Surroundings.isEmulated ? 10 : 100
        let calls = try (0..<count).map { _ in try sandbox.start("measure", Int64(1), returning: Int64.self) }
        for call in calls {
            #expect(try await call.result == 25)
            let statistics = await call.statistics
            #expect(statistics?.exits == 1 && statistics?.debugInterrupts == 0)
        }
    }

    @Test(.enabled(if: !Surroundings.isEmulated, "Three who look leave one slow processor to nobody else."))
    func `many look at a sandbox whose host functions come and go`() async throws {
        let sandbox = try await Guest.debug.sandbox([
            HostFunction("host_touch") { (context: HostCallContext, value: UInt64) -> UInt64 in
                if value % 3 == 0 { _ = try context.call("measure", Int64(1), returning: Int64.self) }
                if value % 5 == 0 { try context.sleep(for: .microseconds(50)) }
                return value
            }
        ])
        let isOver = Flag()
        let looks = try await withThrowingTaskGroup(of: Int.self) { group in
            for _ in 0..<3 {
                group.addTask {
                    var count = 0
                    while !isOver.isSet {
                        let began = ContinuousClock.now
                        let state = try await sandbox.pullFullState()
                        // Whatever it is, it is one moment's.
                        if state.hostFunction != nil { #expect(state.isInCall) }
                        count += 1
                        // Each look holds the guest still: it is to get on as well, however slow the machine is.
                        try await Task.sleep(for: max(.milliseconds(1), began.duration(to: .now) * 5))
                    }
                    return count
                }
            }
            for value in 0..<UInt64(500) {
                #expect(try await sandbox.call("touch", value, returning: UInt64.self) == value + 1)
            }
            isOver.set()
            return try await group.reduce(0, +)
        }
        #expect(looks > 0)
    }

    // MARK: What comes from the other side is not to be trusted

    @Test func `packets that make no sense are answered, and end nothing`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer()
        let client = try await GDBClient(server)
        let senseless = [
            "", "g1", "p", "pffffffff", "P=", "P0=", "P0=00", "P1", "G", "Gzz",
            "G" + String(repeating: "0", count: 9999),
            "m", "m,", "m0", "m0,ffffffffffffffff", "mffffffffffffffff,ffffffff", "M0,4:00", "M,:", "X0,5:abc", "X",
            "Z", "Z9,0,0", "Z0", "Z0,ffffffffffffffff,1", "Z2,ffffffffffffffff,8", "z0,1,1", "z2,1,1", "z2,,",
            "vCont", "vCont;", "vCont;q", "vCont;r", "vCont;r5,3", "v", "vFile:", "vFile:open:", "vFile:pread:9,1,1",
            "vFile:pread:3,ffffffff,ffffffff", "vFile:pread:4,ffffffffffffffffff,0", "vFile:fstat:", "qXfer:",
            "qXfer:features:read:target.xml:", "qXfer:features:read:target.xml:ffffffff,ffffffff",
            "qXfer:libraries-svr4:read:", "qRcmd,", "qRcmd,zz", "qRcmd,6", "qSupported", "q", "Q", "QX", "T", "H",
            "\u{7f}\u{1}", "qThreadExtraInfo,", "qCRC:0,ffffffff",
        ]
        for packet in senseless { _ = try await client.exchange(packet) }
        var generator = SystemRandomNumberGenerator()
        let letters = Array("gGpPmMXZzvqQHTc?;,:0123456789abcdef=".utf8)
        for _ in 0..<(Surroundings.isEmulated ? 100 : 2000) {
            var packet = (0..<Int.random(in: 1...24, using: &generator)).map { _ in letters.randomElement()! }
            // None that lets the guest go on, leaves, or asks for nothing: the answer would not come.
            if [UInt8(ascii: "c"), UInt8(ascii: "v"), UInt8(ascii: "?")].contains(packet[0]) {
                packet[0] = UInt8(ascii: "m")
            }
            client.sendBytes(GDBPackets.frame(packet))
            _ = try await client.receivePacket()
        }
        #expect(try await client.exchange("?") == interrupted)
        #expect(try await client.exchange("D") == "OK")
        #expect(try await sandbox.call("measure", Int64(1), returning: Int64.self) == 25)
    }

    @Test func `a flood without packets ends the connection and nothing else`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer()
        let client = try GDBClient(rawly: server)
        let part = [UInt8(ascii: "$")] + [UInt8](repeating: UInt8(ascii: "m"), count: 4096)
        for _ in 0..<64 { client.sendBytes(part) }
        await #expect(throws: (any Error).self) { try await client.receivePacket() }
        #expect(try await GDBClient(server).exchange("?") == interrupted)
    }
}
