import Glibc
import SystemPackage
import Testing

@testable import MicroVM

private let page = 4096

/// Page faults of guests, which KVM meets on their behalf in the kernel.
@Suite(.requiresKVM, .requiresUserfaultfd, .timeLimit(.minutes(5))) struct GuestPageFaultTests {
    private static func stretch(_ handler: PageFaultHandler, sandboxes: Int = 1) throws -> ServedStretch {
        try ServedStretch(handler, sandboxes: sandboxes, regionSize: 32 * page, regionOffset: BareGuest.regionOffset)
    }

    @Test func `a guest reads what the source has, and zeros behind it, and keeps what it writes`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try Self.stretch(handler)
        let content = (0..<8 * page).map { UInt8(truncatingIfNeeded: $0 / page &* 3 &+ $0) }
        let source = PageSource.custom(size: UInt64(content.count)) { offset, count in
            Array(content[Int(offset)..<Int(offset) + count])
        }
        try stretch.memory.attach(source, accessibleCount: 16 * page, sandbox: 0)
        let guest = try BareGuest(stretch)
        let outcomes = await onThread {
            (0..<16).map { number in
                [
                    guest.load(at: number * page + 5), guest.store(UInt8(number + 100), at: number * page + 6),
                    guest.load(at: number * page + 6), guest.load(at: number * page + 4095),
                ]
            }
        }
        for (number, outcome) in outcomes.enumerated() {
            let expected: [UInt8] = number < 8 ? [content[number * page + 5], content[number * page + 4095]] : [0, 0]
            let written = UInt8(number + 100)
            #expect(outcome == [.done(expected[0]), .done(written), .done(written), .done(expected[1])])
        }
        #expect(handler.statistics.copiedPages == 8)
        #expect(handler.statistics.zeroPages == 8)
        #expect(stretch.memory.takeFault(sandbox: 0).isNone)
    }

    @Test func `a guest that writes first finds the source's bytes around what it wrote`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try Self.stretch(handler)
        try stretch.memory.attach(.bytes([1, 2, 3]), accessibleCount: 2 * page, sandbox: 0)
        let guest = try BareGuest(stretch)
        let outcomes = await onThread {
            [guest.store(9, at: 1), guest.load(at: 0), guest.load(at: 1), guest.load(at: 2), guest.store(7, at: page)]
        }
        #expect(outcomes == [.done(9), .done(1), .done(9), .done(3), .done(7)])
        #expect(try stretch.read(2, at: page).get() == [7, 0])
    }

    @Test func `an access out of bounds ends the run, and can go on once there is memory`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try Self.stretch(handler)
        let content = [UInt8](repeating: 5, count: 4 * page)
        try stretch.memory.attach(.bytes(content), accessibleCount: 2 * page, sandbox: 0)
        let guest = try BareGuest(stretch)
        #expect(await onThread { guest.load(at: 3 * page) } == .badAddress)
        let failure = try #require(stretch.memory.takeFault(sandbox: 0))
        #expect(failure.isOutOfBounds)
        #expect(failure.offset == 3 * page)
        // Taken, but no better.
        #expect(await onThread { guest.resume() } == .badAddress)
        #expect(stretch.memory.takeFault(sandbox: 0)?.isOutOfBounds == true)
        try stretch.memory.setAccessibleCount(4 * page, sandbox: 0)
        #expect(await onThread { guest.resume() } == .done(5))
    }

    @Test func `a source that fails ends the run, and the page comes when it does not`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try Self.stretch(handler)
        let calls = Counter()
        let source = PageSource.custom(size: UInt64(4 * page)) { _, count in
            if calls.next() == 1 { throw Errno.ioError }
            return [UInt8](repeating: 6, count: count)
        }
        try stretch.memory.attach(source, accessibleCount: 4 * page, sandbox: 0)
        let guest = try BareGuest(stretch)
        #expect(await onThread { guest.store(1, at: page) } == .badAddress)
        #expect(stretch.memory.takeFault(sandbox: 0)?.sourceError as? Errno == .ioError)
        #expect(await onThread { guest.resume() } == .done(1))
        #expect(await onThread { guest.load(at: page + 1) } == .done(6))
    }

    @Test func `a write to memory that is read-only ends the run`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try Self.stretch(handler)
        try stretch.memory.attach(.bytes([4]), accessibleCount: page, protection: .readOnly, sandbox: 0)
        let guest = try BareGuest(stretch)
        let outcomes = await onThread { [guest.store(1, at: 0), guest.load(at: 0), guest.store(1, at: 0)] }
        #expect(outcomes == [.badAddress, .done(4), .badAddress])
        #expect(stretch.memory.takeFault(sandbox: 0).isNone)
    }

    @Test func `a guest that waits for a source which never answers is ended by kicks`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try Self.stretch(handler)
        let held = HeldSource()
        try stretch.memory.attach(held.source(size: 4 * page), accessibleCount: 4 * page, sandbox: 0)
        let guest = try BareGuest(stretch)
        for round in 0..<Surroundings.scaled(100) {
            let thread = Shared<pthread_t>(nil)
            let isOver = Flag()
            async let outcome = onInterruptibleThread(thread) {
                defer { isOver.set() }
                return round == 0 ? guest.load(at: 0) : guest.resume()
            }
            if round.isMultiple(of: 2) {
                _ = await held.waiting(1)
            } else {
                // Not even begun, perhaps.
                await until { thread.value != nil }
            }
            // As whoever kills does it: again and again until the guest has been left.
            while !isOver.isSet {
                guest.setImmediateExit(1)
                if let thread = thread.value { pthread_kill(thread, SIGUSR2) }
                stretch.memory.abandonFaults(sandbox: 0)
                await pause()
            }
            let ended = await outcome
            // A signal ends the wait by itself where the kernel lets it; the abandoned page does everywhere.
            #expect(ended == .interrupted || ended == .badAddress)
            stretch.memory.abandonFaults(sandbox: 0)
            let failure = stretch.memory.takeFault(sandbox: 0)
            #expect(failure.isNone || failure?.isAbandoned == true)
            guest.setImmediateExit(0)
            held.answerAll { .success([UInt8](repeating: 0xEE, count: $0.count)) }
        }
        // The next one gets its page.
        async let outcome = onThread { guest.resume() }
        _ = await held.waiting(1)
        held.answerAll { .success([UInt8](repeating: 0x11, count: $0.count)) }
        #expect(await outcome == .done(0x11))
    }

    @Test func `abandoning alone ends a guest's wait`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try Self.stretch(handler)
        let held = HeldSource()
        try stretch.memory.attach(held.source(size: 4 * page), accessibleCount: 4 * page, sandbox: 0)
        let guest = try BareGuest(stretch)
        async let outcome = onThread { guest.load(at: 2 * page) }
        let request = await held.waiting(1)[0]
        stretch.memory.abandonFaults(sandbox: 0)
        #expect(await outcome == .badAddress)
        let failure = try #require(stretch.memory.takeFault(sandbox: 0))
        #expect(failure.isAbandoned)
        #expect(failure.offset == 2 * page)
        await until { held.cancelled == 1 }
        held.answer(request, .success([]))
    }

    @Test func `guests of many sandboxes are served side by side`() async throws {
        let sandboxes = 4
        let rounds = Surroundings.scaled(400)
        let handler = try PageFaultHandler()
        let stretch = try Self.stretch(handler, sandboxes: sandboxes)
        for sandbox in 0..<sandboxes {
            let content = (0..<24 * page).map { UInt8(truncatingIfNeeded: $0 / page &* 7 &+ $0 &+ sandbox &* 11) }
            let source = PageSource.custom(size: UInt64(content.count), readAhead: sandbox) { offset, count in
                await Task.yield()
                return Array(content[Int(offset)..<Int(offset) + count])
            }
            let bytes = PageSource.bytes(content, readAhead: sandbox)
            try stretch.memory.attach(
                sandbox.isMultiple(of: 2) ? source : bytes,
                accessibleCount: 28 * page,
                sandbox: sandbox
            )
        }
        let wrong = try await withThrowingTaskGroup { group in
            for sandbox in 0..<sandboxes {
                let guest = try BareGuest(stretch, sandbox: sandbox)
                group.addTask {
                    await onThread {
                        (0..<rounds).count { _ in
                            let offset = Int.random(in: 0..<30 * page)
                            let outcome = guest.load(at: offset)
                            if offset >= 28 * page {
                                return outcome != .badAddress
                                    || stretch.memory.takeFault(sandbox: sandbox)?.isOutOfBounds != true
                            }
                            let byte = UInt8(truncatingIfNeeded: offset / page &* 7 &+ offset &+ sandbox &* 11)
                            return outcome != .done(offset < 24 * page ? byte : 0)
                        }
                    }
                }
            }
            return try await group.reduce(0, +)
        }
        #expect(wrong == 0)
        #expect(handler.statistics.sourceFailures + handler.statistics.abandonedAccesses == 0)
    }
}
