import Testing

@testable import MicroVM

/// A module's initialisers run in its sandbox before anything else, under the rules of any call.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct InitializerTests {
    @Test func `initialisers run in their order, once, before the first call`() async throws {
        let lines = Recorder<String>()
        let sandbox = try await Guest.initializers.sandbox {
            $0.output = .handler { _, bytes in lines.append(String(decoding: bytes, as: UTF8.self)) }
        }
        #expect(lines.all.joined() == "initialized at abc\n")
        for _ in 0..<2 { #expect(try await sandbox.call("initialization_order") == "abcd") }
    }

    @Test func `tables of pointers are relocated`() async throws {
        let sandbox = try await Guest.initializers.sandbox()
        for (number, name) in ["zero", "one", "two", "three", "many"].enumerated() {
            #expect(try await sandbox.call("name_of", UInt64(number)) == name)
        }
        #expect(try await sandbox.call("apply", UInt64(0), 21) == 42)
        #expect(try await sandbox.call("apply", UInt64(1), 5) == 25)
    }

    @Test func `an initialiser that faults is the error of making the sandbox`() async throws {
        let error = await #expect(throws: SandboxError.self) { try await Guest.faultInInitializer.sandbox() }
        #expect(error?.code == .guestFault && error?.fault?.kind == .abort)
        #expect(error?.fault?.message == "the initializer gave up")
        #expect(error?.fault?.symbol?.name == "abort_while_loading")
    }

    @Test func `an initialiser that spins is ended by its time limit`() async throws {
        let error = await #expect(throws: SandboxError.self) {
            try await Guest.spinInInitializer.sandbox { $0.initializerTimeLimit = .milliseconds(10) }
        }
        #expect(error?.code == .timeLimitExceeded)
        #expect(error?.interruption?.symbol?.name == "spin_while_loading")
    }

    @Test func `an initialiser that spins is killed through the handle that was given before`() async throws {
        let handles = Recorder<LinuxInterruptHandle>()
        let making = Task {
            await #expect(throws: SandboxError.self) {
                _ = try await Sandbox(Guest.spinInInitializer.module()) { handles.append($0.interruptHandle) }
            }
        }
        await waitUntil { handles.count == 1 }
        let handle = try #require(handles.all.first)
        await onThread { while handle.kill() == .notRunning {} }
        let error = await making.value
        #expect(error?.code == .killed && error?.interruption?.symbol?.name == "spin_while_loading")
        await waitUntil { handle.isDropped }
        #expect(handle.kill() == .dropped)
    }

    @Test func `an initialiser that spins is ended by cancelling the task`() async throws {
        let handles = Recorder<LinuxInterruptHandle>()
        let making = Task {
            await #expect(throws: SandboxError.self) {
                _ = try await Sandbox(Guest.spinInInitializer.module()) { handles.append($0.interruptHandle) }
            }
        }
        await waitUntil { handles.count == 1 }
        making.cancel()
        #expect(await making.value?.code == .taskCancelled)
    }

    @Test func `a task that is cancelled already makes no sandbox that would have to run`() async throws {
        let making = Task {
            await waitUntil { Task.isCancelled }
            return await #expect(throws: SandboxError.self) { try await Guest.spinInInitializer.sandbox() }
        }
        making.cancel()
        #expect(await making.value?.code == .taskCancelled)
    }

    @Test func `a limit for initialisers is none for calls`() async throws {
        let sandbox = try await Guest.initializers.sandbox { $0.initializerTimeLimit = .seconds(30) }
        #expect(try await sandbox.call("twice", 21) == 42)
    }

    @Test func `the handle is given before any guest code, also when there are no initialisers`() async throws {
        let lines = Recorder<String>()
        var configuration = SandboxConfiguration()
        configuration.output = .handler { _, _ in lines.append("output") }
        let sandbox = try await Sandbox(
            Guest.initializers.module(),
            configuration: configuration,
            beforeInitializers: { _ in lines.append("handle") }
        )
        #expect(lines.all == ["handle", "output"])
        _ = sandbox
        let none = Recorder<LinuxInterruptHandle>()
        let other = try await Sandbox(Guest.arithmetic.module()) { none.append($0.interruptHandle) }
        #expect(none.all.first === other.interruptHandle)
    }
}
