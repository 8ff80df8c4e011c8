import CShims
import Glibc
import SystemPackage

/// The imports that the library itself provides. Their names belong to it: an embedder cannot replace them.
enum LibraryFunction: String, CaseIterable {
    case abort = "microvm_abort"
    case write = "microvm_write"
    case log = "microvm_log"
    case clock = "microvm_clock"
    case random = "microvm_random"
    case heap = "microvm_heap"
    case growHeap = "microvm_heap_grow"
    case stackCheckFailed = "__stack_chk_fail"

    /// Resolved to code in the trampoline; never leaves the guest.
    static let threadLocalAddress = "__tls_get_addr"

    static func provides(_ name: String) -> Bool {
        LibraryFunction(rawValue: name) != nil || name == threadLocalAddress
    }

    /// A guest's text can be no longer than its memory, but a message that is kept should be readable.
    private static let longestAbortMessage: UInt64 = 64 << 10

    func call(_ runLoop: RunLoop, _ reader: inout GuestValueReader, _ writer: inout GuestValueWriter) throws {
        let memory = runLoop.machine.memory
        switch self {
        case .abort:
            let buffer = GuestBuffer(address: try reader.nextInteger(), count: try reader.nextInteger())
            throw Misbehaviour(.abort, message: Self.abortMessage(buffer, memory), isInHostCall: true)
        case .stackCheckFailed:
            throw Misbehaviour(.stackCorruption, isInHostCall: true)
        case .write:
            let number = Int32(truncatingIfNeeded: try reader.nextInteger())
            let stream = SandboxConfiguration.OutputStream(rawValue: number)
            let bytes = unsafe try Self.bytes(&reader, memory, .read)
            guard let stream else {
                let message = "Only streams 1 and 2 can be written."
                throw Misbehaviour(.invalidHostCall, message: message, isInHostCall: true)
            }
            unsafe Self.inPieces(bytes, runLoop) { piece in
                unsafe Self.write(UnsafeRawBufferPointer(piece), to: stream, runLoop.configuration.output)
            }
        case .log:
            try Self.log(&reader, memory, runLoop)
        case .clock:
            switch Int32(truncatingIfNeeded: try reader.nextInteger()) {
            case 0: try writer.appendInteger(MonotonicTime.nanoseconds(of: CLOCK_MONOTONIC))
            case 1: try writer.appendInteger(MonotonicTime.nanoseconds(of: CLOCK_REALTIME))
            default:
                throw Misbehaviour(.invalidHostCall, message: "Only clocks 0 and 1 exist.", isInHostCall: true)
            }
        case .random:
            try Self.fillRandomly(&reader, memory, runLoop)
        case .heap:
            try writer.appendInteger(memory.addressSpace.heap.lowerBound)
            try writer.appendInteger(memory.heapEnd - memory.addressSpace.heap.lowerBound)
        case .growHeap:
            let end = memory.heapEnd
            do throws(SandboxError) {
                try memory.growHeap(by: try reader.nextInteger())
            } catch {
                // As from any allocator: the guest finds out what to do without.
                guard error.code == .outOfMemory else { throw error }
                return try writer.appendInteger(0)
            }
            try writer.appendInteger(end)
        }
    }

    private static func bytes(
        _ reader: inout GuestValueReader,
        _ memory: GuestMemory,
        _ access: GuestModule.Permissions
    ) throws -> UnsafeMutableRawBufferPointer {
        do throws(SandboxError) {
            let address = try reader.nextInteger()
            return unsafe try memory.guestBytes(at: address, count: try reader.nextInteger(), for: access)
        } catch {
            throw InvalidHostCallArgument(error: error)
        }
    }

    /// Goes through bytes a mebibyte at a time and stops when the call shall end, which it then does: a guest can name
    /// all of its memory in one host call.
    private static func inPieces(
        _ bytes: UnsafeMutableRawBufferPointer,
        _ runLoop: RunLoop,
        _ body: (UnsafeMutableRawBufferPointer) throws -> Void
    ) rethrows {
        var rest = unsafe bytes[...]
        while unsafe !rest.isEmpty, runLoop.interruptHandle.pendingReason == nil {
            unsafe try body(UnsafeMutableRawBufferPointer(rebasing: rest.prefix(1 << 20)))
            unsafe rest = rest.dropFirst(1 << 20)
        }
    }

    /// What can be read of the message: a guest that aborts has little left that can be relied on.
    private static func abortMessage(_ buffer: GuestBuffer, _ memory: GuestMemory) -> String {
        let count = min(buffer.count, longestAbortMessage)
        guard let bytes = unsafe try? memory.guestBytes(at: buffer.address, count: count, for: .read) else {
            return "(the message is not in the guest's memory)"
        }
        return unsafe String(decoding: bytes, as: UTF8.self)
    }

    /// Takes a line for the logger. What is wrong with it is found whether anybody listens or not, and of a line that
    /// nobody wants not a byte is looked at.
    private static func log(
        _ reader: inout GuestValueReader,
        _ memory: GuestMemory,
        _ runLoop: RunLoop
    ) throws {
        guard let level = GuestLogLevel(rawValue: Int32(truncatingIfNeeded: try reader.nextInteger())) else {
            throw Misbehaviour(.invalidHostCall, message: "Only log levels 0 to 6 exist.", isInHostCall: true)
        }
        do throws(SandboxError) {
            let address = try reader.nextInteger()
            let count = try reader.nextInteger()
            try memory.check(.read, address: address, count: count)
            guard let observer = runLoop.observer, let wanted = observer.wantedLength(ofGuestLineAt: level) else {
                return
            }
            let line = try memory.load(GuestBuffer(address: address, count: min(count, UInt64(wanted))))
            observer.guestLogs(level, line, isCut: line.count < count, call: runLoop.callNumber)
        } catch {
            throw InvalidHostCallArgument(error: error)
        }
    }

    private static func write(
        _ bytes: UnsafeRawBufferPointer,
        to stream: SandboxConfiguration.OutputStream,
        _ output: SandboxConfiguration.Output
    ) {
        switch output {
        case .discard: return
        case .handler(let handler): unsafe handler(stream, Array(bytes))
        case .standardStreams:
            var rest = unsafe bytes[...]
            while unsafe !rest.isEmpty {
                let next = unsafe UnsafeRawBufferPointer(rebasing: rest)
                let written = unsafe Glibc.write(stream.rawValue, next.baseAddress, next.count)
                if written < 0, errno == EINTR { continue }
                // A closed or full stream loses the guest's output; that is no reason to end the guest.
                guard written > 0 else { return }
                unsafe rest = rest.dropFirst(written)
            }
        }
    }

    /// Fills guest memory from the kernel's generator, a piece at a time as in ``inPieces(_:_:_:)``.
    private static func fillRandomly(
        _ reader: inout GuestValueReader,
        _ memory: GuestMemory,
        _ runLoop: RunLoop
    ) throws {
        var address: UInt64
        var left: UInt64
        do throws(SandboxError) {
            address = try reader.nextInteger()
            left = try reader.nextInteger()
            try memory.check(.write, address: address, count: left)
        } catch {
            throw InvalidHostCallArgument(error: error)
        }
        while left > 0, runLoop.interruptHandle.pendingReason == nil {
            let count = min(left, 64 << 10)
            var bytes = [UInt8](repeating: 0, count: Int(count))
            unsafe try bytes.withUnsafeMutableBytes { unsafe try fill($0) }
            do throws(SandboxError) {
                try memory.store(bytes, to: GuestBuffer(address: address, count: count))
            } catch {
                throw InvalidHostCallArgument(error: error)
            }
            address += count
            left -= count
        }
    }

    /// Fills from the kernel's generator, which may give less than it is asked for.
    private static func fill(_ bytes: UnsafeMutableRawBufferPointer) throws {
        var rest = unsafe bytes[...]
        while unsafe !rest.isEmpty {
            let count = unsafe shim_random(rest.base.baseAddress! + rest.startIndex, rest.count)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else {
                let error = Errno(rawValue: errno)
                throw SandboxError(.systemCallFailed, "The kernel gives no random bytes.", underlyingError: error)
            }
            unsafe rest = rest.dropFirst(count)
        }
    }
}
