import Synchronization

/// The events of a supervisor from one moment on, for one reader.
///
/// The reader may be as slow as it likes: nobody waits for it. What it has not read in time is dropped, the oldest
/// first, and in its place comes ``SupervisorEvent/Kind/missed(_:)`` with the number of what is missing.
public struct SupervisorEvents: AsyncSequence, Sendable {
    /// Takes the events one by one.
    public struct AsyncIterator: AsyncIteratorProtocol, Sendable {
        let buffer: EventBuffer

        /// Waits for the next event; nothing when the task is cancelled, or the supervisor is gone.
        public mutating func next() async -> SupervisorEvent? { await buffer.next() }

        /// The same, wherever it is called.
        public mutating func next(isolation actor: isolated (any Actor)?) async -> SupervisorEvent? {
            await buffer.next()
        }
    }

    let buffer: EventBuffer

    /// The events that have not been read yet. There is one place for all iterators of a sequence.
    public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(buffer: buffer) }
}

/// What one reader has not read yet.
final class EventBuffer: Sendable {
    private struct State {
        var events: [SupervisorEvent] = []
        var missed = 0
        var isFinished = false
        var reader: CheckedContinuation<SupervisorEvent?, Never>?

        /// The next one, if there is one.
        mutating func take() -> SupervisorEvent? {
            guard let first = events.first else { return nil }
            if missed > 0 {
                defer { missed = 0 }
                return SupervisorEvent(number: first.number - 1, time: first.time, kind: .missed(missed))
            }
            return events.removeFirst()
        }
    }

    private let capacity: Int
    private let state = Mutex(State())

    init(capacity: Int) { self.capacity = max(capacity, 1) }

    func add(_ event: SupervisorEvent) {
        let resumption = state.withLock { state -> (CheckedContinuation<SupervisorEvent?, Never>, SupervisorEvent)? in
            guard !state.isFinished else { return nil }
            if state.events.count >= capacity {
                // A part at once, so that a reader that is far behind costs little.
                let count = max(1, capacity / 8)
                state.events.removeFirst(count)
                state.missed += count
            }
            state.events.append(event)
            guard let reader = state.reader, let first = state.take() else { return nil }
            state.reader = nil
            return (reader, first)
        }
        resumption?.0.resume(returning: resumption?.1)
    }

    func finish() {
        let reader = state.withLock { state in
            state.isFinished = true
            defer { state.reader = nil }
            return state.reader
        }
        reader?.resume(returning: nil)
    }

    func next() async -> SupervisorEvent? {
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let (previous, answer) = state.withLock {
                    state -> (CheckedContinuation<SupervisorEvent?, Never>?, SupervisorEvent??) in
                    if Task.isCancelled { return (nil, .some(nil)) }
                    if let event = state.take() { return (nil, .some(event)) }
                    if state.isFinished { return (nil, .some(nil)) }
                    // Two that read at the same time: the first one has to go without.
                    defer { state.reader = continuation }
                    return (state.reader, .none)
                }
                previous?.resume(returning: nil)
                if let answer { continuation.resume(returning: answer) }
            }
        } onCancel: {
            let reader = state.withLock { state in
                defer { state.reader = nil }
                return state.reader
            }
            reader?.resume(returning: nil)
        }
    }
}

/// Hands events to all who read them.
final class EventHub: Sendable {
    private struct Reader {
        weak var buffer: EventBuffer?
    }

    private struct State {
        var number: UInt64 = 0
        var readers: [Reader] = []
        var isFinished = false
    }

    private let state = Mutex(State())

    deinit { finish() }

    func reader(capacity: Int) -> SupervisorEvents {
        let buffer = EventBuffer(capacity: capacity)
        let isFinished = state.withLock { state in
            state.readers.removeAll { $0.buffer == nil }
            state.readers.append(Reader(buffer: buffer))
            return state.isFinished
        }
        if isFinished { buffer.finish() }
        return SupervisorEvents(buffer: buffer)
    }

    func publish(
        _ kind: SupervisorEvent.Kind,
        call: CallID? = nil,
        module: String? = nil,
        function: String? = nil
    ) {
        state.withLock { state in
            state.number += 1
            guard !state.readers.isEmpty else { return }
            let event = SupervisorEvent(
                number: state.number,
                time: .now,
                kind: kind,
                call: call,
                module: module,
                function: function
            )
            // Inside the lock, so that everybody sees the same order. Resuming a task runs nothing of it here.
            for reader in state.readers { reader.buffer?.add(event) }
        }
    }

    func finish() {
        let readers = state.withLock { state in
            state.isFinished = true
            return state.readers
        }
        for reader in readers { reader.buffer?.finish() }
    }
}
