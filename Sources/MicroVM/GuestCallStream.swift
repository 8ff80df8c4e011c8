/// The results of one function for one set of arguments after another, in their order.
///
/// ```swift
/// let score = try sandbox.function("score", as: ((UInt64, Double) -> Double).self)
/// for try await value in score.stream(samples) { total += value }
/// ```
///
/// An entry of the guest costs many times what a small function does. A stream makes many calls with each: it takes as
/// many requests as the guest shall get at once, has all of them called, and hands out the results before it takes
/// more. So a slow reader holds up the stream, and requests may have no end. It begins with few calls at a time, and
/// goes on with more as long as those are quick.
///
/// **Each batch is one call** to everything that limits, counts or ends calls. When one ends half way, by a fault, a
/// kill, a limit, an error of a host function, or because the task is cancelled, the results of the calls before that
/// come first, and then the error. A kill between two batches finds no call: cancel the task, which ends the stream
/// whatever it is at. A snapshot that is taken in the middle of a batch goes on with the rest of it, and gives the last
/// result.
///
/// Functions whose results are not ``GuestRegisterValue``, and calls with more arguments than registers hold, are
/// called one by one.
public struct GuestCallStream<Requests: Sequence, Result: Sendable>: AsyncSequence {
    /// A result.
    public typealias Element = Result

    @usableFromInline let requests: Requests
    @usableFromInline let calls: GuestStreamCalls<Requests.Element, Result>

    @usableFromInline init(_ requests: Requests, _ calls: GuestStreamCalls<Requests.Element, Result>) {
        self.requests = requests
        self.calls = calls
    }

    /// Begins with the first request; every iteration calls all of them anew.
    @inlinable
    public func makeAsyncIterator() -> Iterator { Iterator(requests.makeIterator(), calls) }

    /// Makes the calls, as their results are asked for.
    public struct Iterator: AsyncIteratorProtocol {
        @usableFromInline var requests: Requests.Iterator
        @usableFromInline let calls: GuestStreamCalls<Requests.Element, Result>
        @usableFromInline let batch: CallBatch
        /// How many of the batch's results have been handed out.
        @usableFromInline var taken = 0
        /// A request that did not fit into the last batch.
        @usableFromInline var left: Requests.Element?
        /// What the stream ends with after the batch's results.
        @usableFromInline var failure: (any Error)?
        @usableFromInline var isOver = false

        @usableFromInline init(_ requests: Requests.Iterator, _ calls: GuestStreamCalls<Requests.Element, Result>) {
            self.requests = requests
            self.calls = calls
            batch = calls.newBatch()
        }

        /// The next call's result; nothing when all requests have been called.
        ///
        /// - Throws: as ``Sandbox/call(_:_:timeLimit:cpuTimeLimit:returning:)``; the stream is over then.
        @inlinable
        public mutating func next() async throws -> Result? { try await next(isolation: #isolation) }

        /// The next call's result; nothing when all requests have been called.
        ///
        /// - Throws: as ``next()``.
        @inlinable
        public mutating func next(isolation actor: isolated (any Actor)?) async throws -> Result? {
            while true {
                if taken < batch.doneCount {
                    var reader = batch.resultReader(taken)
                    taken += 1
                    do throws(SandboxError) {
                        return try calls.load(&reader)
                    } catch {
                        (failure, taken) = (error, batch.doneCount)
                    }
                }
                if let failure {
                    (self.failure, isOver) = (nil, true)
                    throw failure
                }
                guard !isOver else { return nil }
                guard calls.areBatched else { return try await callNext() }
                await callBatch()
            }
        }

        /// Makes a call by itself.
        @inlinable
        mutating func callNext() async throws -> Result? {
            guard let request = requests.next() else {
                isOver = true
                return nil
            }
            do {
                return try await calls.call(request)
            } catch {
                isOver = true
                throw error
            }
        }

        /// Makes the calls that come next, as many as may be at once.
        @inlinable
        mutating func callBatch() async {
            batch.removeAll()
            taken = 0
            while batch.hasRoom {
                guard let request = left ?? requests.next() else {
                    isOver = true
                    break
                }
                left = nil
                do throws(SandboxError) {
                    var writer = batch.argumentWriter()
                    try calls.store(request, &writer)
                    if !batch.add(writer) { left = request }
                } catch {
                    // As the first of the next batch it may have the room.
                    if batch.count > 0, error.code == .argumentTooLarge { left = request } else { failure = error }
                }
                if left != nil || failure != nil { break }
            }
            guard batch.count > 0 else { return }
            do { try await calls.perform(batch) } catch { failure = error }
        }
    }
}

@available(*, unavailable)
extension GuestCallStream.Iterator: Sendable {}

/// How a stream calls its function, for the types at hand.
@usableFromInline struct GuestStreamCalls<Request, Result> {
    @usableFromInline let sandbox: Sandbox
    @usableFromInline let offset: UInt64
    @usableFromInline let maximumBatch: Int
    @usableFromInline let timeLimit: Duration?
    @usableFromInline let cpuTimeLimit: Duration?
    @usableFromInline let areBatched: Bool
    @usableFromInline let store: (Request, inout GuestValueWriter) throws(SandboxError) -> Void
    @usableFromInline let load: @Sendable (inout GuestValueReader) throws(SandboxError) -> Result
    @usableFromInline let call: (Request) async throws -> Result

    @usableFromInline init(
        sandbox: Sandbox,
        offset: UInt64,
        maximumBatch: Int,
        timeLimit: Duration?,
        cpuTimeLimit: Duration?,
        areBatched: Bool,
        store: @escaping (Request, inout GuestValueWriter) throws(SandboxError) -> Void,
        load: @escaping @Sendable (inout GuestValueReader) throws(SandboxError) -> Result,
        call: @escaping (Request) async throws -> Result
    ) {
        self.sandbox = sandbox
        self.offset = offset
        self.maximumBatch = maximumBatch
        self.timeLimit = timeLimit
        self.cpuTimeLimit = cpuTimeLimit
        self.areBatched = areBatched
        self.store = store
        self.load = load
        self.call = call
    }

    @usableFromInline func newBatch() -> CallBatch { sandbox.newBatch(maximum: areBatched ? maximumBatch : 1) }

    @usableFromInline func perform(_ batch: CallBatch) async throws {
        try HostCallChain.check(sandbox.reference)
        try await sandbox.perform(offset, batch, timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit)
    }
}

extension GuestFunction where Result: Sendable {
    /// Calls the function for one set of arguments after the other, many with each entry of the guest.
    ///
    /// - Parameters:
    ///   - requests: the arguments of each call; taken as the results are asked for.
    ///   - maximumBatch: how many calls are made at once at most; at least 1. Each takes 136 bytes of the argument
    ///     arena, and all together no more than half of it; what pointers name comes on top.
    ///   - timeLimit: the wall-clock time that each batch may take; ``SandboxConfiguration/timeLimit`` unless given.
    ///   - cpuTimeLimit: the CPU time that each batch may use; ``SandboxConfiguration/cpuTimeLimit`` unless given.
    @inlinable
    public func stream<Requests: Sequence>(
        _ requests: Requests,
        maximumBatch: Int = 1024,
        timeLimit: Duration? = nil,
        cpuTimeLimit: Duration? = nil
    ) -> GuestCallStream<Requests, Result> where Requests.Element == (repeat each Argument) {
        precondition(maximumBatch >= 1, "a stream calls at least one function at a time")
        return GuestCallStream(
            requests,
            GuestStreamCalls(
                sandbox: sandbox,
                offset: offset,
                maximumBatch: maximumBatch,
                timeLimit: timeLimit,
                cpuTimeLimit: cpuTimeLimit,
                areBatched: hasRegisterResult,
                store: { request, writer throws(SandboxError) in
                    repeat try (each request).store(into: &writer)
                },
                load: load,
                call: { request in
                    try await callAsFunction(repeat each request, timeLimit: timeLimit, cpuTimeLimit: cpuTimeLimit)
                }
            )
        )
    }
}
