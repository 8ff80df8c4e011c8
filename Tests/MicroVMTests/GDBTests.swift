import Glibc
import SystemPackage
import Testing

@testable import MicroVM

/// The real GDB, attached to guests in C and Embedded Swift.
@Suite(.requiresKVM, .requiresGDB, .timeLimit(.minutes(5))) struct GDBTests {
    @Test func `it finds the module and its symbols, and breaks by name and by line`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer(holding: .nextCall)
        let call = Task { try await sandbox.call("recurse", Int64(3), returning: Int64.self) }
        let output = try await GDBScript.run(
            server,
            """
            info sharedlibrary
            break measure
            continue
            backtrace
            info args
            next
            print scaled
            tbreak debug.c:22
            continue
            print *point
            step
            finish
            print horizontal
            up
            print scaled.label
            delete
            detach
            """
        )
        #expect(output.contains("Yes         target:/debug.so"))
        #expect(output.contains("Breakpoint 1, measure (scale=1) at ./c/debug.c:"))
        #expect(output.contains("#4  0x") && output.contains("in recurse (depth=3) at ./c/debug.c:"))
        // The library's own frames have names, and the stack an end.
        #expect(output.contains("in microvm_invoke ()") && output.contains("in microvm_guest_call ()"))
        #expect(!output.contains("corrupt stack") && !output.contains("??"))
        #expect(output.contains("scaled = {x = 3, y = 4, label = 0x") || output.contains("{x = 3, y = 4, label = 0x"))
        #expect(output.contains("distance (point=0x"))
        #expect(output.contains("square (number=3)"))
        #expect(output.contains("Value returned is $") && output.contains("= 9"))
        #expect(try await call.value == 28)
    }

    @Test func `it steps by instruction and by line, and the guest goes on unharmed`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer(holding: .nextCall)
        let call = Task { try await sandbox.call("measure", Int64(2), returning: Int64.self) }
        let output = try await GDBScript.run(
            server,
            """
            break measure
            continue
            stepi 5
            nexti 3
            step
            step
            next
            next
            info registers rip
            display result
            finish
            detach
            """
        )
        #expect(output.contains("<measure+") || output.contains("<distance+") || output.contains("<square+"))
        #expect(try await call.value == 100)
    }

    @Test func `a variable that is watched is found changed, with both values`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer(holding: .nextCall)
        let call = Task { try await sandbox.call("measure", Int64(1), returning: Int64.self) }
        let output = try await GDBScript.run(
            server,
            """
            break measure
            continue
            watch counter
            continue
            backtrace 1
            continue
            delete
            detach
            """
        )
        #expect(output.contains("Old value = 0") && output.contains("New value = 1"))
        #expect(output.contains("Old value = 1") && output.contains("New value = 11"))
        #expect(output.contains("distance (point=0x"))
        #expect(try await call.value == 25)
    }

    @Test func `variables and registers are changed`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer(holding: .nextCall)
        let call = Task { try await sandbox.call("vectors", 1.0, 2.0, returning: Double.self) }
        let output = try await GDBScript.run(
            server,
            """
            break vectors
            continue
            print $xmm0.v2_double[0]
            print left
            set var right = 20.5
            set var counter = 5
            info registers cs fs_base
            print $st0
            print/x $mxcsr
            info all-registers
            detach
            """
        )
        #expect(output.contains("= 1\n") && output.contains("0x33") && output.contains("= 0x1f80"))
        #expect(try await call.value == 43)
        #expect(try await sandbox.call("get_counter", returning: Int64.self) == 5)
    }

    @Test func `functions of the guest are called in the middle of another one`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer(holding: .nextCall)
        let call = Task { try await sandbox.call("measure", Int64(2), returning: Int64.self) }
        let output = try await GDBScript.run(
            server,
            """
            break square
            continue
            delete
            print square(7)
            print recurse(2)
            print number
            detach
            """
        )
        #expect(output.contains("$1 = 49\n") && output.contains("$2 = 27\n") && output.contains("$3 = 6\n"))
        #expect(try await call.value == 100)
    }

    @Test func `a guest that spins is interrupted by the user`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer(holding: .nextCall)
        let call = Task { try await sandbox.call("spin_until_stopped", returning: UInt64.self) }
        let output = try await GDBScript.run(
            server,
            """
            continue
            backtrace
            set var stop_spinning = 1
            continue
            """
        ) { gdb in
            // It is held before its first instruction until GDB has let it go on.
            await waitUntil { sandbox.interruptHandle.currentState.has(CallState.entered) }
            gdb.interrupt()
            _ = try? await call.value
            gdb.interrupt()
        }
        #expect(output.contains("Program received signal SIGINT"))
        #expect(output.contains("spin_until_stopped () at ./c/debug.c:"))
        _ = try await call.value
    }

    @Test func `a fault is looked at before its call ends, and a mended one is forgotten`() async throws {
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.testServer(holding: .nextCall)
        let word = try sandbox.address(of: "stop_spinning")
        let mended = Task { try await sandbox.call("crash", UInt64(8), returning: Int64.self) }
        let first = try await GDBScript.run(
            server,
            """
            continue
            backtrace
            print place
            info locals
            set var place = \(word)
            set $rax = \(word)
            set $rcx = \(word)
            signal 0
            """
        ) { gdb in
            // It waits for the guest, which has nothing left to do.
            #expect(await (try? mended.value) == 7)
            gdb.interrupt()
        }
        #expect(first.contains("Program received signal SIGSEGV, Segmentation fault."))
        #expect(first.contains("Illegal memory access"))
        #expect(first.contains("crash (place=0x8) at ./c/debug.c:") && first.contains("before = 7"))
        let ready = try await Guest.debug.sandbox()
        let other = try ready.testServer(holding: .nextCall)
        let call = Task { await #expect(throws: SandboxError.self) { try await ready.call("crash", UInt64(24)) } }
        let output = try await GDBScript.run(
            other,
            """
            continue
            print $_siginfo.si_signo
            print/x (long)$_siginfo._sifields._sigfault.si_addr
            detach
            """
        )
        #expect(output.contains("SIGSEGV") && output.contains("= 11\n") && output.contains("= 0x18\n"))
        #expect(await call.value?.fault?.kind == .memoryAccess)
    }

    @Test func `it attaches and detaches a hundred times while the guest runs`() async throws {
        let guest = try await SpinningGuest()
        let server = try guest.sandbox.testServer()
        let output = try await GDBScript.run(
            nil,
            """
            set $round = 0
            while $round < 100
              target remote \(server.target)
              if $round % 10 == 0
                backtrace
                break answer
              end
              detach
              set $round = $round + 1
            end
            print $round
            """
        )
        #expect(output.contains("= 100\n") && output.contains("spin_and_say_so"))
        #expect(!output.contains("Connection timed out") && !output.contains("Remote failure"))
        #expect(guest.handle.kill() != .notRunning)
        #expect(await guest.call.value?.code == .killed)
    }

    @Test func `host calls and nested calls are on the stack`() async throws {
        let sandbox = try await Guest.debug.sandbox([
            HostFunction("host_touch") { (context: HostCallContext, value: UInt64) -> UInt64 in
                try UInt64(context.call("measure", Int64(value), returning: Int64.self))
            }
        ])
        let server = try sandbox.testServer(holding: .nextCall)
        let call = Task { try await sandbox.call("touch", UInt64(2), returning: UInt64.self) }
        let output = try await GDBScript.run(
            server,
            """
            break distance
            continue
            backtrace
            info threads
            monitor info
            delete
            detach
            """
        )
        #expect(output.contains("in microvm_host_call ()") && output.contains("in touch (value=2) at ./c/debug.c:"))
        #expect(output.contains("Thread 1 (In the guest, 1 call deep in host calls)"))
        #expect(output.contains("nested calls 1"))
        #expect(!output.contains("??"))
        #expect(try await call.value == 101)
    }

    @Test func `a guest in Embedded Swift is debugged like one in C`() async throws {
        let sandbox = try await Guest.swiftDebug.sandbox()
        let server = try sandbox.testServer(holding: .nextCall)
        let call = Task { try await sandbox.call("sum_of_squares", Int64(4), returning: Int64.self) }
        let output = try await GDBScript.run(
            server,
            """
            break swift_debug.swift:13
            continue
            backtrace
            info locals
            delete
            finish
            detach
            """
        )
        #expect(output.contains("at swift/swift_debug.swift:13"))
        #expect(output.contains("sum_of_squares"))
        #expect(try await call.value == 30)
    }

    @Test func `a socket in the file system serves as well`() async throws {
        let workshop = try Workshop()
        let sandbox = try await Guest.debug.sandbox()
        let server = try sandbox.debugServer(on: .unixSocket(workshop.folder.appending("socket")))
        let output = try await GDBScript.run(server, "info threads\nmonitor help\nkill")
        #expect(output.contains("No call is under way") && output.contains("monitor info"))
    }
}

extension DebugServer {
    fileprivate var target: String {
        switch address {
        case .loopback(let port): "127.0.0.1:\(port)"
        case .unixSocket(let path): "\(path)"
        }
    }
}

/// A GDB that carries out a script and ends.
struct GDBScript: Sendable {
    private let process: pid_t

    /// Runs commands, with a server attached to if there is one; what it has printed.
    static func run(
        _ server: DebugServer?,
        _ commands: String,
        meanwhile: (GDBScript) async -> Void = { _ in }
    ) async throws -> String {
        let workshop = try Workshop()
        let attach = server.map { "target remote \($0.target)\n" } ?? ""
        let script =
            "set pagination off\nset confirm off\nset width 0\nset breakpoint pending off\n\(attach)\(commands)\n"
        try workshop.write(Array(script.utf8), "commands")
        let gdb = try GDBScript(workshop.folder)
        await meanwhile(gdb)
        await gdb.waitForEnd()
        return String(decoding: try workshop.read("output"), as: UTF8.self)
    }

    private init(_ folder: FilePath) throws {
        let output = folder.appending("output")
        var actions = unsafe posix_spawn_file_actions_t()
        unsafe posix_spawn_file_actions_init(&actions)
        defer { unsafe _ = posix_spawn_file_actions_destroy(&actions) }
        unsafe posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        unsafe posix_spawn_file_actions_addopen(&actions, 1, output.string, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        unsafe posix_spawn_file_actions_adddup2(&actions, 1, 2)
        // The calling thread's mask is not for it: Ctrl-C is.
        var attributes = posix_spawnattr_t()
        var mask = sigset_t()
        unsafe sigemptyset(&mask)
        unsafe posix_spawnattr_init(&attributes)
        defer { unsafe _ = posix_spawnattr_destroy(&attributes) }
        unsafe posix_spawnattr_setsigmask(&attributes, &mask)
        unsafe posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
        let arguments = ["gdb", "-nx", "-batch", "-x", folder.appending("commands").string]
        var pointers: [UnsafeMutablePointer<CChar>?] = unsafe arguments.map { unsafe strdup($0) }
        unsafe pointers.append(nil)
        defer { for index in unsafe pointers.indices { unsafe free(pointers[index]) } }
        var process: pid_t = 0
        let code = unsafe posix_spawnp(&process, arguments[0], &actions, &attributes, &pointers, environ)
        try #require(code == 0)
        self.process = process
    }

    private func waitForEnd() async {
        let process = process
        await onThread {
            var status: Int32 = 0
            // A script that hangs is ended, for its output to be looked at.
            for _ in 0..<6000 {
                if unsafe waitpid(process, &status, WNOHANG) != 0 { return }
                usleep(10000)
            }
            Issue.record("GDB did not end")
            Glibc.kill(process, SIGKILL)
            unsafe _ = waitpid(process, &status, 0)
        }
    }

    func interrupt() { Glibc.kill(process, SIGINT) }
}
