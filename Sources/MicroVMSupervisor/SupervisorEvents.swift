import Synchronization

/// The events of a supervisor from one moment on, for one reader.
///
/// The reader may be as slow as it likes: nobody waits for it. What it has not read in time is dropped, the oldest
/// first, and in its place comes ``SupervisorEvent/Kind/missed(_:)`` with the number of what is missing.
///
/// After a while in which nothing happened the next event reaches a reader at once. Those that follow come together,
/// some milliseconds later, or earlier where the buffer is half full: so that what is watched costs little more for it.
public struct SupervisorEvents: AsyncSequence, Sendable {
    /// Takes the events one by one.
    public struct AsyncIterator: AsyncIteratorProtocol, Sendable {
        let buffer: EventBuffer

        /// Waits for the next event; nothing when the task is cancelled, or the supervisor is gone.
        public mutating func next() async -> SupervisorEvent? { await buffer.next() }

        /// The same, wherever it is called: where an event is there, without leaving the caller's actor.
        public mutating func next(isolation actor: isolated (any Actor)?) async -> SupervisorEvent? {
            await buffer.next(isolation: actor)
        }
    }

    let buffer: EventBuffer

    /// The events that have not been read yet. There is one place for all iterators of a sequence.
    public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(buffer: buffer) }
}

/// What one reader has not read yet.
final class EventBuffer: Sendable {
    struct State {
        /// Those from `first` on have not been read.
        var events: [SupervisorEvent] = []
        var first = 0
        var missed = 0
        var isFinished = false
        var reader: CheckedContinuation<SupervisorEvent?, Never>?
        /// When the reader was last woken for an event.
        var woken: ContinuousClock.Instant?
        /// Whether somebody will wake it at the end of its pause.
        var isPaused = false

        var count: Int { events.count - first }

        /// The next one, if there is one.
        mutating func take() -> SupervisorEvent? {
            guard first < events.count else { return nil }
            let event = events[first]
            if missed > 0 {
                defer { missed = 0 }
                return SupervisorEvent(number: event.number - 1, time: event.time, kind: .missed(missed))
            }
            first += 1
            // Those that have been read go when they are the larger part: also of a reader that never has all.
            if first > events.count / 2, first == events.count || first >= 64 {
                events.removeFirst(first)
                first = 0
            }
            return event
        }

        mutating func drop(_ count: Int) {
            missed += count
            events.removeFirst(first + count)
            first = 0
        }
    }

    private typealias Resumption = (reader: CheckedContinuation<SupervisorEvent?, Never>, event: SupervisorEvent)

    /// For how long a reader is left alone that has just been woken: a wake-up costs more than many calls may, and is
    /// paid by those that the events are about.
    private static let pause = Duration.milliseconds(5)

    private let capacity: Int
    let state = Mutex(State())

    init(capacity: Int) { self.capacity = max(capacity, 1) }

    func add(_ event: SupervisorEvent) {
        let (resumption, pauseEnd) = state.withLock { state -> (Resumption?, ContinuousClock.Instant?) in
            guard !state.isFinished else { return (nil, nil) }
            // A part at once, so that a reader that is far behind costs little.
            if state.count >= capacity { state.drop(max(1, capacity / 8)) }
            state.events.append(event)
            guard state.reader != nil else { return (nil, nil) }
            // A buffer that fills up cannot wait.
            guard state.count <= capacity / 2, let woken = state.woken, .now < woken + Self.pause else {
                return (wake(&state), nil)
            }
            guard !state.isPaused else { return (nil, nil) }
            state.isPaused = true
            return (nil, woken + Self.pause)
        }
        resumption?.reader.resume(returning: resumption?.event)
        guard let pauseEnd else { return }
        Task.detached { [weak self] in
            try? await Task.sleep(until: pauseEnd, clock: .continuous)
            self?.endPause()
        }
    }

    private func endPause() {
        let resumption = state.withLock { state in
            state.isPaused = false
            return wake(&state)
        }
        resumption?.reader.resume(returning: resumption?.event)
    }

    /// What a reader gets that need not wait.
    private static func answer(_ state: inout State) -> SupervisorEvent?? {
        if Task.isCancelled { return .some(nil) }
        if let event = state.take() { return event }
        return state.isFinished ? .some(nil) : .none
    }

    /// The reader, if it waits, and what it has waited for.
    private func wake(_ state: inout State) -> Resumption? {
        guard let reader = state.reader, let event = state.take() else { return nil }
        state.reader = nil
        state.woken = .now
        return (reader, event)
    }

    func finish() {
        let (resumption, reader) = state.withLock {
            state -> (Resumption?, CheckedContinuation<SupervisorEvent?, Never>?) in
            state.isFinished = true
            // What it has not got because it was left alone comes first.
            if let resumption = wake(&state) { return (resumption, nil) }
            defer { state.reader = nil }
            return (nil, state.reader)
        }
        resumption?.reader.resume(returning: resumption?.event)
        reader?.resume(returning: nil)
    }

    func next(isolation actor: isolated (any Actor)? = #isolation) async -> SupervisorEvent? {
        if let answer = state.withLock({ Self.answer(&$0) }) { return answer }
        return await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let (previous, answer) = state.withLock {
                    state -> (CheckedContinuation<SupervisorEvent?, Never>?, SupervisorEvent??) in
                    if let answer = Self.answer(&state) { return (nil, answer) }
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
