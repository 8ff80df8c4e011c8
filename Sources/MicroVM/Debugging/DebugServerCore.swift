import CShims
import Glibc
import SystemPackage

/// What a ``DebugServer`` and its thread share.
final class DebugServerCore: Sendable {
    private struct State {
        var isClosed = false
        var thread: pthread_t?
    }

    let guest: DebuggedSandbox
    private let socket: DebugSocket
    private let event: DebugEvent
    /// Set once: a client that takes nothing of what it is sent is not waited for any more.
    private let closing: DebugEvent
    private let reference: RunLoopReference
    private let state = Locked(State())

    init(
        _ reference: RunLoopReference,
        _ symbols: DebugSymbols,
        _ socket: DebugSocket,
        holding hold: DebugServer.Hold
    ) throws(SandboxError) {
        self.reference = reference
        self.socket = socket
        let event = try DebugEvent()
        self.event = event
        closing = try DebugEvent()
        let debugger = Debugger(
            reference.interruptHandle,
            holdsCall: hold.contains(.nextCall),
            holdsFaults: hold.contains(.faults)
        ) { event.set() }
        guest = DebuggedSandbox(reference, debugger, symbols: symbols)
        try reference.debugger.withLock { current throws(SandboxError) in
            guard current == nil else { throw SandboxError(.busy, "This sandbox has a debug server already.") }
            current = debugger
        }
        // It may be held from now on.
        debugger.callAttention()
    }

    func start() throws(SandboxError) {
        let retained = unsafe Unmanaged.passRetained(self)
        // Known before the thread can look: who ends it, or itself when it ends first, lets go of it.
        let code = state.withLock { state in
            var thread = pthread_t()
            let code = Errand.run {
                unsafe shim_helper_thread_create(&thread, "microvm-debug", debugThreadMain, retained.toOpaque())
            }
            if code == 0 { state.thread = thread }
            return code
        }
        guard code == 0 else {
            unsafe retained.release()
            retire()
            throw SandboxError(
                .systemCallFailed,
                "Could not start a thread for the debug server.",
                underlyingError: Errno(rawValue: code)
            )
        }
    }

    /// Ends the thread, and waits for it; from another thread.
    func close() {
        state.withLock { $0.isClosed = true }
        closing.set()
        event.set()
        guard let thread = takeThread() else { return }
        if pthread_equal(thread, pthread_self()) != 0 { pthread_detach(thread) } else { pthread_join(thread, nil) }
    }

    private func takeThread() -> pthread_t? {
        state.withLock { state in
            defer { state.thread = nil }
            return state.thread
        }
    }

    private var isClosed: Bool { state.withLock { $0.isClosed } }

    /// Nobody debugs the sandbox any more.
    private func retire() {
        guest.debugger.close()
        reference.debugger.withLock { $0 = nil }
    }

    // MARK: - The thread

    fileprivate func main() {
        while !isClosed, !guest.debugger.isSandboxGone {
            let ready = socket.wait(for: nil, event)
            if ready.hasEvent { event.reset() }
            if ready.hasConnection, let client = socket.accept() { serve(client) }
        }
        retire()
        socket.close()
        if let thread = takeThread() { pthread_detach(thread) }
    }

    /// Serves one client until it leaves.
    private func serve(_ client: FileDescriptor) {
        guest.attach()
        defer {
            guest.debugger.detach()
            try? client.close()
        }
        var session = GDBSession(guest)
        var packets = GDBPackets()
        var last: [UInt8] = []
        func send(_ bytes: [UInt8]) -> Bool { DebugSocket.send(bytes, to: client, until: closing) }
        func send() -> Bool {
            for body in session.takeOutput() {
                last = GDBPackets.frame(body)
                guard send(packets.takeAcknowledgements() + last) else { return false }
            }
            return send(packets.takeAcknowledgements())
        }
        while true {
            // Before the news: the last may be that the sandbox has gone.
            let isClosed = isClosed
            session.tell(guest.debugger.takeNews())
            guard send(), !session.isOver, !isClosed else { return }
            let ready = socket.wait(for: client, event)
            if ready.hasEvent { event.reset() }
            guard ready.hasInput else {
                // Another debugger finds that it is not wanted; not before this one is known to have stayed.
                if ready.hasConnection, let other = socket.accept() { try? other.close() }
                continue
            }
            guard let bytes = DebugSocket.receive(from: client), packets.append(bytes) else { return }
            while !self.isClosed, let item = packets.take() {
                switch item {
                case .interrupt: session.interrupt()
                case .resend: guard send(last) else { return }
                case .packet(let packet):
                    session.handle(packet)
                    guard send(), !session.isOver else { return }
                    packets.isAcknowledging = session.isAcknowledging
                }
            }
            guard send() else { return }
        }
    }
}

/// The thread's entry point: a file-scope function, because a closure could be isolated to whoever wrote it.
private func debugThreadMain(_ argument: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    // The reference that was retained for the thread.
    if let argument = unsafe argument {
        unsafe Unmanaged<DebugServerCore>.fromOpaque(argument).takeRetainedValue().main()
    }
    return nil
}
