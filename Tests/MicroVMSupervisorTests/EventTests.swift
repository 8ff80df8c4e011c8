import MicroVM
import Synchronization
import Testing

@testable import MicroVMSupervisor

/// What readers of events, and of output, get.
@Suite(.timeLimit(.minutes(2))) struct EventTests {
    @Test(.requiresKVM) func `a reader sees a call's events in their order`() async throws {
        let supervisor = try await Supervisor.forTests()
        let events = supervisor.events()
        let id = try await supervisor.startSpinning()
        try await supervisor.stop(id)
        try await supervisor.resume(id)
        try await supervisor.kill(id)
        _ = try await supervisor.wait(for: id)
        var kinds: [SupervisorEvent.Kind] = []
        for await event in events where event.call == id {
            kinds.append(event.kind)
            if case .killed = event.kind { break }
        }
        #expect(kinds == [.queued, .started, .stopped, .continued, .killed(.request)])
    }

    @Test func `a slow reader holds nobody up, and is told what it has missed`() async throws {
        let hub = EventHub()
        let slow = hub.reader(capacity: 10)
        let fast = hub.reader(capacity: 100_000)
        for _ in 0..<10_000 { hub.publish(.queued) }
        hub.finish()
        var numbers: [UInt64] = []
        var missed = 0
        for await event in slow {
            if case .missed(let count) = event.kind { missed += count } else { numbers.append(event.number) }
        }
        #expect(numbers.count <= 10 && numbers.count + missed == 10_000)
        #expect(numbers == Array(UInt64(missed + 1)...10_000))
        var count: UInt64 = 0
        for await event in fast {
            count += 1
            #expect(event.number == count)
        }
        #expect(count == 10_000)
    }

    @Test func `a reader that is always a little behind misses nothing, and keeps nothing that has been read`() async {
        let hub = EventHub()
        let events = hub.reader(capacity: 200)
        for _ in 0..<100 { hub.publish(.queued) }
        for number in 1...10_000 as ClosedRange<UInt64> {
            hub.publish(.queued)
            #expect(await events.buffer.next()?.number == number)
        }
        #expect(events.buffer.state.withLock { $0.count } == 100)
        #expect(events.buffer.state.withLock { $0.events.count } <= 200)
    }

    @Test func `events that come closely are read together, and none is held back for long`() async throws {
        let hub = EventHub()
        let events = hub.reader(capacity: 100_000)
        let numbers = Task {
            var numbers: [UInt64] = []
            for await event in events { numbers.append(event.number) }
            return numbers
        }
        for _ in 0..<1000 {
            hub.publish(.queued)
            await Task.yield()
        }
        // The last one has nobody behind it who would bring it along.
        await waitUntil { events.buffer.state.withLock { $0.count == 0 } }
        hub.publish(.queued)
        hub.finish()
        #expect(await numbers.value == Array(1...1001))
    }

    @Test func `a reader that has just been woken is left alone, unless its buffer is half full`() async {
        let hub = EventHub()
        let events = hub.reader(capacity: 10)
        let numbers = Task {
            var numbers: [UInt64] = []
            for await event in events { numbers.append(event.number) }
            return numbers
        }
        var count: UInt64 = 0
        func publish() {
            count += 1
            hub.publish(.queued)
        }
        // How long this takes is the machine's affair: it is enough that it comes to this once.
        var isLeftAlone = false
        while !isLeftAlone {
            await waitUntil { events.buffer.state.withLock { $0.reader != nil } }
            publish()
            isLeftAlone = events.buffer.state.withLock { $0.reader != nil && $0.count == 1 }
        }
        for _ in 0..<10 {
            publish()
            // Nobody waits for what there is so much of.
            #expect(events.buffer.state.withLock { $0.reader == nil || $0.count <= 5 })
            await waitUntil { events.buffer.state.withLock { $0.count < 10 } }
        }
        hub.finish()
        #expect(await numbers.value == Array(1...count))
    }

    @Test func `a reader that is cancelled stops reading, and the next one that reads goes on`() async throws {
        let hub = EventHub()
        let events = hub.reader(capacity: 10)
        let reader = Task {
            for await _ in events { return true }
            return false
        }
        reader.cancel()
        #expect(await reader.value == false)
        hub.publish(.queued)
        for await event in events {
            #expect(event.number == 1)
            break
        }
    }

    @Test func `a reader that is gone costs nothing`() async throws {
        let hub = EventHub()
        weak var buffer: EventBuffer?
        do {
            let events = hub.reader(capacity: 10)
            buffer = events.buffer
            hub.publish(.queued)
        }
        #expect(buffer == nil)
        hub.publish(.queued)
    }

    @Test(.requiresKVM) func `output is its call's own, in order, and can be read while it comes`() async throws {
        let supervisor = try await Supervisor.forTests()
        var ids: [CallID] = []
        for name in ["Ada", "Grace", "Barbara"] {
            ids.append(
                try await supervisor.start(
                    CallRequest(module: "hello", function: "greet", arguments: [.string(name)], returns: .void)
                )
            )
        }
        for (id, name) in zip(ids, ["Ada", "Grace", "Barbara"]) {
            let output = try await supervisor.output(of: id)
            var text: [UInt8] = []
            var offset: UInt64 = 0
            while true {
                let (pieces, mayGoOn) = output.pieces(from: offset)
                for piece in pieces {
                    #expect(piece.offset == offset && piece.stream == .standardOutput)
                    offset += UInt64(piece.bytes.count)
                    text += piece.bytes
                }
                if !mayGoOn, pieces.isEmpty { break }
                await output.wait(beyond: offset)
            }
            #expect(String(decoding: text, as: UTF8.self) == "Hello, \(name)!\n")
            #expect(try await supervisor.wait(for: id).output == UInt64(text.count))
        }
    }

    @Test func `of much output the end is kept, whatever the pieces are`() async throws {
        for size in [1, 7, 100, 5000, 20_000] {
            let output = CallOutput(capacity: 10_000, limit: nil, meters: [], reachedLimit: { _ in })
            var written = 0
            for index in 0..<(60_000 / size) {
                let bytes = (0..<size).map { UInt8(truncatingIfNeeded: written + $0) }
                output.append(index % 3 == 0 ? .standardError : .standardOutput, bytes)
                written += size
                #expect(output.size <= 10_000)
            }
            let pieces = output.pieces().pieces
            var offset = try #require(pieces.first).offset
            for piece in pieces {
                #expect(piece.offset == offset)
                for byte in piece.bytes {
                    guard byte == UInt8(truncatingIfNeeded: offset) else {
                        Issue.record("a wrong byte at \(offset)")
                        return
                    }
                    offset += 1
                }
            }
            #expect(offset == UInt64(written) && output.written == UInt64(written))
            #expect(output.pieces(from: offset - 1).pieces.flatMap(\.bytes).count == 1)
            #expect(output.pieces(from: offset).pieces.isEmpty)
        }
    }

    @Test func `a minute forgets what is older`() {
        let shared = Seconds()
        let meter = MinuteMeter(clock: { shared.now })
        meter.add(5)
        shared.move(to: 30)
        #expect(meter.add(7) == 12)
        shared.move(to: 59)
        #expect(meter.total == 12)
        shared.move(to: 60)
        #expect(meter.total == 7)
        shared.move(to: 90)
        #expect(meter.total == 0)
        shared.move(to: 10_000)
        #expect(meter.add(1) == 1)
    }
}

/// A clock that only moves when it is told to.
private final class Seconds: Sendable {
    private let value = Mutex<Int64>(0)
    var now: Int64 { value.withLock { $0 } }
    func move(to second: Int64) { value.withLock { $0 = second } }
}
