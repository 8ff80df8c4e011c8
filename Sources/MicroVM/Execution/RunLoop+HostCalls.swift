import CShims

/// What the guest asks of the host.
extension RunLoop {
    /// Goes on from a call's first host call, with the task knowing whom its host functions keep waiting: the tasks
    /// they start inherit that. Once for all host calls, and not for calls that make none.
    func runToReturnWithinChain() throws -> CallState.Reason? {
        polledCalls.mayBeInChain = true
        return try withinChain {
            try answerHostCall()
            return try runToReturn()
        }
    }

    /// Has the task know whom the host functions keep waiting that run meanwhile. Afterwards, as a rule, nobody does:
    /// unless one of them has begun a task.
    func withinChain<Result>(_ body: () throws -> Result) rethrows -> Result {
        isChainBound = true
        defer {
            isChainBound = false
            polledCalls.mayBeInChain = !isKnownUniquelyReferenced(&chain)
        }
        return try HostCallChain.$current.withValue(.extended(by: chain), operation: body)
    }

    func answerHostCall() throws {
        do {
            try carryOutHostCall()
        } catch {
            throw examined(error, isFinal: true) ?? error
        }
        machine.mailbox.giveToGuest()
    }

    private func carryOutHostCall() throws {
        let index = machine.mailbox.importIndex
        guard index < UInt64(imports.count) else {
            throw Misbehaviour(.invalidHostCall, message: "There is no import \(index).", isInHostCall: true)
        }
        switch imports[Int(index)] {
        case .hostFunction(let function):
            try measureQuickness(at: Int(index)) { try carryOut(function, at: Int(index)) }
        case .library(let function):
            try withResult(at: Int(index), in: machine.mailbox) { reader, writer in
                try function.call(self, &reader, &writer)
            }
        case .absent, .threadLocalAddress:
            throw Misbehaviour(.invalidHostCall, message: "Import \(index) is not provided.", isInHostCall: true)
        }
    }

    /// Runs a host function, on whichever thread has the baton, and leaves its result for the guest.
    func carryOut(_ function: HostFunction, at index: Int) throws {
        try inHostCall(at: index) { reader, writer in
            if let observer, observer.isTracing {
                try trace(function, &reader, &writer, observer)
            } else {
                try function.call(self, context, &reader, &writer)
            }
        }
    }

    /// The same with a host function that is there as a quick one, whose result is put down for a caller who polls.
    func carryOutQuickFunction(at index: Int) throws {
        let page = polledCalls.resultPage
        if let observer, observer.isTracing, case .hostFunction(let function) = imports[index] {
            try inHostCall(at: index, resultIn: page) { reader, writer in
                try trace(function, &reader, &writer, observer)
            }
        } else {
            // It is given no context, and so needs no number to be told from other host calls by.
            try withResult(at: index, in: page) { reader, writer in
                interruptHandle.points.reach(.enteringHostFunction)
                defer { interruptHandle.points.reach(.leftHostFunction) }
                try thread.offeringCustody { try unsafe quickFunctions[index]?.body(&reader, &writer) }
            }
        }
    }

    @inline(__always) private func inHostCall(
        at index: Int,
        resultIn page: Mailbox? = nil,
        _ body: (inout GuestValueReader, inout GuestValueWriter) throws -> Void
    ) throws {
        try withResult(at: index, in: page ?? machine.mailbox) { reader, writer in
            interruptHandle.points.reach(.enteringHostFunction)
            defer { interruptHandle.points.reach(.leftHostFunction) }
            hostCallCount &+= 1
            unsafe hostCalls.append(hostCallCount)
            defer { unsafe hostCalls.removeLast() }
            try body(&reader, &writer)
        }
    }

    /// - Parameters:
    ///   - index: the import.
    ///   - page: where the result goes, laid out like the mailbox.
    ///   - body: takes the arguments, and leaves the result.
    private func withResult(
        at index: Int,
        in page: Mailbox,
        _ body: (inout GuestValueReader, inout GuestValueWriter) throws -> Void
    ) throws {
        currentImport = index
        meter.hostCalls += 1
        var reader = GuestValueReader.arguments(mailbox: machine.mailbox, memory: machine.memory)
        var writer = GuestValueWriter.result(
            mailbox: page,
            memory: machine.memory,
            arenaPosition: arenaPosition
        )
        do {
            try body(&reader, &writer)
        } catch let invalid as InvalidHostCallArgument {
            let violation = invalid.error.underlyingError as? GuestPointerViolation
            throw Misbehaviour(
                violation == nil ? .invalidHostCall : .invalidPointer,
                address: violation?.address,
                access: violation?.access,
                message: invalid.error.message,
                isInHostCall: true
            )
        }
        // A host function that has caught the failure of its own nested call cannot undo it.
        if let firstCause { throw firstCause }
        page.setReturn()
    }

    /// Calls a host function in a span of its own.
    private func trace(
        _ function: HostFunction,
        _ reader: inout GuestValueReader,
        _ writer: inout GuestValueWriter,
        _ observer: SandboxObserver
    ) throws {
        try observer.traceHostCall(function.name) { try function.call(self, context, &reader, &writer) }
    }

    private var context: HostCallContext {
        unsafe HostCallContext(
            reference: reference,
            memory: machine.memory,
            callNumber: callNumber,
            hostCallNumber: hostCallCount
        )
    }

    /// The address of an exported function.
    func address(of name: String) throws(SandboxError) -> UInt64 {
        try machine.memory.addressSpace.imageBase + module.exportedFunction(named: name).address
    }

    /// Takes a result that the guest has left.
    func loadResult<Result>(
        _ load: (inout GuestValueReader) throws(SandboxError) -> Result
    ) throws(SandboxError) -> Result {
        var reader = resultReader()
        do throws(SandboxError) {
            return try load(&reader)
        } catch {
            throw refusalOfResult(error)
        }
    }

    /// What a call ends with that has returned something else than its caller expects.
    func refusalOfResult(_ error: SandboxError) -> SandboxError {
        var error = error
        // What a guest returns is its result, also when that is a pointer that is not its own.
        error.code = .invalidResult
        if unsafe hostCalls.isEmpty { observer?.callEnds(.failed, error) }
        return error
    }

    /// Whether a host call is under way, so that its context may be used.
    func isUnderWay(hostCall number: UInt64) -> Bool { unsafe hostCalls.contains(number) }
}
