import Glibc
import SystemPackage
import Testing

@testable import MicroVM

extension Trait where Self == ConditionTrait {
    /// The test needs page faults to be served: without userfaultfd it is skipped, and says why.
    static var requiresUserfaultfd: Self {
        .enabled(if: reasonUserfaultfdIsMissing == nil, "\(reasonUserfaultfdIsMissing ?? "")")
    }
}

private let reasonUserfaultfdIsMissing: String? = {
    do throws(SandboxError) {
        _ = try PageFaultHandler()
        return nil
    } catch {
        return "This test needs userfaultfd. \(error.message)"
    }
}()

/// Memory of this process that is served, and accesses to it that fail without a signal.
@safe final class ServedStretch: Sendable {
    let memory: ServedMemory
    /// Unmapped in `deinit`, after the memory has been removed from its handler.
    private let mapping: Range<UInt>

    /// Before the regions of each sandbox lie `regionOffset` bytes that are not served.
    init(
        _ handler: PageFaultHandler,
        sandboxes: Int = 1,
        regions: Int = 1,
        regionSize: Int = 16 * 4096,
        regionOffset: Int = 0,
        granularity: Int = 4096
    ) throws {
        let stride = regionOffset + regions * regionSize
        let size = sandboxes * stride + granularity
        // Nobody else knows the mapping.
        let start = unsafe mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        let address = unsafe UInt(bitPattern: try #require(unsafe start != MAP_FAILED ? start : nil))
        mapping = address..<address + UInt(size)
        memory = try handler.add(
            FaultLocator(
                start: (address + UInt(granularity) - 1) / UInt(granularity) * UInt(granularity),
                sandboxCount: sandboxes,
                stride: stride,
                regionOffset: regionOffset,
                regionCount: regions,
                regionSize: regionSize,
                granularity: granularity
            )
        )
    }

    deinit {
        memory.remove()
        unmap()
    }

    /// Unmaps the memory without telling the handler.
    func unmap() { _ = unsafe munmap(UnsafeMutableRawPointer(bitPattern: mapping.lowerBound), mapping.count) }

    func address(_ offset: Int, sandbox: Int = 0, region: Int = 0) -> UInt {
        memory.locator.addresses(sandbox: sandbox, region: region).lowerBound.advanced(by: offset)
    }

    /// What the kernel reads there, at most 64 KiB.
    func read(_ count: Int, at offset: Int, sandbox: Int = 0, region: Int = 0) -> Result<[UInt8], Errno> {
        let address = address(offset, sandbox: sandbox, region: region)
        return withPipe { output, input in
            // The kernel reports what it cannot access.
            let written = unsafe Glibc.write(input, UnsafeRawPointer(bitPattern: address), count)
            guard written == count else { return .failure(written < 0 ? Errno(rawValue: errno) : .badAddress) }
            var bytes = [UInt8](repeating: 0, count: count)
            precondition(unsafe Glibc.read(output, &bytes, count) == count, "a pipe gives what it took")
            return .success(bytes)
        }
    }

    /// Has the kernel write there, at most 4 KiB.
    func write(_ bytes: [UInt8], at offset: Int, sandbox: Int = 0, region: Int = 0) -> Result<Void, Errno> {
        let address = address(offset, sandbox: sandbox, region: region)
        return withPipe { output, input in
            precondition(unsafe Glibc.write(input, bytes, bytes.count) == bytes.count, "a pipe has room")
            let read = unsafe Glibc.read(output, UnsafeMutableRawPointer(bitPattern: address), bytes.count)
            return read == bytes.count ? .success(()) : .failure(read < 0 ? Errno(rawValue: errno) : .badAddress)
        }
    }

    private func withPipe<Value>(
        _ body: (_ output: Int32, _ input: Int32) -> Result<Value, Errno>
    ) -> Result<Value, Errno> {
        var ends: [Int32] = [0, 0]
        guard unsafe pipe(&ends) == 0 else { return .failure(Errno(rawValue: errno)) }
        defer { for end in ends { close(end) } }
        return body(ends[0], ends[1])
    }
}

extension PageFailure? {
    var isNone: Bool { if case nil = self { true } else { false } }
}

extension PageFailure {
    var isOutOfBounds: Bool { if case .outOfBounds = reason { true } else { false } }
    var isAbandoned: Bool { if case .abandoned = reason { true } else { false } }
    var sourceError: (any Error)? { if case .sourceFailed(let error) = reason { error } else { nil } }
}

/// A custom source whose answers wait until a test gives them.
final class HeldSource: Sendable {
    struct Request: Sendable {
        fileprivate let number: Int
        let offset: UInt64
        let count: Int
        fileprivate let answer: @Sendable (Result<[UInt8], any Error>) -> Void
    }

    private struct State {
        var requests: [Request] = []
        var asked = 0
        var cancelled = 0
    }

    private let state = Locked(State())

    /// A source of `size` bytes. Cancellation is counted, and answered by nothing.
    func source(
        size: Int,
        granularity: PageSource.Granularity = .kibibytes4,
        readAhead: Int = 0
    ) -> PageSource {
        .custom(size: UInt64(size), granularity: granularity, readAhead: readAhead) { offset, count in
            try await withTaskCancellationHandler {
                try await handedOver { (answer: @escaping @Sendable (Result<[UInt8], any Error>) -> Void) in
                    self.state.withLock { state in
                        state.asked += 1
                        state.requests.append(
                            Request(number: state.asked, offset: offset, count: count, answer: answer)
                        )
                    }
                }.get()
            } onCancel: {
                self.state.withLock { $0.cancelled += 1 }
            }
        }
    }

    var asked: Int { state.withLock { $0.asked } }
    var cancelled: Int { state.withLock { $0.cancelled } }

    /// Waits until so many requests have come in that are not answered yet.
    func waiting(_ count: Int) async -> [Request] {
        while true {
            let requests = state.withLock { $0.requests }
            if requests.count >= count { return requests }
            await pause()
        }
    }

    func answer(_ request: Request, _ answer: Result<[UInt8], any Error>) {
        state.withLock { $0.requests.removeAll { $0.number == request.number } }
        request.answer(answer)
    }

    /// Answers every request that has not been answered.
    func answerAll(_ answer: (Request) -> Result<[UInt8], any Error>) {
        let requests = state.withLock { state in
            defer { state.requests = [] }
            return state.requests
        }
        for request in requests { request.answer(answer(request)) }
    }
}

/// A moment for other threads.
func pause() async { try? await Task.sleep(for: .milliseconds(1)) }

/// Waits until something has come about.
func until(_ condition: () -> Bool) async { while !condition() { await pause() } }

extension Resources {
    /// The threads of page fault handlers.
    static var pageThreads: Int { threads(named: "microvm-pages") }
}
