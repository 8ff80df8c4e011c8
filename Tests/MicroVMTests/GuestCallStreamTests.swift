import CShims
import Testing

@testable import MicroVM

/// Many calls for each entry of the guest: in their order, with what each would have given by itself.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct GuestCallStreamTests {
    /// All that a stream gives, and what it ends with.
    private func drain<Requests, Result>(
        _ stream: GuestCallStream<Requests, Result>
    ) async -> (results: [Result], error: SandboxError?) {
        var results: [Result] = []
        do {
            for try await result in stream { results.append(result) }
            return (results, nil)
        } catch {
            return (results, error as? SandboxError)
        }
    }

    // MARK: - Results

    @Test(arguments: [0, 1, 15, 16, 17, 5000])
    func `results come in the order of the requests`(_ count: Int) async throws {
        let add = try await Guest.arithmetic.sandbox().function("add", as: ((Int, Int) -> Int).self)
        let sums = await drain(add.stream((0..<count).map { ($0, 3 * $0) }))
        #expect(sums.results == (0..<count).map { 4 * $0 } && sums.error == nil)
    }

    @Test func `code isolated to the sandbox streams as well`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        let add = try sandbox.function("add", as: ((Int, Int) -> Int).self)
        let sum = try await sandbox.run { sandbox in
            var sum = 0
            for try await value in add.stream((1...1000).map { ($0, -1) }) { sum += value }
            return sum + (try await sandbox.call("add", 1, 2, returning: Int.self))
        }
        #expect(sum == 499_503)
    }

    @Test func `every type of value is passed as by a call`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        let negate = try sandbox.function("negate_i8", as: ((Int8) -> Int8).self)
        #expect(await drain(negate.stream(Int8.min...Int8.max)).results == (Int8.min...Int8.max).map { 0 &- $0 })
        let add = try sandbox.function("add_f64", as: ((Double, Double) -> Double).self)
        let sums = await drain(add.stream((0..<100).map { (Double($0), 0.5) }))
        #expect(sums.results == (0..<100).map { Double($0) + 0.5 })
        let scale = try sandbox.function("add_f32", as: ((Float, Float) -> Float).self)
        #expect(await drain(scale.stream([(1.5, 2), (-1, 1)])).results == [3.5, 0])
        let and = try sandbox.function("and_bool", as: ((Bool, Bool) -> Bool).self)
        #expect(await drain(and.stream([(true, true), (true, false)])).results == [true, false])
        let dirty = try sandbox.function("dirty_i8", as: (() -> Int8).self)
        #expect(await drain(dirty.stream(repeatElement((), count: 40))).results == Array(repeating: -2, count: 40))
        let mix = try sandbox.function("mix", as: ((Int32, Double, UInt8, Float, Int64, Bool) -> Double).self)
        let mixed = await drain(mix.stream((0..<30).map { (Int32(-$0), 2.0, UInt8(3), Float(4), Int64(5), true) }))
        #expect(mixed.results == (0..<30).map { (number: Int) -> Double in Double(60 - number) })
        let nothing = try sandbox.function("nothing", as: (() -> Void).self)
        #expect(await drain(nothing.stream(repeatElement((), count: 100))).results.count == 100)
    }

    @Test func `control registers are for each call what the ABI says`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        let mxcsr = try sandbox.function("mxcsr", as: (() -> UInt32).self)
        #expect(await drain(mxcsr.stream(repeatElement((), count: 20))).results == Array(repeating: 0x1f80, count: 20))
        let alignment = try sandbox.function("stack_alignment", as: (() -> Int).self)
        #expect(Set(await drain(alignment.stream(repeatElement((), count: 20))).results) == [0])
    }

    @Test func `text and bytes are there for each call`() async throws {
        let sandbox = try await Guest.echo.sandbox { $0.argumentArenaSize = 64 << 10 }
        let sum = try sandbox.function("byte_sum", as: (([UInt8]) -> UInt64).self)
        // More than the arena has at once, in all sizes.
        let texts = (0..<300).map { [UInt8](repeating: UInt8($0 % 256), count: $0 * 10) }
        #expect(await drain(sum.stream(texts)).results == texts.map { $0.reduce(0) { $0 + UInt64($1) } })
        let mixed = try sandbox.function("mixed", as: ((Int, String, Double, String, Int) -> Int).self)
        let requests = (0..<50).map { ($0, "a", 2.0, "", -$0) }
        #expect(await drain(mixed.stream(requests)).results == requests.map { $0.0 + 2 * 97 + 6 + 5 * $0.4 })
    }

    @Test func `arguments that can never fit end the stream behind what came before`() async throws {
        let sandbox = try await Guest.echo.sandbox { $0.argumentArenaSize = 8 << 10 }
        let length = try sandbox.function("byte_length", as: (([UInt8]) -> Int).self)
        let end = await drain(length.stream([[1], [1, 2], [UInt8](repeating: 0, count: 8 << 10), [3]]))
        #expect(end.results == [1, 2] && end.error?.code == .argumentTooLarge)
        // No guest code has been left half way.
        #expect(await drain(length.stream([[1, 2, 3]])).results == [3])
    }

    @Test func `calls with words on the stack are made one by one`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        let sum = try sandbox.function("sum_9", as: ((Int, Int, Int, Int, Int, Int, Int, Int, Int) -> Int).self)
        let requests = (0..<40).map { ($0, 1, 1, 1, 1, 1, 1, 1, $0) }
        #expect(await drain(sum.stream(requests)).results == (0..<40).map { 35 + 10 * $0 })
    }

    @Test func `results in memory are those of their call`() async throws {
        let sandbox = try await Guest.echo.sandbox()
        let reverse = try sandbox.function("reverse", as: ((String) -> String).self)
        let texts = (100..<150).map { "\($0)x" }
        #expect(await drain(reverse.stream(texts)).results == texts.map { String($0.reversed()) })
    }

    @Test func `requests are taken as results are asked for`() async throws {
        let add = try await Guest.arithmetic.sandbox().function("add", as: ((Int, Int) -> Int).self)
        let taken = Recorder<Int>()
        let endless = sequence(first: 0) { $0 + 1 }.lazy.map { number -> (Int, Int) in
            taken.append(number)
            return (number, 1)
        }
        var results = add.stream(endless, maximumBatch: 20).makeAsyncIterator()
        #expect(taken.count == 0)
        for number in 0..<16 { #expect(try await results.next() == number + 1 && taken.count == 16) }
        for number in 16..<100 {
            #expect(try await results.next() == number + 1)
            #expect(taken.count <= number + 20)
        }
    }

    @Test func `values of a type of one's own are checked`() async throws {
        enum Answer: Int, GuestRegisterValue { case no, yes }
        let add = try await Guest.arithmetic.sandbox().function("add", as: ((Int, Int) -> Answer).self)
        let end = await drain(add.stream([(0, 0), (0, 1), (1, 1), (0, 0)]))
        #expect(end.results == [.no, .yes] && end.error?.code == .invalidResult)
    }

    // MARK: - Host calls

    @Test func `host functions are called, and nested calls made, from each call`() async throws {
        let sandbox = try await Guest.interruption.sandbox(
            interruptionFunctions(HostFunction("host_note") { (number: UInt64) -> Int64 in Int64(number) * 2 })
        )
        let note = try sandbox.function("note", as: ((UInt64) -> Int64).self)
        #expect(await drain(note.stream(UInt64(0)..<100)).results == (0..<100).map { $0 * 2 })
        let descend = try sandbox.function("descend", as: ((UInt64, Int64) -> Int64).self)
        let expected: Int64 = try await descend(1, 3)
        let depths = await drain(descend.stream((0..<20).map { (UInt64($0), Int64(3)) })).results
        #expect(depths == Array(repeating: expected, count: 20))
    }

    // MARK: - Ends

    @Test func `a fault ends the stream behind what was done before`() async throws {
        let sandbox = try await Guest.faults.sandbox()
        let read = try sandbox.function("read_address", as: ((UInt64) -> UInt64).self)
        let good = try await sandbox.run { try $0.memory.addressSpace.heap.lowerBound }
        let end = await drain(read.stream([good, good, good, 0, good]))
        #expect(end.results == [0, 0, 0] && end.error?.fault?.kind == .memoryAccess)
        #expect(end.error?.fault?.backtrace.frames.map(\.symbol?.name) == ["read_address"])
        #expect(end.error?.statistics?.exits == 1)
        await expectPoisoned(sandbox)
        #expect(await drain(read.stream([good])).error?.code == .poisoned)
    }

    @Test(arguments: [1, 5, 16, 17, 40])
    func `a kill ends the stream behind what was done before`(_ last: UInt64) async throws {
        let handle = Shared<LinuxInterruptHandle>(nil)
        let sandbox = try await Guest.interruption.sandbox(
            interruptionFunctions(
                HostFunction("host_note") { (number: UInt64) -> Int64 in
                    if number == last { handle.value?.kill() }
                    return Int64(number)
                }
            )
        )
        let snapshot = try await sandbox.snapshot()
        handle.value = sandbox.interruptHandle
        let note = try sandbox.function("note", as: ((UInt64) -> Int64).self)
        let end = await drain(note.stream(UInt64(1)...))
        #expect(end.results == Array(1..<Int64(last)) && end.error?.code == .killed)
        try await sandbox.restore(to: snapshot)
        #expect(await drain(note.stream(UInt64(100)..<110)).results == Array(100..<110))
    }

    @Test func `a limit ends a batch, and a cancellation the stream`() async throws {
        let sandbox = try await Guest.interruption.sandbox(interruptionFunctions())
        let snapshot = try await sandbox.snapshot()
        let spin = try sandbox.function("spin", as: (() -> Void).self)
        let limited = await drain(spin.stream([()], timeLimit: .milliseconds(20)))
        #expect(limited.results.isEmpty && limited.error?.code == .timeLimitExceeded)
        try await sandbox.restore(to: snapshot)
        let task = Task { await drain(spin.stream([(), ()])) }
        await waitUntil { sandbox.interruptHandle.currentState.has(CallState.inCall) }
        task.cancel()
        let cancelled = await task.value
        #expect(cancelled.results.isEmpty && cancelled.error?.code == .taskCancelled)
    }

    @Test func `an error of a host function is the stream's`() async throws {
        struct Own: Error {}
        let sandbox = try await Guest.interruption.sandbox(
            interruptionFunctions(
                HostFunction("host_note") { (number: UInt64) throws -> Int64 in
                    if number == 3 { throw Own() }
                    return 0
                }
            )
        )
        let note = try sandbox.function("note", as: ((UInt64) -> Int64).self)
        var results = note.stream(UInt64(1)...).makeAsyncIterator()
        #expect(try await results.next() == 0)
        #expect(try await results.next() == 0)
        await #expect(throws: Own.self) { try await results.next() }
        #expect(try await results.next() == nil)
    }

    @Test func `a closed sandbox has no stream, and a host function none of its own`() async throws {
        let sandbox = try await Guest.arithmetic.sandbox()
        let add = try sandbox.function("add", as: ((Int, Int) -> Int).self)
        await sandbox.close()
        #expect(await drain(add.stream([(1, 2)])).error?.code == .closed)

        let own = Shared<GuestFunction<Int64>>(nil)
        let caller = try await Guest.interruption.sandbox(
            interruptionFunctions(
                HostFunction("host_note") { (_: UInt64) async throws -> Int64 in
                    var results = own.value?.stream([()]).makeAsyncIterator()
                    return try await results?.next() ?? 0
                }
            )
        )
        own.value = try caller.function("answer", as: (() -> Int64).self)
        let error = await #expect(throws: SandboxError.self) {
            try await caller.call("note", UInt64(1), returning: Int64.self)
        }
        #expect(error?.code == .reentrantCall)
    }

    @Test func `a stop holds a batch, and a snapshot of it goes on with the rest`() async throws {
        let isInSecond = Flag()
        let functions = interruptionFunctions(
            HostFunction("host_note") { (number: UInt64) -> Int64 in
                if number == 2 { isInSecond.set() }
                return 0
            }
        )
        let sandbox = try await Guest.interruption.sandbox(functions)
        let handle = sandbox.interruptHandle
        let heap = try await sandbox.run { try $0.memory.addressSpace.heap.lowerBound }
        let (ready, spinning) = (heap + 0x100, heap + 0x200)
        let one: [UInt8] = [1, 0, 0, 0, 0, 0, 0, 0]
        try await sandbox.run { try $0.memory.store(one, to: GuestBuffer(address: ready + 8, count: 8)) }
        let count = try sandbox.function("note_and_count", as: ((UInt64, UInt64) -> UInt64).self)
        let requests: [(UInt64, UInt64)] = [(1, ready), (2, spinning), (3, ready)]
        let stream = Task { await drain(count.stream(requests)) }
        await waitUntil { isInSecond.isSet }
        try await onThread { Result { try handle.beginExternalStop() } }.get()
        let snapshot = try await sandbox.snapshot()
        try handle.endExternalStop()
        #expect(snapshot.isInCall)
        _ = await onThread { handle.kill() }
        let end = await stream.value
        #expect(end.results == [1] && end.error?.code == .killed)

        let fork = try await Sandbox(from: snapshot, hostFunctions: functions)
        try await fork.run { try $0.memory.store(one, to: GuestBuffer(address: spinning + 8, count: 8)) }
        // The third call's, which counts where the first one has.
        #expect(try await fork.resume(returning: UInt64.self) == 2)
        #expect(try await fork.call("answer") == 42)
    }

    // MARK: - Lies

    /// What a guest may write into the words that say where it is in its batch.
    private static let lies: [(offset: Int32, value: UInt64)] = [
        (SHIM_MAILBOX_BATCH_DONE, .max), (SHIM_MAILBOX_BATCH_DONE, 0), (SHIM_MAILBOX_BATCH_COUNT - 4, 1 << 32),
        (SHIM_MAILBOX_BATCH_COUNT - 4, 0), (SHIM_MAILBOX_BATCH_COUNT - 4, .max), (SHIM_MAILBOX_BATCH_FRAME, 0),
        (SHIM_MAILBOX_BATCH_FRAME, 0x1_0000), (SHIM_MAILBOX_BATCH_FRAME, 0x2_0000), (SHIM_MAILBOX_BATCH_FRAME, 1 << 63),
        (SHIM_MAILBOX_BATCH_FRAME, UInt64(SHIM_MAILBOX)), (SHIM_MAILBOX_FUNCTION, 1), (SHIM_MAILBOX_BATCH_FUNCTION, 1),
    ]

    @Test(arguments: lies.indices)
    func `a guest that lies about its batch gets a fault, a limit, or results of its own`(_ index: Int) async throws {
        let lie = Self.lies[index]
        let sandbox = try await Guest.state.sandbox()
        let snapshot = try await sandbox.snapshot()
        let poke = try sandbox.function("poke", as: ((UInt64, UInt64) -> Void).self)
        let good = try await sandbox.run { try $0.memory.addressSpace.heap.lowerBound }
        let place = UInt64(SHIM_MAILBOX) + UInt64(lie.offset)
        var requests: [(UInt64, UInt64)] = [(good, 1), (place, lie.value)]
        for word in 0..<10 as Range<UInt64> { requests.append((good + 8 * word, 7)) }
        let end = await drain(poke.stream(requests, timeLimit: .milliseconds(200)))
        switch end.error?.code {
        // None is left out without a word.
        case nil: #expect(end.results.count == requests.count)
        case .invalidResult: #expect(end.results.count < requests.count)
        // It may have gone on beyond its batch.
        case .guestFault, .timeLimitExceeded: #expect(end.results.count <= requests.count)
        case let other: Issue.record("ended in \(String(describing: other))")
        }
        if lie.offset == SHIM_MAILBOX_BATCH_DONE { #expect(end.error?.code == .invalidResult) }
        try await sandbox.restore(to: snapshot)
        #expect(await drain(poke.stream([(good, UInt64(1)), (good, UInt64(2))])).results.count == 2)
        // A call by itself is one, whatever the batch has left.
        try await poke(good, 3)
    }
}
