import Glibc
import Synchronization
import Testing

@testable import MicroVM

private let ownHandlerCalls = Atomic<Int>(0)

private func ownHandler(_ signal: Int32, _: UnsafeMutablePointer<siginfo_t>?, _: UnsafeMutableRawPointer?) {
    ownHandlerCalls.add(1, ordering: .sequentiallyConsistent)
}

private func plainHandler(_ signal: Int32) { ownHandlerCalls.add(1, ordering: .sequentiallyConsistent) }

/// The signal that kicks is shared with whoever used it before. Each test has a process of its own, because handlers
/// belong to processes.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct SignalTests {
    private static func install(offset: Int32, withInformation: Bool) -> Int32 {
        let signal = __libc_current_sigrtmin() + offset
        // Before any signal can arrive: a lazy global must not be made in a handler.
        _ = ownHandlerCalls.load(ordering: .sequentiallyConsistent)
        var action = sigaction()
        if withInformation {
            unsafe action.__sigaction_handler.sa_sigaction = ownHandler
            action.sa_flags = SA_SIGINFO
        } else {
            unsafe action.__sigaction_handler.sa_handler = plainHandler
        }
        // The structure outlives the call.
        let code = unsafe sigaction(signal, &action, nil)
        precondition(code == 0)
        return signal
    }

    private static var calls: Int { ownHandlerCalls.load(ordering: .sequentiallyConsistent) }

    /// Sends a signal to a thread that lets it through; those of the cooperative pool do not.
    private static func raiseOnThread(_ signal: Int32) async {
        await onThread {
            var signals = sigset_t()
            // The set outlives the calls, and nobody asks for the old one.
            unsafe sigemptyset(&signals)
            unsafe sigaddset(&signals, signal)
            unsafe pthread_sigmask(SIG_UNBLOCK, &signals, nil)
            pthread_kill(pthread_self(), signal)
        }
    }

    @Test func `an earlier handler gets every signal that is not the library's`() async {
        await #expect(processExitsWith: .success) {
            let signal = Self.install(offset: 5, withInformation: true)
            let guest = try await SpinningGuest { $0.interruptSignalOffset = 5 }
            await Self.raiseOnThread(signal)
            #expect(Self.calls == 1)
            // The kick is the library's own affair.
            #expect(await onThread { guest.handle.kill() } == .signalled)
            #expect(await guest.call.value?.code == .killed)
            #expect(Self.calls == 1)
            // So is a timer's signal.
            let limited = try await Guest.spin.sandbox { $0.interruptSignalOffset = 5 }
            let error = await #expect(throws: SandboxError.self) {
                try await limited.call("spin", timeLimit: .milliseconds(5))
            }
            #expect(error?.code == .timeLimitExceeded && Self.calls == 1)
        }
    }

    @Test func `a handler without information is chained too`() async {
        await #expect(processExitsWith: .success) {
            let signal = Self.install(offset: 6, withInformation: false)
            let sandbox = try await Guest.spin.sandbox { $0.interruptSignalOffset = 6 }
            await Self.raiseOnThread(signal)
            #expect(Self.calls == 1)
            #expect(try await sandbox.call("answer") == 42)
        }
    }

    @Test func `a signal without handler does nothing once the library has one`() async {
        await #expect(processExitsWith: .success) {
            let sandbox = try await Guest.spin.sandbox { $0.interruptSignalOffset = 7 }
            await Self.raiseOnThread(__libc_current_sigrtmin() + 7)
            #expect(try await sandbox.call("answer") == 42)
        }
    }

    @Test func `a foreign signal on the virtual CPU's thread disturbs no call`() async {
        await #expect(processExitsWith: .success) {
            let signal = Self.install(offset: 8, withInformation: true)
            let sandbox = try await Guest.spin.sandbox { $0.interruptSignalOffset = 8 }
            // The thread lives as long as its sandbox.
            let thread = UInt(bitPattern: try await sandbox.run { _ in Int(bitPattern: UInt(pthread_self())) })
            let guest = try await SpinningGuest(in: sandbox)
            for number in 1...50 {
                // What KVM_RUN is interrupted by without anybody having asked for it.
                await onThread { _ = pthread_kill(pthread_t(thread), signal) }
                await waitUntil { Self.calls == number }
            }
            // The guest is in its spin all the same, until it is killed.
            #expect(await onThread { guest.handle.kill() } == .signalled)
            #expect(await guest.call.value?.code == .killed)
            #expect(guest.handle.spuriousKicks > 0)
        }
    }

    @Test func `two sandboxes may have two signals`() async throws {
        let first = try await SpinningGuest { $0.interruptSignalOffset = 1 }
        let second = try await SpinningGuest { $0.interruptSignalOffset = 2 }
        #expect(await onThread { first.handle.kill() } == .signalled)
        #expect(await first.call.value?.code == .killed)
        #expect(await onThread { second.handle.kill() } == .signalled)
        #expect(await second.call.value?.code == .killed)
    }
}
