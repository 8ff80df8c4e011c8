/// Calls into the guest from inside of its host calls.
extension RunLoop {
    /// Calls a guest function from inside a host call: it runs on the guest's stack above the import's caller.
    ///
    /// - Throws: as ``run(function:arguments:)``. Once guest code has been left half way, the guest is not entered
    ///   again in this call: its outer part ends as well, when the host function does.
    func runNested(function: UInt64, arguments: borrowing GuestValueWriter) throws {
        try thread.withCustody { try runNestedInCustody(function: function, arguments: arguments) }
    }

    private func runNestedInCustody(function: UInt64, arguments: borrowing GuestValueWriter) throws {
        let outer = (currentImport, arenaPosition)
        depth += 1
        meter.nestedCalls += 1
        defer {
            depth -= 1
            (currentImport, arenaPosition) = outer
            // The host function goes on, maybe for long.
            interruptHandle.wakeSleepers()
        }
        guard let observer, observer.isTracing else { return try enterNested(function, arguments) }
        try observer.traceNestedCall(self, function) { try enterNested(function, arguments) }
    }

    private func enterNested(_ function: UInt64, _ arguments: borrowing GuestValueWriter) throws {
        give(function, arguments)
        let reason: CallState.Reason?
        do {
            reason = try runToReturn()
        } catch {
            throw cause(of: error, interruptHandle.pendingReason)
        }
        if let reason { throw cause(of: nil, reason) }
    }

    /// The writer for a nested call's arguments, which lie behind those of the calls it is nested in.
    func nestedArgumentWriter() throws(SandboxError) -> GuestValueWriter {
        guard depth < configuration.maximumCallDepth else {
            throw SandboxError(
                .callTooDeep,
                "\(depth) nested calls are under way, and maximumCallDepth allows no more."
            )
        }
        return argumentWriter()
    }
}
