import CShims

/// One guest module in its own virtual machine, with its own memory and host functions.
///
/// ```swift
/// let module = try GuestModule(contentsOf: "plugin.so")
/// let sandbox = try await Sandbox(module, hostFunctions: [
///     HostFunction("log") { (text: String) in print(text) }
/// ])
/// let sum: Int = try await sandbox.call("add", 2, 3)
/// ```
///
/// The actor's executor is the virtual CPU's own thread. From elsewhere each call is an ordinary `await` and one hop;
/// code that makes many calls does so inside ``run(_:)``, where they cost no hop. While the guest runs it occupies this
/// thread alone; nothing blocks in the cooperative pool.
///
/// Isolated code runs between calls. A host function of the same sandbox that awaits such code, which can only be a
/// program's own extension of the actor or a function with an `isolated Sandbox` parameter, waits for itself for ever;
/// all that the library offers from outside throws ``SandboxError/Code/reentrantCall`` instead.
public actor Sandbox {
    nonisolated let reference: RunLoopReference
    /// Ends and holds the call under way, from any thread.
    public nonisolated var interruptHandle: LinuxInterruptHandle { reference.interruptHandle }
    /// The module this sandbox runs.
    public nonisolated let module: GuestModule
    /// The loan that this is, where a pool has lent the sandbox.
    nonisolated let loan: SandboxLoan?

    /// The virtual CPU's thread.
    public nonisolated var unownedExecutor: UnownedSerialExecutor { unsafe reference.thread.asUnownedSerialExecutor() }

    // MARK: - Making and closing

    /// Makes a sandbox and runs the module's initialisers in it.
    ///
    /// - Parameters:
    ///   - module: the module to run. It may be shared by any number of sandboxes.
    ///   - hostFunctions: what the module's imports stand for. Functions it does not import are ignored.
    ///   - configuration: memory and limits.
    ///   - beforeInitializers: called before any guest code runs, to keep the handle that can end an initialiser that
    ///     does not end by itself, or to let a debugger attach. Calls must not be awaited there.
    /// - Throws: ``SandboxError``: `.kvmUnavailable`, `.missingImports` (with the names of all of them),
    ///   `.invalidConfiguration`, `.invalidModule`, `.systemCallFailed`; what an initialiser's call ended in, or what
    ///   the closure has thrown.
    public nonisolated init(
        _ module: GuestModule,
        hostFunctions: [HostFunction] = [],
        configuration: SandboxConfiguration = SandboxConfiguration(),
        beforeInitializers: ((Sandbox) throws -> Void)? = nil
    ) async throws {
        let configuration = try configuration.validated()
        let imports = try Self.resolve(module.imports, hostFunctions)
        let image = try module.image(configuration, imports: imports.map(\.target))
        // The stack protector's canary, whose lowest byte is zero so that a string function cannot copy it.
        let canary = UInt64.random(in: 0...(.max)) << 8
        try self.init(module, image, image.memory, imports, suspendedCall: nil, configuration, canary: canary)
        try beforeInitializers?(self)
        if !module.initializers.isEmpty { try await runInitializers() }
    }

    /// Makes a sandbox that is what another one was when a snapshot of it was taken. No guest code runs.
    ///
    /// - Parameters:
    ///   - snapshot: it may be used by any number of sandboxes.
    ///   - hostFunctions: what the module's imports stand for here.
    ///   - configuration: limits and output; that of the snapshot's sandbox unless given. Its memory sizes must be the
    ///     same.
    /// - Throws: ``SandboxError``: `.missingImports`, `.incompatibleSnapshot`, `.invalidConfiguration`,
    ///   `.kvmUnavailable`, `.systemCallFailed`; `.invalidSnapshot` where the snapshot's file has been truncated.
    public nonisolated init(
        from snapshot: Snapshot,
        hostFunctions: [HostFunction] = [],
        configuration: SandboxConfiguration? = nil
    ) async throws {
        try self.init(from: snapshot, hostFunctions, configuration, in: nil)
    }

    /// - Parameter reservation: where its memory takes a place, that of a pool.
    init(
        from snapshot: Snapshot,
        _ hostFunctions: [HostFunction],
        _ configuration: SandboxConfiguration?,
        in reservation: MemoryReservation?
    ) throws(SandboxError) {
        let configuration = try configuration?.validated() ?? snapshot.configuration
        let module = snapshot.module
        let imports = try Self.resolve(module.imports, hostFunctions)
        guard imports.map({ $0.target == .absent }) == snapshot.image.absentImports,
            module.addressSpaceSizes(configuration) == snapshot.image.addressSpace.sizes
        else {
            throw SandboxError(
                .incompatibleSnapshot,
                "The snapshot is of a sandbox with other memory sizes, or another set of host functions."
            )
        }
        try self.init(
            module,
            snapshot.image,
            snapshot.memory,
            imports,
            suspendedCall: snapshot.suspendedCall,
            configuration,
            in: reservation
        )
    }

    /// Makes everything on the calling thread: only the guest itself needs its own.
    ///
    /// - Parameter canary: the stack protector's, where it is not in the contents.
    private init(
        _ module: GuestModule,
        _ image: GuestImage,
        _ contents: MemoryImage,
        _ imports: [RunLoop.Import],
        suspendedCall: SuspendedCall?,
        _ configuration: SandboxConfiguration,
        canary: UInt64? = nil,
        in reservation: MemoryReservation? = nil
    ) throws(SandboxError) {
        let hypervisor = try Hypervisor.shared()
        let platform = try hypervisor.platform()
        let signal = try InterruptSignal(offset: configuration.interruptSignalOffset)
        self.module = module
        loan = nil
        let interruptHandle = LinuxInterruptHandle(signal: signal.number, retryDelay: configuration.interruptRetryDelay)
        let memory = try GuestMemory(
            addressSpace: image.addressSpace,
            image: contents,
            reservation: reservation,
            pageFaultHandler: configuration.pageFaultHandler
        )
        // Before there is a virtual machine, which would have to be told that the page is another one now.
        if let canary { memory.storeWord(canary, at: image.addressSpace.threadPointer + 0x28) }
        let machine = try GuestMachine(hypervisor, memory: memory, platform: platform)
        // Last, so that it is just waking up when the first call arrives.
        let thread = try VirtualCPUThread.start(
            interruptHandle,
            signal: signal.number,
            niceness: configuration.niceness,
            isConfined: configuration.confinesThread
        )
        reference = RunLoopReference(
            thread: thread,
            interruptHandle: interruptHandle,
            addressSpace: image.addressSpace,
            polledCalls: PolledCalls.Owner(machine, interruptHandle, thread.baton)
        )
        reference.value = RunLoop(
            machine: machine,
            module: module,
            image: image,
            imports: imports,
            suspendedCall: suspendedCall,
            configuration: configuration,
            reference: reference
        )
        configuration.sandboxSet?.insert(self)
    }

    /// The same sandbox once more, as a pool lends it: what is reached through this ends with the loan.
    init(_ loan: SandboxLoan) {
        reference = loan.sandbox.reference
        module = loan.sandbox.module
        self.loan = loan
    }

    private func runInitializers() async throws {
        let runLoop = try openRunLoop
        let addresses = try module.initializerAddresses(in: runLoop.machine.memory)
        try await withCallCancellation { try runLoop.runInitializers(addresses) }
    }

    /// Finds the host function for each import; all that are missing are named in one error.
    private static func resolve(
        _ imports: [GuestModule.Import],
        _ hostFunctions: [HostFunction]
    ) throws(SandboxError) -> [RunLoop.Import] {
        var byName: [String: HostFunction] = [:]
        for function in hostFunctions {
            guard
                !LibraryFunction.provides(function.name),
                function.isOfLibrary || !function.name.hasPrefix("microvm_")
            else {
                throw SandboxError(
                    .invalidArgument,
                    "The name \(function.name) belongs to the library; choose another one."
                )
            }
            guard byName.updateValue(function, forKey: function.name) == nil else {
                throw SandboxError(.invalidArgument, "There are two host functions with the name \(function.name).")
            }
        }
        var missing: [String] = []
        let resolved = imports.map { needed -> RunLoop.Import in
            // There is no data to import; the module's parser has refused all but weak ones.
            if needed.kind == .object { return .absent }
            if let function = LibraryFunction(rawValue: needed.name) { return .library(function) }
            if needed.name == LibraryFunction.threadLocalAddress { return .threadLocalAddress }
            if let function = byName[needed.name] { return .hostFunction(function) }
            if !needed.isWeak { missing.append(needed.name) }
            return .absent
        }
        guard missing.isEmpty else {
            let names = missing.joined(separator: ", ")
            throw SandboxError(.missingImports, "The module needs host functions that were not given: \(names).")
        }
        return resolved
    }

    /// Gives the virtual machine and its memory back now, after the calls that came before; the thread goes with the
    /// last reference to the sandbox, and so does everything else where this is never called. Later calls throw
    /// ``SandboxError/Code/closed``. From a host function of the sandbox's own this does not wait: the sandbox closes
    /// when the call is over.
    public nonisolated func close() async {
        do throws(SandboxError) {
            try HostCallChain.check(reference)
            await closeNow()
        } catch {
            Task.detached { await self.closeNow() }
        }
    }

    private func closeNow() {
        if let loan { loan.end() } else { reference.value = nil }
    }

    deinit {
        // A sandbox that was only lent stays the pool's.
        guard loan == nil else { return }
        let reference = reference
        reference.thread.finish { reference.value = nil }
    }

    // MARK: - Isolated code

    /// Runs code on the sandbox's own thread, where its calls need no hop, and are made like those of a synchronous
    /// function until the code suspends for something else.
    ///
    /// - Parameter body: gets the sandbox, isolated to it. Other callers wait until it suspends or returns.
    /// - Throws: what `body` throws; ``SandboxError/Code/reentrantCall`` from a host function of the same sandbox.
    public nonisolated func run<Result: Sendable>(
        _ body: @Sendable (isolated Sandbox) async throws -> Result
    ) async throws -> Result {
        try HostCallChain.check(reference)
        return try await runInScope(body)
    }

    private func runInScope<Result: Sendable>(
        _ body: @Sendable (isolated Sandbox) async throws -> Result
    ) async throws -> Result {
        let scope = CancellationScope(reference)
        reference.value?.cancellationScope = scope
        defer {
            // Not the one before: that may be over by then.
            if reference.value?.cancellationScope === scope { reference.value?.cancellationScope = nil }
        }
        return try await withTaskCancellationHandler {
            try await body(self)
        } onCancel: {
            scope.cancel()
        }
    }

    /// The guest's memory, for use between two calls.
    ///
    /// - Throws: ``SandboxError/Code/closed``.
    public var memory: GuestMemory {
        get throws(SandboxError) { try openRunLoop.machine.memory }
    }

    /// Ends the call when the task that makes it is cancelled. The handler cannot outlive the operation, so it never
    /// hits a later call.
    @inline(__always) func withCallCancellation(_ operation: () throws -> Void) async throws {
        try await withTaskCancellationHandler {
            // Only a closure that captures the actor is isolated to it; another would run in the cooperative pool.
            reference.value?.assertOnThread()
            try operation()
        } onCancel: {
            interruptHandle.cancelForTask()
        }
    }

    /// The run loop, for code that runs on the sandbox's own thread.
    nonisolated var openRunLoop: RunLoop {
        get throws(SandboxError) {
            guard let runLoop = reference.value else { throw SandboxError(.closed, "This sandbox has been closed.") }
            try loan?.check()
            return runLoop
        }
    }
}
