import Glibc
import LinuxKVM
import Synchronization
import SystemPackage
import Testing

/// Getting out of a guest, and what is true then.
@Suite(.requiresKVM, .timeLimit(.minutes(1)))
struct InterruptionTests {
    @Test func immediateExitIsAnExitAndStaysSet() throws {
        let machine = try TestMachine.realMode([
            0xF4  // hlt
        ])
        // Safe: the virtual CPU lives to the end of the test.
        let immediateExit = unsafe machine.virtualCPU.immediateExit
        unsafe immediateExit.pointee.store(1, ordering: .relaxed)
        for _ in 0..<3 {
            let exit = try machine.virtualCPU.run()
            guard case .interrupted = exit else { throw UnexpectedExit(exit) }
            #expect(unsafe immediateExit.pointee.load(ordering: .relaxed) == 1)
        }
        let registers = try machine.virtualCPU.registers()
        #expect(registers.rip == TestMachine.codeAddress)
        unsafe immediateExit.pointee.store(0, ordering: .relaxed)
        try machine.expectHalt()
    }

    @Test func signalEndsARunWithoutAnother() throws {
        let machine = try TestMachine.realMode([
            0xEB, 0xFE,  // jmp to itself
        ])
        // With SA_RESTART, which must make no difference.
        var action = sigaction()
        unsafe action.__sigaction_handler.sa_handler = ignore
        action.sa_flags = SA_RESTART
        // Safe: the handler does nothing.
        unsafe sigaction(SIGUSR2, &action, nil)
        // Threads of the concurrency runtime block almost all signals.
        var signals = sigset_t()
        var before = sigset_t()
        unsafe sigemptyset(&signals)
        unsafe sigaddset(&signals, SIGUSR2)
        unsafe pthread_sigmask(SIG_UNBLOCK, &signals, &before)
        defer { unsafe pthread_sigmask(SIG_SETMASK, &before, nil) }

        let sender = try SignalSender(to: pthread_self(), signal: SIGUSR2)
        let exit = try machine.virtualCPU.run()
        sender.stop()
        guard case .interrupted = exit else { throw UnexpectedExit(exit) }
    }

    @Test func completingAnOutMovesTheInstructionPointerPastIt() throws {
        let machine = try TestMachine.longMode([
            0xE6, 0x10,  // out %al, $0x10
            0xF4,  // hlt
        ])
        _ = try machine.nextOut(port: 0x10)
        let exit = try machine.virtualCPU.completePendingIO()
        guard case .interrupted = exit else { throw UnexpectedExit(exit) }
        let registers = try machine.virtualCPU.registers()
        #expect(registers.rip == TestMachine.codeAddress + 2)
        // Safe: the virtual CPU is alive.
        #expect(unsafe machine.virtualCPU.immediateExit.pointee.load(ordering: .relaxed) == 0)
        try machine.expectHalt()
    }

    @Test func completingAnInPutsItsBytesIntoTheRegister() throws {
        let machine = try TestMachine.longMode([
            0xE4, 0x20,  // in $0x20, %al
            0xF4,  // hlt
        ])
        let exit = try machine.virtualCPU.run()
        guard case .ioIn(_, _, _, let bytes) = exit else { throw UnexpectedExit(exit) }
        // Safe: the virtual CPU has not run since.
        unsafe bytes.value = 0x77
        try machine.virtualCPU.completePendingIO()
        let registers = try machine.virtualCPU.registers()
        #expect(registers.rax == 0x77)
        #expect(registers.rip == TestMachine.codeAddress + 2)
    }

    @Test func completingOneHalfOfAnAccessGivesTheOther() throws {
        let machine = try TestMachine.longMode([
            0x48, 0x89, 0x04, 0x25, 0xFC, 0x0F, 0x10, 0x00,  // mov %rax, 0x100ffc
            0xF4,  // hlt
        ])
        var registers = try machine.virtualCPU.registers()
        registers.rax = 0x8877_6655_4433_2211
        try machine.virtualCPU.setRegisters(registers)
        let first = try machine.virtualCPU.run()
        // Safe: the virtual CPU has not run since; also below.
        guard case .mmioWrite(address: 0x10_0FFC, let bytes) = first, unsafe bytes.value == 0x4433_2211 else {
            throw UnexpectedExit(first)
        }
        let second = try machine.virtualCPU.completePendingIO()
        guard case .mmioWrite(address: 0x10_1000, let bytes) = second, unsafe bytes.value == 0x8877_6655 else {
            throw UnexpectedExit(second)
        }
        let third = try machine.virtualCPU.completePendingIO()
        guard case .interrupted = third else { throw UnexpectedExit(third) }
        registers = try machine.virtualCPU.registers()
        #expect(registers.rip == TestMachine.codeAddress + 8)
    }
}

private func ignore(_: CInt) {}

/// A thread that sends a signal to another again and again, until it is told to stop.
private final class SignalSender: Sendable {
    private let stopped = Atomic<Bool>(false)
    private let target: pthread_t
    private let signal: CInt
    private let thread = Mutex<pthread_t>(0)

    init(to target: pthread_t, signal: CInt) throws(Errno) {
        self.target = target
        self.signal = signal
        var thread = pthread_t()
        // Safe: the thread holds a reference of its own; it is joined before the target can end.
        let result = unsafe pthread_create(
            &thread,
            nil,
            { argument in
                let sender = unsafe Unmanaged<SignalSender>.fromOpaque(argument!).takeRetainedValue()
                while !sender.stopped.load(ordering: .acquiring) {
                    usleep(2000)
                    pthread_kill(sender.target, sender.signal)
                }
                return nil
            },
            Unmanaged.passRetained(self).toOpaque()
        )
        guard result == 0 else { throw Errno(rawValue: result) }
        self.thread.withLock { $0 = thread }
    }

    func stop() {
        stopped.store(true, ordering: .releasing)
        pthread_join(thread.withLock { $0 }, nil)
    }
}
