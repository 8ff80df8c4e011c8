import CShims
import Glibc
import SystemPackage

/// The descriptor that the kernel tells page faults through, and an event to wake the thread that waits for them.
///
/// Both are closed when the last user goes: a region lets go when it is closed, so that one whose source never answers
/// keeps nothing open.
final class FaultChannel: Sendable {
    enum Message {
        /// Somebody waits for this page of the kernel's.
        case fault(UInt)
        /// These addresses are no longer memory of this process's that is watched.
        case unmapped(Range<UInt>)
    }

    /// The kernel's pages, which protection and presence come in.
    static let pageSize = 4096

    private let descriptor: Int32
    private let event: Int32

    init() throws(SandboxError) {
        descriptor = Errand.run { shim_userfault_open() }
        guard descriptor >= 0 else { throw Self.refusal(Errno(rawValue: -descriptor)) }
        event = shim_event_open()
        guard event >= 0 else {
            close(descriptor)
            throw SandboxError(
                .systemCallFailed,
                "Could not make an event for the page fault handler.",
                underlyingError: Errno(rawValue: -event)
            )
        }
    }

    deinit {
        close(descriptor)
        close(event)
    }

    /// Why page faults cannot be served here, and what to do about it.
    static func refusal(_ error: Errno) -> SandboxError {
        let advice =
            switch error {
            case .notPermitted, .permissionDenied:
                """
                userfaultfd is not permitted to this process. Set vm.unprivileged_userfaultfd=1 with sysctl, or give \
                the process CAP_SYS_PTRACE, or read and write access to /dev/userfaultfd.
                """
            case .noFunction:
                "This kernel has no userfaultfd: it was built without CONFIG_USERFAULTFD."
            case .invalidArgument:
                "This kernel's userfaultfd is too old: Linux 4.11 or newer is needed."
            default: "Could not make a userfaultfd descriptor."
            }
        return SandboxError(.systemCallFailed, advice, underlyingError: error)
    }

    // MARK: Messages

    /// The next message, if there is one. Any thread may ask.
    func receive() -> Message? {
        while true {
            var message = shim_userfault_message()
            // The structure outlives the call.
            switch unsafe shim_userfault_read(descriptor, &message) {
            case SHIM_USERFAULT_FAULT: return .fault(UInt(message.start))
            case SHIM_USERFAULT_UNMAPPED: return .unmapped(UInt(message.start)..<UInt(message.end))
            case SHIM_USERFAULT_OTHER: continue
            default: return nil
            }
        }
    }

    /// Waits for a message or for ``notify()``, or for so many milliseconds if they are given.
    func wait(milliseconds: Int32 = -1) {
        shim_event_wait(descriptor, event, milliseconds)
        shim_event_reset(event)
    }

    /// Ends the present ``wait(milliseconds:)`` or the next.
    func notify() { shim_event_set(event) }

    // MARK: Memory

    func register(_ addresses: Range<UInt>) throws(Errno) {
        let result = shim_userfault_register(descriptor, UInt64(addresses.lowerBound), UInt64(addresses.count))
        guard result == 0 else { throw Errno(rawValue: -result) }
    }

    /// An error says that nothing was registered there.
    func unregister(_ addresses: Range<UInt>) {
        _ = shim_userfault_unregister(descriptor, UInt64(addresses.lowerBound), UInt64(addresses.count))
    }

    /// An error says that nobody can be waiting there.
    func wake(_ addresses: Range<UInt>) {
        _ = shim_userfault_wake(descriptor, UInt64(addresses.lowerBound), UInt64(addresses.count))
    }

    /// How far ``fill(_:with:)`` got.
    struct Filling {
        enum End {
            /// All pages are there.
            case complete
            /// Memory is being unmapped elsewhere: to be tried again.
            case tryAgain
            /// The kernel has no memory for them.
            case failed(Errno)
        }

        /// New bytes with content.
        var copied = 0
        /// New bytes without.
        var zeroed = 0
        var end = End.complete
    }

    /// Makes absent pages of the kernel's present, with bytes and zeros behind them, and wakes who waits for them.
    /// Pages that are there already stay as they are; pages that are unmapped or not watched are left out.
    ///
    /// - Parameters:
    ///   - addresses: whole pages.
    ///   - bytes: whole pages too.
    func fill(_ addresses: Range<UInt>, with bytes: [UInt8]) -> Filling {
        var address = addresses.lowerBound
        let copyEnd = min(addresses.upperBound, address + UInt(bytes.count))
        var filling = Filling()
        // Whether somebody may be waiting whom the kernel has not woken yet.
        var mustWake = false
        // A protected page between others makes a mapping of its own, and one request stays in one mapping.
        var isSplit = false
        while address < addresses.upperBound {
            let isCopy = address < copyEnd
            let end = isSplit ? address + UInt(Self.pageSize) : isCopy ? copyEnd : addresses.upperBound
            let count = Int(end - address)
            // The bytes outlive the call, and `end` is within them.
            let result =
                isCopy
                ? unsafe bytes.withUnsafeBytes { bytes in
                    let source = unsafe bytes.baseAddress! + Int(address - addresses.lowerBound)
                    return unsafe shim_userfault_copy(descriptor, UInt64(address), source, UInt64(count))
                }
                : shim_userfault_zero(descriptor, UInt64(address), UInt64(count))
            if result > 0 {
                if isCopy { filling.copied += Int(result) } else { filling.zeroed += Int(result) }
                address += UInt(result)
                continue
            }
            mustWake = true
            switch Errno(rawValue: CInt(-result)) {
            case .fileExists: address += UInt(Self.pageSize)
            case .noSuchFileOrDirectory where count > Self.pageSize: isSplit = true
            case .noSuchFileOrDirectory, .noSuchProcess, .invalidArgument: address += UInt(Self.pageSize)
            case .resourceTemporarilyUnavailable:
                filling.end = .tryAgain
                return filling
            case let error:
                filling.end = .failed(error)
                return filling
            }
        }
        if mustWake { wake(addresses) }
        return filling
    }
}

/// What the guest and the host may do with served memory.
enum MemoryProtection: Sendable {
    case readOnly
    case readWrite

    fileprivate var flags: Int32 { self == .readOnly ? PROT_READ : PROT_READ | PROT_WRITE }
}

/// Changes what may be done with whole pages, which must be the caller's; nil takes all permissions away.
func setProtection(_ protection: MemoryProtection?, of addresses: Range<UInt>) -> Errno? {
    // What is at these addresses is no Swift object.
    let start = unsafe UnsafeMutableRawPointer(bitPattern: addresses.lowerBound)
    return unsafe mprotect(start, addresses.count, protection?.flags ?? PROT_NONE) == 0 ? nil : Errno(rawValue: errno)
}

/// Whether a page of the kernel's is there. One that was swapped out may count as absent.
func isPresent(_ page: Range<UInt>) -> Bool {
    var status: UInt8 = 0
    // One byte for one page, which is all that is written; the page itself is not touched.
    let result = unsafe mincore(UnsafeMutableRawPointer(bitPattern: page.lowerBound), page.count, &status)
    return result == 0 && status & 1 != 0
}

/// Drops the content of whole pages, which must be the caller's: what is private to this process is absent afterwards.
func discardContent(of addresses: Range<UInt>) -> Errno? {
    let start = unsafe UnsafeMutableRawPointer(bitPattern: addresses.lowerBound)
    return unsafe madvise(start, addresses.count, MADV_DONTNEED) == 0 ? nil : Errno(rawValue: errno)
}
