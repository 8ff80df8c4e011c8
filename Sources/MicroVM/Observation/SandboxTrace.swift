#if Tracing
import Tracing

/// The spans of a sandbox's calls: one for each guest call, below it one for each host function, below that one for
/// each nested call.
///
/// A host function runs with its span as the current one, and so do the tasks that it starts. A guest's own span is
/// nobody's current one: no code of the host's runs in it but host functions.
final class SandboxTrace {
    private let tracer: any Tracer
    private let sandbox, module: String
    /// Those of the guest calls under way, the innermost last.
    private var calls: [any Span] = []

    /// Nothing where there is no tracer.
    init?(_ configuration: SandboxConfiguration, sandbox: String, module: String) {
        guard let tracer = configuration.tracer else { return nil }
        self.tracer = tracer
        self.sandbox = sandbox
        self.module = module
    }

    func beginCall(_ function: String) { beginGuestCall(function) }

    func endCall(
        _ number: UInt64,
        _ outcome: CallOutcome,
        _ error: (any Error)?,
        _ meter: CallMeter
    ) {
        guard let span = calls.popLast() else { return }
        span.updateAttributes { attributes in
            attributes["microvm.call"] = Int64(clamping: number)
            attributes["microvm.outcome"] = outcome.name
            if case .faulted(let fault) = outcome { attributes["microvm.fault"] = fault.kind.rawValue }
            attributes["microvm.exits"] = Int64(clamping: meter.exits)
            attributes["microvm.host_calls"] = Int64(clamping: meter.hostCalls)
        }
        Self.end(span, error, outcome.name)
    }

    func beginNestedCall(_ function: String) { beginGuestCall(function) }

    func endNestedCall(_ error: (any Error)?) {
        guard let span = calls.popLast() else { return }
        span.attributes["microvm.outcome"] = error == nil ? "returned" : "failed"
        Self.end(span, error, "failed")
    }

    private func beginGuestCall(_ function: String) {
        let span: any Span = tracer.startSpan("guest call \(function)", context: .current ?? .topLevel)
        describe(span, function)
        calls.append(span)
    }

    func beginHostCall(_ name: String) -> any Span {
        let name = HarmlessText.name(name)
        let context = calls.last?.context ?? .current ?? .topLevel
        let span: any Span = tracer.startSpan("host call \(name)", context: context)
        describe(span, name)
        return span
    }

    private func describe(_ span: any Span, _ function: String) {
        span.updateAttributes { attributes in
            attributes["microvm.module"] = module
            attributes["microvm.sandbox"] = sandbox
            attributes["microvm.function"] = function
        }
    }

    /// Runs a host function in its span, and ends that.
    static func withSpan(_ span: (any Span)?, _ body: () throws -> Void) throws {
        guard let span else { return try body() }
        do {
            try ServiceContext.$current.withValue(span.context, operation: body)
            end(span, nil, "")
        } catch {
            end(span, error, "failed")
            throw error
        }
    }

    private static func end(_ span: any Span, _ error: (any Error)?, _ message: String) {
        if let error {
            span.recordError(error)
            span.setStatus(SpanStatus(code: .error, message: message))
        }
        span.end()
    }

    func inContext(_ body: () -> Void) {
        ServiceContext.$current.withValue(calls.last?.context ?? .current, operation: body)
    }
}

/// The context that a task's spans begin in, to be carried to another thread.
struct TraceContext: Sendable {
    private let context = ServiceContext.current

    static var current: TraceContext { TraceContext() }

    func bound<Result>(_ body: () throws -> Result) rethrows -> Result {
        try ServiceContext.$current.withValue(context, operation: body)
    }
}
#else
/// The spans of a sandbox's calls: none without the trait Tracing.
final class SandboxTrace {
    init?(_ configuration: SandboxConfiguration, sandbox: String, module: String) { nil }

    func beginCall(_ function: String) {}
    func endCall(_ number: UInt64, _ outcome: CallOutcome, _ error: (any Error)?, _ meter: CallMeter) {}
    func beginNestedCall(_ function: String) {}
    func endNestedCall(_ error: (any Error)?) {}
    func beginHostCall(_ name: String) {}
    static func withSpan(_ span: Void?, _ body: () throws -> Void) throws { try body() }
    func inContext(_ body: () -> Void) { body() }
}

/// The context that a task's spans begin in: none without the trait Tracing.
struct TraceContext: Sendable {
    static var current: TraceContext { TraceContext() }

    func bound<Result>(_ body: () throws -> Result) rethrows -> Result { try body() }
}
#endif
