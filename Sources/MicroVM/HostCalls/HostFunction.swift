/// A Swift closure that a guest calls like a C function.
///
/// ```swift
/// HostFunction("price") { (article: String, count: Int32) throws -> Double in
///     try catalogue.price(of: article) * Double(count)
/// }
/// ```
///
/// A synchronous closure runs on the sandbox's own thread while the guest waits; or, where it takes no context and has
/// been seen to be quick, on the thread of a caller who polls for the guest (``PollingPolicy``). An asynchronous one
/// runs on the concurrency pool, in a task that inherits the priority and the task-local values of the guest call's,
/// and that is cancelled when the call shall end; the sandbox's thread waits for it meanwhile.
///
/// Parameters arrive by the C convention (see ``GuestValue``); what the closure throws ends the guest call and reaches
/// its caller unchanged, unless the call was to end for another reason before. Text and bytes that it returns lie in
/// the argument arena, and stay valid in the guest until its next host call.
///
/// A host function calls back into the guest through its ``HostCallContext``. A call of the ``Sandbox`` itself would
/// wait for its own end, and throws ``SandboxError/Code/reentrantCall``, also from the tasks a host function starts.
public struct HostFunction: Sendable {
    /// Stores what an asynchronous host function has returned, on the sandbox's thread.
    typealias Completion = @Sendable (inout GuestValueWriter) throws -> Void

    /// Needs nothing of the sandbox's thread, so that any other may run it.
    typealias PlainBody = @Sendable (inout GuestValueReader, inout GuestValueWriter) throws -> Void

    private enum Body {
        case plain(PlainBody)
        case synchronous(@Sendable (HostCallContext, inout GuestValueReader, inout GuestValueWriter) throws -> Void)
        /// Takes the arguments at once, and answers with what is to be awaited.
        case asynchronous(
            @Sendable (HostCallContext, inout GuestValueReader) throws -> @Sendable () async throws -> Completion
        )
    }

    /// The import this function stands for.
    public let name: String
    private let body: Body
    /// Whether it is one of this package's own, which may have a name that belongs to the library.
    private(set) var isOfLibrary = false

    /// What the import does, where that is plain.
    var plainBody: PlainBody? {
        if case .plain(let body) = body { body } else { nil }
    }

    /// The same function for an import whose name belongs to the library.
    package var ofLibrary: HostFunction {
        var copy = self
        copy.isOfLibrary = true
        return copy
    }

    func call(
        _ runLoop: RunLoop,
        _ context: HostCallContext,
        _ reader: inout GuestValueReader,
        _ writer: inout GuestValueWriter
    ) throws {
        switch body {
        case .plain(let body): try runLoop.thread.offeringCustody { try body(&reader, &writer) }
        case .synchronous(let body): try runLoop.thread.offeringCustody { try body(context, &reader, &writer) }
        case .asynchronous(let body): try runLoop.await(body(context, &reader))(&writer)
        }
    }

    // The synchronous ones are put together in the client, for the types at hand: a pack costs a look-up of its tuple's
    // type each time.

    @usableFromInline init(
        plain name: String,
        _ body: @escaping @Sendable (inout GuestValueReader, inout GuestValueWriter) throws -> Void
    ) {
        self.name = name
        self.body = .plain(body)
    }

    @usableFromInline init(
        synchronous name: String,
        _ body: @escaping @Sendable (HostCallContext, inout GuestValueReader, inout GuestValueWriter) throws -> Void
    ) {
        self.name = name
        self.body = .synchronous(body)
    }

    /// Makes a host function that returns a value.
    ///
    /// - Parameters:
    ///   - name: the import's name. Those of the library's own imports are refused when a sandbox is made.
    ///   - body: what the import does. What it throws ends the guest call.
    @inlinable
    public init<each Argument: GuestValue, Result: GuestValue>(
        _ name: String,
        _ body: @escaping @Sendable (repeat each Argument) throws -> Result
    ) {
        self.init(plain: name) { reader, writer in
            let arguments = (repeat try Self.argument((each Argument).self, &reader))
            try body(repeat each arguments).store(into: &writer)
        }
    }

    /// Makes a host function that returns nothing.
    ///
    /// - Parameters:
    ///   - name: the import's name. Those of the library's own imports are refused when a sandbox is made.
    ///   - body: what the import does. What it throws ends the guest call.
    @inlinable
    public init<each Argument: GuestValue>(
        _ name: String,
        _ body: @escaping @Sendable (repeat each Argument) throws -> Void
    ) {
        self.init(plain: name) { reader, _ in
            let arguments = (repeat try Self.argument((each Argument).self, &reader))
            try body(repeat each arguments)
        }
    }

    /// Makes a host function that uses the guest's memory and returns a value.
    ///
    /// - Parameters:
    ///   - name: the import's name. Those of the library's own imports are refused when a sandbox is made.
    ///   - body: what the import does; the context is good only until it returns. What it throws ends the guest call.
    @inlinable
    public init<each Argument: GuestValue, Result: GuestValue>(
        _ name: String,
        _ body: @escaping @Sendable (HostCallContext, repeat each Argument) throws -> Result
    ) {
        self.init(synchronous: name) { context, reader, writer in
            let arguments = (repeat try Self.argument((each Argument).self, &reader))
            try body(context, repeat each arguments).store(into: &writer)
        }
    }

    /// Makes a host function that uses the guest's memory and returns nothing.
    ///
    /// - Parameters:
    ///   - name: the import's name. Those of the library's own imports are refused when a sandbox is made.
    ///   - body: what the import does; the context is good only until it returns. What it throws ends the guest call.
    @inlinable
    public init<each Argument: GuestValue>(
        _ name: String,
        _ body: @escaping @Sendable (HostCallContext, repeat each Argument) throws -> Void
    ) {
        self.init(synchronous: name) { context, reader, _ in
            let arguments = (repeat try Self.argument((each Argument).self, &reader))
            try body(context, repeat each arguments)
        }
    }

    // The asynchronous ones are @concurrent, which is where they run. Without that a client whose closures are
    // nonisolated(nonsending) by default crashes its compiler (Swift 6.3.1): packs and an implicit isolation.

    /// Makes an asynchronous host function that returns a value.
    ///
    /// - Parameters:
    ///   - name: the import's name. Those of the library's own imports are refused when a sandbox is made.
    ///   - body: what the import does. What it throws ends the guest call.
    public init<each Argument: GuestValue, Result: GuestValue>(
        _ name: String,
        _ body: @escaping @concurrent @Sendable (repeat each Argument) async throws -> Result
    ) {
        self.name = name
        self.body = .asynchronous { _, reader in
            let arguments = (repeat try Self.argument((each Argument).self, &reader))
            return {
                let result = try await body(repeat each arguments)
                return { writer in try result.store(into: &writer) }
            }
        }
    }

    /// Makes an asynchronous host function that returns nothing.
    ///
    /// - Parameters:
    ///   - name: the import's name. Those of the library's own imports are refused when a sandbox is made.
    ///   - body: what the import does. What it throws ends the guest call.
    public init<each Argument: GuestValue>(
        _ name: String,
        _ body: @escaping @concurrent @Sendable (repeat each Argument) async throws -> Void
    ) {
        self.name = name
        self.body = .asynchronous { _, reader in
            let arguments = (repeat try Self.argument((each Argument).self, &reader))
            return {
                try await body(repeat each arguments)
                return { _ in }
            }
        }
    }

    /// Makes an asynchronous host function that uses the guest's memory and returns a value.
    ///
    /// - Parameters:
    ///   - name: the import's name. Those of the library's own imports are refused when a sandbox is made.
    ///   - body: what the import does; the context is good only until it returns. What it throws ends the guest call.
    public init<each Argument: GuestValue, Result: GuestValue>(
        _ name: String,
        _ body: @escaping @concurrent @Sendable (HostCallContext, repeat each Argument) async throws -> Result
    ) {
        self.name = name
        self.body = .asynchronous { context, reader in
            let arguments = (repeat try Self.argument((each Argument).self, &reader))
            return {
                let result = try await body(context, repeat each arguments)
                return { writer in try result.store(into: &writer) }
            }
        }
    }

    /// Makes an asynchronous host function that uses the guest's memory and returns nothing.
    ///
    /// - Parameters:
    ///   - name: the import's name. Those of the library's own imports are refused when a sandbox is made.
    ///   - body: what the import does; the context is good only until it returns. What it throws ends the guest call.
    public init<each Argument: GuestValue>(
        _ name: String,
        _ body: @escaping @concurrent @Sendable (HostCallContext, repeat each Argument) async throws -> Void
    ) {
        self.name = name
        self.body = .asynchronous { context, reader in
            let arguments = (repeat try Self.argument((each Argument).self, &reader))
            return {
                try await body(context, repeat each arguments)
                return { _ in }
            }
        }
    }

    /// Takes one argument; what is wrong with it is the guest's fault, not the host function's.
    @usableFromInline static func argument<Value: GuestValue>(
        _ type: Value.Type,
        _ reader: inout GuestValueReader
    ) throws(InvalidHostCallArgument) -> Value {
        do throws(SandboxError) {
            return try Value.load(from: &reader)
        } catch {
            throw InvalidHostCallArgument(error: error)
        }
    }
}

/// The guest called a host function with something that is not of its parameter's type.
@usableFromInline struct InvalidHostCallArgument: Error {
    var error: SandboxError
}
