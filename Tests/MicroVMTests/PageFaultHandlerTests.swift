import Glibc
import SystemPackage
import Testing

@testable import MicroVM

/// Bytes of which no two pages are alike, nor two shifts of one.
private func pattern(_ count: Int, seed: Int = 1) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: ($0 &+ seed) &* 31 &+ $0 / 4096 &* 17 &+ seed) }
}

private struct SourceBroke: Error, Equatable {
    var page: UInt64
}

private let page = 4096

@Suite(.requiresUserfaultfd, .timeLimit(.minutes(5))) struct PageFaultHandlerTests {
    // MARK: Serving

    @Test func `pages come from the source, and zeros where it has none`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler)
        let content = pattern(2 * page + 100)
        try stretch.memory.attach(.bytes(content), accessibleCount: 16 * page, sandbox: 0)
        for number in (0..<16).reversed() {
            let expected = (number * page..<(number + 1) * page).map { $0 < content.count ? content[$0] : 0 }
            #expect(try stretch.read(page, at: number * page).get() == expected)
        }
        let statistics = handler.statistics
        #expect(statistics.copiedPages == 3)
        #expect(statistics.zeroPages == 13)
        #expect(statistics.faults >= 16)
        #expect(stretch.memory.takeFault(sandbox: 0).isNone)
    }

    @Test(arguments: PageSource.Granularity.allCases)
    func `all bytes of a larger page become present together`(granularity: PageSource.Granularity) async throws {
        let unit = granularity.rawValue
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler, regionSize: 4 * unit, granularity: unit)
        let content = pattern(2 * unit + page + 1)
        // The last page of the source's can be accessed in part only.
        try stretch.memory.attach(
            .bytes(content, granularity: granularity),
            accessibleCount: 3 * unit - page,
            sandbox: 0
        )
        #expect(try stretch.read(1, at: 2 * unit - 1).get() == [content[2 * unit - 1]])
        #expect(handler.statistics.copiedPages == unit / page)
        #expect(handler.statistics.faults == 1)
        #expect(try stretch.read(unit, at: unit).get() == Array(content[unit..<2 * unit]))
        #expect(handler.statistics.faults == 1)
        guard unit > 2 * page else { return }
        let rest = content[(2 * unit)...] + [UInt8](repeating: 0, count: unit - 2 * page - 1)
        #expect(try stretch.read(rest.count, at: 2 * unit).get() == Array(rest))
        #expect(stretch.read(1, at: 3 * unit - page) == .failure(.badAddress))
    }

    @Test func `pages are read ahead up to the end of what is accessible`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler)
        let content = pattern(16 * page)
        try stretch.memory.attach(.bytes(content, readAhead: 3), accessibleCount: 10 * page, sandbox: 0)
        #expect(try stretch.read(1, at: 0).get() == [content[0]])
        #expect(handler.statistics.copiedPages == 4)
        #expect(try stretch.read(4 * page, at: 0).get() == Array(content[..<(4 * page)]))
        #expect(handler.statistics.faults == 1)
        // What is there already is left as it is.
        try stretch.write([1, 2, 3], at: 9 * page).get()
        try stretch.write([4, 5, 6], at: 7 * page).get()
        #expect(try stretch.read(10 * page, at: 0).get().count == 10 * page)
        #expect(try stretch.read(3, at: 9 * page).get() == [1, 2, 3])
        #expect(try stretch.read(3, at: 7 * page).get() == [4, 5, 6])
        #expect(handler.statistics.copiedPages == 10)
    }

    @Test func `a file serves pages, and one that has become shorter fails an access`() async throws {
        let workshop = try Workshop()
        let content = pattern(6 * page)
        try workshop.write(content, "pages")
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler)
        let source = try PageSource.file(workshop.folder.appending("pages"), offset: 100)
        try stretch.memory.attach(source, accessibleCount: 16 * page, sandbox: 0)
        #expect(try stretch.read(page, at: page).get() == Array(content[page + 100..<2 * page + 100]))
        try workshop.write(Array(content[..<(3 * page)]), "pages")
        #expect(stretch.read(1, at: 4 * page) == .failure(.badAddress))
        let failure = try #require(stretch.memory.takeFault(sandbox: 0))
        #expect((failure.sourceError as? SandboxError)?.code == .systemCallFailed)
        #expect(failure.offset == 4 * page)
        // The file's last bytes are gone too, but zeros behind it were never in it.
        try workshop.write(content, "pages")
        #expect(try stretch.read(page, at: 4 * page).get() == Array(content[4 * page + 100..<5 * page + 100]))
        #expect(try stretch.read(1, at: 7 * page).get() == [0])
    }

    @Test func `memory that is read-only can be read`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler)
        let content = pattern(2 * page)
        try stretch.memory.attach(.bytes(content), accessibleCount: 2 * page, protection: .readOnly, sandbox: 0)
        #expect(throws: Errno.badAddress) { try stretch.write([1], at: 0).get() }
        #expect(stretch.memory.takeFault(sandbox: 0).isNone)
        #expect(try stretch.read(2 * page, at: 0).get() == content)
        #expect(throws: Errno.badAddress) { try stretch.write([1], at: page).get() }
        // An access that failed does not make it writable.
        _ = stretch.read(1, at: 2 * page)
        #expect(stretch.memory.takeFault(sandbox: 0)?.isOutOfBounds == true)
        #expect(throws: Errno.badAddress) { try stretch.write([1], at: page).get() }
    }

    // MARK: Custom sources

    @Test func `a page that several accesses wait for is fetched once`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler)
        let held = HeldSource()
        try stretch.memory.attach(held.source(size: 16 * page), accessibleCount: 16 * page, sandbox: 0)
        async let first = onThread { stretch.read(page, at: page) }
        async let second = onThread { stretch.read(page, at: page) }
        async let third = onThread { stretch.read(10, at: page + 7) }
        await until { handler.statistics.faults >= 3 }
        let request = await held.waiting(1)[0]
        #expect(request.offset == UInt64(page))
        #expect(request.count == page)
        let content = pattern(page)
        held.answer(request, .success(content))
        #expect(await (first, second) == (.success(content), .success(content)))
        #expect(await third == .success(Array(content[7..<17])))
        #expect(held.asked == 1)
        #expect(handler.statistics.copiedPages == 1)
    }

    @Test func `different pages are fetched at the same time, and answered in any order`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler, sandboxes: 2)
        let held = HeldSource()
        for sandbox in 0..<2 {
            try stretch.memory.attach(held.source(size: 16 * page), accessibleCount: 16 * page, sandbox: sandbox)
        }
        async let first = onThread { stretch.read(page, at: 0, sandbox: 0) }
        async let second = onThread { stretch.read(page, at: 2 * page, sandbox: 0) }
        async let other = onThread { stretch.read(page, at: 5 * page, sandbox: 1) }
        let requests = await held.waiting(3).sorted { $0.offset > $1.offset }
        for request in requests {
            held.answer(request, .success(pattern(page, seed: Int(request.offset))))
        }
        #expect(await first == .success(pattern(page, seed: 0)))
        #expect(await second == .success(pattern(page, seed: 2 * page)))
        #expect(await other == .success(pattern(page, seed: 5 * page)))
    }

    @Test func `fewer bytes than asked for mean zeros, and more are an error`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler)
        let source = PageSource.custom(size: UInt64(8 * page), readAhead: 1) { offset, count in
            switch offset {
            case 0: [1, 2, 3]
            case UInt64(2 * page): []
            default: [UInt8](repeating: 9, count: count + 1)
            }
        }
        try stretch.memory.attach(source, accessibleCount: 8 * page, sandbox: 0)
        #expect(try stretch.read(2 * page, at: 0).get() == [1, 2, 3] + [UInt8](repeating: 0, count: 2 * page - 3))
        #expect(try stretch.read(2 * page, at: 2 * page).get() == [UInt8](repeating: 0, count: 2 * page))
        #expect(handler.statistics.copiedPages == 1)
        #expect(handler.statistics.zeroPages == 3)
        #expect(stretch.read(1, at: 4 * page) == .failure(.badAddress))
        let failure = stretch.memory.takeFault(sandbox: 0)
        #expect((failure?.sourceError as? SandboxError)?.code == .invalidArgument)
    }

    @Test func `a source is never asked twice for a page that stays`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler, regionSize: 64 * page)
        for _ in 0..<Surroundings.scaled(100) {
            let asked = Locked<[UInt64]>([])
            let source = PageSource.custom(size: UInt64(64 * page), readAhead: 7) { offset, count in
                asked.withLock { $0 += (0..<UInt64(count / page)).map { offset / UInt64(page) + $0 } }
                // What it leaves out is filled in a second step.
                return [UInt8](repeating: 1, count: count / 2)
            }
            try stretch.memory.attach(source, accessibleCount: 64 * page, sandbox: 0)
            async let first = onThread { (0..<64).map { stretch.read(1, at: $0 * page) } }
            async let second = onThread { (0..<64).map { stretch.read(1, at: $0 * page) } }
            let results = await first + second
            #expect(results.allSatisfy { if case .success = $0 { true } else { false } })
            #expect(asked.withLock { $0.sorted() } == Array(0..<64))
        }
    }

    @Test func `what a source throws is recorded, and the page is asked for again afterwards`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler)
        let calls = Counter()
        let source = PageSource.custom(size: UInt64(4 * page)) { offset, count in
            if calls.next() == 1 { throw SourceBroke(page: offset) }
            return pattern(count)
        }
        try stretch.memory.attach(source, accessibleCount: 4 * page, sandbox: 0)
        #expect(stretch.read(8, at: 3 * page + 16) == .failure(.badAddress))
        // As long as nobody has taken the failure, the page stays out of reach.
        #expect(stretch.read(8, at: 3 * page) == .failure(.badAddress))
        #expect(calls.value == 1)
        let failure = try #require(stretch.memory.takeFault(sandbox: 0))
        #expect(failure.sourceError as? SourceBroke == SourceBroke(page: UInt64(3 * page)))
        #expect(failure.address & ~4095 == stretch.address(3 * page))
        #expect(stretch.memory.takeFault(sandbox: 0).isNone)
        #expect(try stretch.read(page, at: 3 * page).get() == pattern(page))
        #expect(handler.statistics.sourceFailures == 1)
    }

    @Test func `an error of a page that was read ahead fails nobody`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler)
        let source = PageSource.custom(size: UInt64(8 * page), readAhead: 7) { offset, count in
            let broken = 5 * UInt64(page)
            if offset..<offset + UInt64(count) ~= broken { throw SourceBroke(page: broken) }
            return pattern(count, seed: Int(offset))
        }
        try stretch.memory.attach(source, accessibleCount: 8 * page, sandbox: 0)
        #expect(try stretch.read(page, at: 0).get() == pattern(page, seed: 0))
        #expect(stretch.memory.takeFault(sandbox: 0).isNone)
        #expect(handler.statistics.copiedPages == 1)
        #expect(stretch.read(1, at: 5 * page) == .failure(.badAddress))
        #expect(
            stretch.memory.takeFault(sandbox: 0)?.sourceError as? SourceBroke == SourceBroke(page: UInt64(5 * page))
        )
        #expect(try stretch.read(page, at: 6 * page).get() == pattern(page, seed: 6 * page))
    }

    // MARK: Bounds

    @Test func `an access behind the accessible bytes fails, whichever region it is in`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler, sandboxes: 3, regions: 2, regionOffset: page)
        for sandbox in 0..<3 {
            for region in 0..<2 {
                let content = pattern(2 * page, seed: 2 * sandbox + region)
                try stretch.memory.attach(.bytes(content), accessibleCount: 2 * page, sandbox: sandbox, region: region)
                #expect(try stretch.read(2 * page, at: 0, sandbox: sandbox, region: region).get() == content)
                let offset = (region == 0 ? 2 : 15) * page
                #expect(stretch.read(1, at: offset, sandbox: sandbox, region: region) == .failure(.badAddress))
                let failure = try #require(stretch.memory.takeFault(sandbox: sandbox))
                #expect(failure.isOutOfBounds)
                #expect(failure.region == region)
                #expect(failure.offset == offset)
                #expect(failure.address == stretch.address(offset, sandbox: sandbox, region: region))
            }
        }
        #expect(handler.statistics.outOfBoundsAccesses == 6)
        #expect((0..<3).allSatisfy { stretch.memory.takeFault(sandbox: $0).isNone })
    }

    @Test func `grown memory is served where an access had failed, and shrunk memory loses its content`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler)
        let content = pattern(16 * page)
        try stretch.memory.attach(.bytes(content), accessibleCount: 2 * page, sandbox: 0)
        #expect(stretch.read(1, at: 3 * page) == .failure(.badAddress))
        try stretch.memory.setAccessibleCount(4 * page, sandbox: 0)
        #expect(try stretch.read(page, at: 3 * page).get() == Array(content[(3 * page)..<(4 * page)]))
        #expect(stretch.memory.takeFault(sandbox: 0)?.isOutOfBounds == true)
        try stretch.write([1, 2, 3], at: 3 * page).get()
        try stretch.write([1, 2, 3], at: page).get()
        try stretch.memory.setAccessibleCount(2 * page, sandbox: 0)
        #expect(stretch.read(1, at: 3 * page) == .failure(.badAddress))
        try stretch.memory.setAccessibleCount(16 * page, sandbox: 0)
        #expect(try stretch.read(page, at: 3 * page).get() == Array(content[(3 * page)..<(4 * page)]))
        #expect(try stretch.read(3, at: page).get() == [1, 2, 3])
    }

    @Test func `nothing can be accessed before there is a source, nor afterwards`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler, sandboxes: 2)
        #expect(stretch.read(1, at: 0) == .failure(.badAddress))
        try stretch.memory.attach(.bytes([7]), accessibleCount: page, sandbox: 0)
        #expect(try stretch.read(1, at: 0).get() == [7])
        try stretch.write([9], at: 0).get()
        stretch.memory.detach(sandbox: 0)
        #expect(stretch.read(1, at: 0) == .failure(.badAddress))
        #expect(stretch.memory.takeFault(sandbox: 0).isNone)
        // The next tenant finds the source's byte, not the last one's.
        try stretch.memory.attach(.bytes([8, 8]), accessibleCount: page, sandbox: 0)
        #expect(try stretch.read(2, at: 0).get() == [8, 8])
        try stretch.memory.attach(.bytes([6, 5]), accessibleCount: page, sandbox: 0)
        #expect(try stretch.read(2, at: 0).get() == [6, 5])
    }

    @Test func `a source of another granularity is refused`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler)
        let error = #expect(throws: SandboxError.self) {
            try stretch.memory.attach(.bytes([], granularity: .kibibytes8), accessibleCount: page, sandbox: 0)
        }
        #expect(error?.code == .invalidConfiguration)
    }

    @Test func `the host can wait for pages, or learn that it must not access them`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler)
        let source = PageSource.custom(size: UInt64(16 * page)) { offset, count in
            if offset == UInt64(5 * page) { throw SourceBroke(page: offset) }
            return pattern(count, seed: Int(offset))
        }
        try stretch.memory.attach(source, accessibleCount: 8 * page, sandbox: 0)
        let start = stretch.address(0)
        #expect(stretch.memory.populate(start + 1..<start + UInt(5 * page), forWriting: true) == nil)
        // They are there now: no page is asked for, and no signal is to be feared.
        let pointer = unsafe UnsafePointer<UInt8>(bitPattern: start)!
        let byte = unsafe pointer[4 * page + 3]
        #expect(byte == pattern(4, seed: 4 * page)[3])
        #expect(stretch.memory.populate(start..<start + UInt(6 * page), forWriting: false) != nil)
        #expect(stretch.memory.takeFault(sandbox: 0)?.sourceError is SourceBroke)
        #expect(stretch.memory.populate(start + UInt(8 * page)..<start + UInt(8 * page) + 1, forWriting: true) != nil)
        #expect(stretch.memory.takeFault(sandbox: 0)?.isOutOfBounds == true)
    }

    // MARK: Abandoned and late

    @Test func `abandoned accesses fail at once, and late answers change nothing`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler, sandboxes: 2)
        let held = HeldSource()
        let source = held.source(size: 16 * page, readAhead: 1)
        for sandbox in 0..<2 { try stretch.memory.attach(source, accessibleCount: 16 * page, sandbox: sandbox) }
        async let first = onThread { stretch.read(1, at: 0) }
        async let second = onThread { stretch.read(1, at: 8 * page) }
        async let other = onThread { stretch.read(1, at: 0, sandbox: 1) }
        let requests = await held.waiting(3)
        await until { handler.statistics.faults >= 3 }
        stretch.memory.abandonFaults(sandbox: 0)
        #expect(await first == .failure(.badAddress))
        #expect(await second == .failure(.badAddress))
        #expect(handler.statistics.abandonedAccesses == 2)
        #expect(held.cancelled == 2)
        #expect(stretch.memory.takeFault(sandbox: 0)?.isAbandoned == true)
        #expect(stretch.memory.takeFault(sandbox: 1).isNone)
        // All three are answered; only the other sandbox's pages are filled.
        for request in requests { held.answer(request, .success([UInt8](repeating: 1, count: request.count))) }
        #expect(await other == .success([1]))
        async let again = onThread { stretch.read(1, at: 8 * page) }
        held.answer(await held.waiting(1)[0], .success([2]))
        #expect(await again == .success([2]))
        #expect(handler.statistics.copiedPages == 3)
    }

    @Test func `a fetch for an earlier tenant never reaches the next one`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler)
        let held = HeldSource()
        let secret = HeldSource()
        for round in 0..<Surroundings.scaled(200) {
            try stretch.memory.attach(
                secret.source(size: 16 * page, readAhead: 3),
                accessibleCount: 16 * page,
                sandbox: 0
            )
            async let first = onThread { stretch.read(1, at: 4 * page) }
            _ = await secret.waiting(1)
            stretch.memory.detach(sandbox: 0)
            #expect(await first == .failure(.badAddress))
            try stretch.memory.attach(held.source(size: 16 * page), accessibleCount: 16 * page, sandbox: 0)
            async let second = onThread { stretch.read(page, at: 4 * page) }
            let request = await held.waiting(1)[0]
            // The old answer arrives while the new tenant waits for the same page, or at the very same time.
            let late = Task.detached {
                secret.answerAll { .success([UInt8](repeating: 0xEE, count: $0.count)) }
            }
            if round.isMultiple(of: 2) { await late.value }
            held.answer(request, .success([UInt8](repeating: 0x11, count: page)))
            #expect(await second == .success([UInt8](repeating: 0x11, count: page)))
            await late.value
            #expect(stretch.memory.takeFault(sandbox: 0).isNone)
            stretch.memory.detach(sandbox: 0)
        }
        #expect(secret.cancelled == secret.asked)
    }

    // MARK: Ends

    @Test func `removing the memory fails whoever waits, and ends the thread`() async throws {
        await #expect(processExitsWith: .success) {
            let handler = try PageFaultHandler()
            for _ in 0..<3 {
                let held = HeldSource()
                let stretch = try ServedStretch(handler)
                try stretch.memory.attach(held.source(size: page), accessibleCount: page, sandbox: 0)
                async let waiting = onThread { stretch.read(1, at: 0) }
                _ = await held.waiting(1)
                #expect(Resources.pageThreads == 1)
                stretch.memory.remove()
                #expect(await waiting == .failure(.badAddress))
                await until { Resources.pageThreads == 0 }
                #expect(held.cancelled == 1)
                held.answerAll { _ in .success([1]) }
                let error = #expect(throws: SandboxError.self) {
                    try stretch.memory.attach(.bytes([]), accessibleCount: page, sandbox: 0)
                }
                #expect(error?.code == .closed)
                stretch.memory.detach(sandbox: 0)
                stretch.memory.abandonFaults(sandbox: 0)
                stretch.memory.remove()
            }
        }
    }

    @Test func `memory that is unmapped without a word is forgotten`() async throws {
        await #expect(processExitsWith: .success) {
            let handler = try PageFaultHandler()
            let stretch = try ServedStretch(handler, sandboxes: 3)
            try stretch.memory.attach(.bytes([1]), accessibleCount: page, sandbox: 1)
            #expect(try stretch.read(1, at: 0, sandbox: 1).get() == [1])
            stretch.unmap()
            await until { Resources.pageThreads == 0 }
            #expect(!stretch.memory.isOpen)
            // The handler is as good as new.
            let next = try ServedStretch(handler)
            try next.memory.attach(.bytes([2]), accessibleCount: page, sandbox: 0)
            #expect(try next.read(1, at: 0).get() == [2])
        }
    }

    @Test func `unmapping beside memory that is being served disturbs nobody`() async throws {
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler, regionSize: 512 * page)
        let content = pattern(512 * page)
        try stretch.memory.attach(.bytes(content), accessibleCount: 512 * page, sandbox: 0)
        let isOver = Flag()
        async let unmapper: Void = onThread {
            while !isOver.isSet {
                guard let other = try? ServedStretch(handler) else { break }
                other.unmap()
            }
        }
        for number in 0..<512 {
            #expect(
                try stretch.read(page, at: number * page).get() == Array(content[number * page..<(number + 1) * page])
            )
        }
        isOver.set()
        await unmapper
        #expect(handler.statistics.copiedPages == 512)
    }

    @Test func `handlers leave no thread and no descriptor, even where a source never answers`() async throws {
        await #expect(processExitsWith: .success) {
            let held = HeldSource()
            func useHandler() async throws {
                let handler = try PageFaultHandler()
                let stretch = try ServedStretch(handler, sandboxes: 2)
                try stretch.memory.attach(.bytes([1]), accessibleCount: page, sandbox: 0)
                try stretch.memory.attach(held.source(size: page), accessibleCount: page, sandbox: 1)
                #expect(try stretch.read(1, at: 0).get() == [1])
                let asked = held.asked
                async let waiting = onThread { stretch.read(1, at: 0, sandbox: 1) }
                await until { held.asked > asked }
                stretch.memory.abandonFaults(sandbox: 1)
                #expect(await waiting == .failure(.badAddress))
            }
            for _ in 0..<5 { try await useHandler() }
            let before = await Resources.settled { _ in Resources.pageThreads == 0 }
            for _ in 0..<200 { try await useHandler() }
            let after = await Resources.settled { $0.threads <= before.threads }
            #expect(Resources.pageThreads == 0)
            #expect(after.isWithin(before), "\(after), before: \(before)")
            held.answerAll { _ in .success([]) }
        }
    }

    @Test func `a handler may go before its memory`() async throws {
        let held = HeldSource()
        var handler: PageFaultHandler? = try PageFaultHandler()
        let stretch = try ServedStretch(try #require(handler))
        try stretch.memory.attach(held.source(size: page), accessibleCount: page, sandbox: 0)
        async let waiting = onThread { stretch.read(1, at: 0) }
        let request = await held.waiting(1)[0]
        handler = nil
        #expect(await waiting == .failure(.badAddress))
        held.answer(request, .success([1]))
        #expect(stretch.read(1, at: 0) == .failure(.badAddress))
    }

    @Test func `a refusal says which setting to change`() {
        for error in [Errno.notPermitted, .permissionDenied] {
            let refusal = FaultChannel.refusal(error)
            #expect(refusal.code == .systemCallFailed)
            #expect(refusal.underlyingError as? Errno == error)
            for setting in ["vm.unprivileged_userfaultfd=1", "CAP_SYS_PTRACE", "/dev/userfaultfd"] {
                #expect(refusal.message.contains(setting))
            }
        }
    }

    // MARK: Everything at once

    @Test func `many threads read random pages of many sandboxes, and every byte is right`() async throws {
        let sandboxes = 8
        let threads = 4
        let pages = 64
        let rounds = Surroundings.scaled(1000)
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler, sandboxes: sandboxes, regionSize: pages * page)
        let workshop = try Workshop()
        let contents = (0..<sandboxes).map { pattern(48 * page + 1234, seed: $0 * 1009) }
        for (sandbox, content) in contents.enumerated() {
            let source: PageSource
            switch sandbox % 4 {
            case 0: source = .bytes(content)
            case 1:
                try workshop.write(content, "\(sandbox)")
                source = try .file(workshop.folder.appending("\(sandbox)"), readAhead: 2)
            default:
                source = .custom(size: UInt64(content.count), readAhead: sandbox % 4 - 2) { offset, count in
                    await Task.yield()
                    return Array(content[Int(offset)..<Int(offset) + count])
                }
            }
            try stretch.memory.attach(source, accessibleCount: (pages - 4) * page, sandbox: sandbox)
        }
        let failures = await withTaskGroup { group in
            for sandbox in 0..<sandboxes {
                let padded = contents[sandbox] + [UInt8](repeating: 0, count: pages * page - contents[sandbox].count)
                let expected = (0..<pages).map { Array(padded[$0 * page..<($0 + 1) * page]) }
                for _ in 0..<threads {
                    group.addTask {
                        await onThread {
                            (0..<rounds).count { _ in
                                let number = Int.random(in: 0..<pages - 4)
                                let bytes = stretch.read(page, at: number * page, sandbox: sandbox)
                                return bytes != .success(expected[number])
                            }
                        }
                    }
                }
            }
            return await group.reduce(0, +)
        }
        #expect(failures == 0)
        // Whatever chance has left out; then each page has been filled exactly once.
        for sandbox in 0..<sandboxes {
            for number in 0..<pages - 4 { _ = try stretch.read(1, at: number * page, sandbox: sandbox).get() }
            #expect(stretch.memory.takeFault(sandbox: sandbox).isNone)
        }
        let statistics = handler.statistics
        #expect(statistics.copiedPages == sandboxes * 49)
        #expect(statistics.zeroPages == sandboxes * (pages - 4 - 49))
        #expect(statistics.outOfBoundsAccesses + statistics.sourceFailures + statistics.abandonedAccesses == 0)
    }

    @Test func `every access is served or failed, and counted, whatever happens to the memory meanwhile`() async throws
    {
        let sandboxes = 4
        let rounds = Surroundings.scaled(400)
        let handler = try PageFaultHandler()
        let stretch = try ServedStretch(handler, sandboxes: sandboxes)
        let wrong = await withTaskGroup { group in
            for sandbox in 0..<sandboxes {
                group.addTask {
                    var wrong = 0
                    for round in 0..<rounds {
                        let mark = UInt8(truncatingIfNeeded: round * sandboxes + sandbox)
                        let source = PageSource.custom(size: UInt64(16 * page), readAhead: round % 3) { _, count in
                            if round.isMultiple(of: 5) { throw SourceBroke(page: 0) }
                            if round.isMultiple(of: 3) { await pause() }
                            return [UInt8](repeating: mark, count: count)
                        }
                        guard (try? stretch.memory.attach(source, accessibleCount: 8 * page, sandbox: sandbox)) != nil
                        else { return -1 }
                        async let first = onThread { stretch.read(page, at: round % 9 * page, sandbox: sandbox) }
                        async let second = onThread { stretch.read(page, at: (round + 1) % 9 * page, sandbox: sandbox) }
                        switch round % 4 {
                        case 0: stretch.memory.abandonFaults(sandbox: sandbox)
                        case 1: try? stretch.memory.setAccessibleCount(4 * page, sandbox: sandbox)
                        case 2: stretch.memory.detach(sandbox: sandbox)
                        default: break
                        }
                        for result in await [first, second] {
                            switch result {
                            case .success(let bytes): wrong += bytes.allSatisfy { $0 == mark } ? 0 : 1
                            case .failure(let error): wrong += error == .badAddress ? 0 : 1
                            }
                        }
                        _ = stretch.memory.takeFault(sandbox: sandbox)
                        stretch.memory.detach(sandbox: sandbox)
                    }
                    return wrong
                }
            }
            return await group.reduce(0, +)
        }
        #expect(wrong == 0)
    }
}
