/// A Swift closure that a guest calls like a C function.
///
/// ```swift
/// HostFunction("price") { (article: String, count: Int32) throws -> Double in
///     try catalogue.price(of: article) * Double(count)
/// }
/// ```
///
/// The closure runs on the sandbox's own thread while the guest waits. Its parameters arrive by the C convention (see
/// ``GuestValue``); what it throws ends the guest call and reaches its caller unchanged. Text and bytes that it returns
/// lie in the argument arena, and stay valid in the guest until its next host call.
public struct HostFunction: Sendable {
    /// The import this function stands for.
    public let name: String
    let body: @Sendable (HostCallContext, inout GuestValueReader, inout GuestValueWriter) throws -> Void

    /// Makes a host function that returns a value.
    ///
    /// - Parameters:
    ///   - name: the import's name. Those of the library's own imports are refused when a sandbox is made.
    ///   - body: what the import does. What it throws ends the guest call.
    public init<each Argument: GuestValue, Result: GuestValue>(
        _ name: String,
        _ body: @escaping @Sendable (repeat each Argument) throws -> Result
    ) {
        self.name = name
        self.body = { _, reader, writer in
            let arguments = (repeat try Self.argument((each Argument).self, &reader))
            try body(repeat each arguments).store(into: &writer)
        }
    }

    /// Makes a host function that returns nothing.
    ///
    /// - Parameters:
    ///   - name: the import's name. Those of the library's own imports are refused when a sandbox is made.
    ///   - body: what the import does. What it throws ends the guest call.
    public init<each Argument: GuestValue>(
        _ name: String,
        _ body: @escaping @Sendable (repeat each Argument) throws -> Void
    ) {
        self.name = name
        self.body = { _, reader, _ in
            let arguments = (repeat try Self.argument((each Argument).self, &reader))
            try body(repeat each arguments)
        }
    }

    /// Makes a host function that uses the guest's memory and returns a value.
    ///
    /// - Parameters:
    ///   - name: the import's name. Those of the library's own imports are refused when a sandbox is made.
    ///   - body: what the import does; the context is good only until it returns. What it throws ends the guest call.
    public init<each Argument: GuestValue, Result: GuestValue>(
        _ name: String,
        _ body: @escaping @Sendable (HostCallContext, repeat each Argument) throws -> Result
    ) {
        self.name = name
        self.body = { context, reader, writer in
            let arguments = (repeat try Self.argument((each Argument).self, &reader))
            try body(context, repeat each arguments).store(into: &writer)
        }
    }

    /// Makes a host function that uses the guest's memory and returns nothing.
    ///
    /// - Parameters:
    ///   - name: the import's name. Those of the library's own imports are refused when a sandbox is made.
    ///   - body: what the import does; the context is good only until it returns. What it throws ends the guest call.
    public init<each Argument: GuestValue>(
        _ name: String,
        _ body: @escaping @Sendable (HostCallContext, repeat each Argument) throws -> Void
    ) {
        self.name = name
        self.body = { context, reader, _ in
            let arguments = (repeat try Self.argument((each Argument).self, &reader))
            try body(context, repeat each arguments)
        }
    }

    /// Takes one argument; what is wrong with it is the guest's fault, not the host function's.
    private static func argument<Value: GuestValue>(
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
struct InvalidHostCallArgument: Error {
    var error: SandboxError
}
