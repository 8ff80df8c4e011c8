public import MicroVM
import Synchronization

/// What a call's guest has written: the end of it, for those who ask.
public final class CallOutput: Sendable {
    /// Bytes that were written one after the other to one stream.
    public struct Piece: Sendable, Hashable {
        /// How many bytes of output came before these, to both streams.
        public var offset: UInt64
        /// Where they were written to.
        public var stream: SandboxConfiguration.OutputStream
        /// The bytes, which can be anything.
        public var bytes: [UInt8]
    }

    private struct State {
        var pieces: [Piece] = []
        /// How many bytes of pieces there are.
        var size = 0
        var written: UInt64 = 0
        var isOver = false
        var hasReachedLimit = false
        var waiters: [UInt64: CheckedContinuation<Void, Never>] = [:]
        var nextWaiter: UInt64 = 0

        mutating func takeWaiters() -> [CheckedContinuation<Void, Never>] {
            defer { waiters = [:] }
            return Array(waiters.values)
        }
    }

    /// The output of the call that the current task runs.
    @TaskLocal static var current: CallOutput?

    /// The output of all calls that are over and have written nothing.
    static let nothing = {
        let output = CallOutput(capacity: 0)
        output.finish()
        return output
    }()

    private static let pieceSize = 4096

    private let capacity: Int
    private let limit: UInt64
    /// The meters of minutes that also count this output, and their limits.
    private let meters: [(meter: MinuteMeter, limit: UInt64)]
    /// Called once, when a limit is reached.
    private let reachedLimit: @Sendable (CallLimit) -> Void
    private let state = Mutex(State())

    init(
        capacity: Int,
        limit: UInt64? = nil,
        meters: [(meter: MinuteMeter, limit: UInt64)] = [],
        reachedLimit: @escaping @Sendable (CallLimit) -> Void = { _ in }
    ) {
        self.capacity = max(capacity, 0)
        self.limit = limit ?? .max
        self.meters = meters
        self.reachedLimit = reachedLimit
    }

    /// How many bytes the guest has written that were within its limits.
    public var written: UInt64 { state.withLock { $0.written } }

    /// How many bytes are kept.
    var size: Int { state.withLock { $0.size } }

    /// Takes what the guest writes. Nothing beyond a limit is kept.
    func append(_ stream: SandboxConfiguration.OutputStream, _ bytes: [UInt8]) {
        guard !bytes.isEmpty else { return }
        var reached: CallLimit?
        let waiters = state.withLock { state -> [CheckedContinuation<Void, Never>] in
            guard !state.hasReachedLimit, !state.isOver else { return [] }
            var accepted = bytes[...]
            if UInt64(bytes.count) > limit - state.written {
                accepted = bytes.prefix(Int(limit - state.written))
                reached = .output
            }
            for (meter, limit) in meters where meter.add(UInt64(accepted.count)) > limit {
                reached = reached ?? .outputPerMinute
            }
            state.hasReachedLimit = reached != nil
            add(stream, accepted, to: &state)
            return state.takeWaiters()
        }
        for waiter in waiters { waiter.resume() }
        if let reached { reachedLimit(reached) }
    }

    private func add(
        _ stream: SandboxConfiguration.OutputStream,
        _ bytes: ArraySlice<UInt8>,
        to state: inout State
    ) {
        let offset = state.written
        state.written += UInt64(bytes.count)
        let kept = bytes.suffix(capacity)
        let isWhole = kept.count == bytes.count
        if isWhole, let last = state.pieces.last, last.stream == stream,
            last.bytes.count + kept.count <= Self.pieceSize
        {
            state.pieces[state.pieces.count - 1].bytes += kept
        } else if !kept.isEmpty {
            let start = offset + UInt64(bytes.count - kept.count)
            state.pieces.append(Piece(offset: start, stream: stream, bytes: Array(kept)))
        }
        state.size += kept.count
        guard state.size > capacity else { return }
        // More than has to go, so that this does not happen for every byte.
        var count = 0
        let target = capacity - capacity / 4
        while state.size > target, count < state.pieces.count - 1 {
            state.size -= state.pieces[count].bytes.count
            count += 1
        }
        state.pieces.removeFirst(count)
    }

    /// No more comes.
    func finish() {
        let waiters = state.withLock { state in
            state.isOver = true
            return state.takeWaiters()
        }
        for waiter in waiters { waiter.resume() }
    }

    /// Forgets what is kept.
    func clear() {
        state.withLock { state in
            state.pieces = []
            state.size = 0
        }
    }

    /// What is kept of the output from a place on, and whether more may come.
    ///
    /// - Parameter offset: how many bytes to leave out, counted from the beginning of the output. Where these and more
    ///   are not kept any more, the first piece begins behind them.
    public func pieces(from offset: UInt64 = 0) -> (pieces: [Piece], mayGoOn: Bool) {
        state.withLock { state in
            let pieces = state.pieces.compactMap { piece -> Piece? in
                guard piece.offset < offset else { return piece }
                let skipped = offset - piece.offset
                guard skipped < UInt64(piece.bytes.count) else { return nil }
                return Piece(offset: offset, stream: piece.stream, bytes: Array(piece.bytes.dropFirst(Int(skipped))))
            }
            return (pieces, !state.isOver)
        }
    }

    /// Waits until there is output behind a place, or no more can come, or the task is cancelled.
    public func wait(beyond offset: UInt64) async {
        let number = state.withLock { state in
            defer { state.nextWaiter += 1 }
            return state.nextWaiter
        }
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let isOver = state.withLock { state in
                    if state.isOver || state.written > offset || Task.isCancelled { return true }
                    state.waiters[number] = continuation
                    return false
                }
                if isOver { continuation.resume() }
            }
        } onCancel: {
            state.withLock { $0.waiters.removeValue(forKey: number) }?.resume()
        }
    }
}
