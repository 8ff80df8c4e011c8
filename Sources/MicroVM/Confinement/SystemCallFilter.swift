#if Confinement
import CSeccomp
import CShims
import Glibc
import SystemPackage

/// Makes the kernel's form of a list of rules, by libseccomp.
///
/// The form is made once and put on each thread by one system call, for which libseccomp alone would make it anew.
enum SystemCallFilter {
    /// The bytes of a filter that permits what the rules say and traps everything else.
    static func program(_ rules: [SystemCallRule]) throws(SandboxError) -> [UInt8] {
        // Freed below; nobody else has it.
        guard let context = unsafe seccomp_init(SCMP_ACT_TRAP) else {
            throw SandboxError(.confinementFailed, "libseccomp cannot make a filter.", underlyingError: Errno.noMemory)
        }
        defer { unsafe seccomp_release(context) }
        unsafe try add(SystemCallRule(SHIM_DEADLY_SYSTEM_CALL, action: .killProcess), to: context)
        for rule in rules { unsafe try add(rule, to: context) }
        // A tree over the numbers instead of a list: few steps whatever the system call is.
        let code = unsafe seccomp_attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, 2)
        guard code == 0 else { throw failure(code, "libseccomp cannot optimise a filter; it must be 2.5 or later.") }
        return unsafe try hotPath + exported(context)
    }

    private static func add(_ rule: SystemCallRule, to context: scmp_filter_ctx) throws(SandboxError) {
        let number = unsafe seccomp_syscall_resolve_name(rule.name)
        // Negative numbers are of system calls that this processor does not have.
        guard number >= 0 else {
            throw SandboxError(.invalidConfiguration, "There is no system call with the name \(rule.name).")
        }
        let arguments = rule.arguments.map { argument in
            scmp_arg_cmp(
                arg: argument.index,
                op: SCMP_CMP_MASKED_EQ,
                datum_a: argument.mask,
                datum_b: argument.value & argument.mask
            )
        }
        let code = unsafe arguments.withUnsafeBufferPointer { arguments in
            // The array is copied.
            unsafe seccomp_rule_add_array(
                context,
                rule.action.rawValue,
                number,
                UInt32(arguments.count),
                arguments.baseAddress
            )
        }
        // The same rule once more is no mistake: lists overlap.
        guard code == 0 || code == -EEXIST else { throw failure(code, "libseccomp refuses a rule for \(rule.name).") }
    }

    /// The filter's bytes, which libseccomp writes to a file.
    private static func exported(_ context: scmp_filter_ctx) throws(SandboxError) -> [UInt8] {
        let number = unsafe shim_memory_file("microvm-filter")
        guard number >= 0 else { throw failure(number, "There is no memory for a filter.") }
        let file = FileDescriptor(rawValue: number)
        defer { try? file.close() }
        let code = unsafe seccomp_export_bpf(context, number)
        guard code == 0 else { throw failure(code, "libseccomp cannot write a filter.") }
        do {
            let count = Int(try file.seek(offset: 0, from: .end))
            return unsafe try [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
                // The read is bounded by the buffer, and `filled` is what it has written.
                filled = unsafe try file.read(fromAbsoluteOffset: 0, into: UnsafeMutableRawBufferPointer(buffer))
                guard filled == count else { throw Errno.ioError }
            }
        } catch {
            throw SandboxError(.confinementFailed, "A filter cannot be read back.", underlyingError: error)
        }
    }

    /// What comes before libseccomp's part: KVM_RUN is found by four comparisons, where a list of requests would be
    /// gone through. Instructions of the kernel's `struct sock_filter`; `struct seccomp_data` has the number at 0, the
    /// architecture at 4, and the low half of the second argument, all that the kernel reads of a request, at 24.
    private static var hotPath: [UInt8] {
        let loadWord: UInt16 = 0x20
        let jumpIfEqual: UInt16 = 0x15
        let leave: UInt16 = 0x06
        let instructions: [(code: UInt16, ifFalse: UInt8, value: UInt32)] = [
            (loadWord, 0, 4), (jumpIfEqual, 5, 0xc000_003e),  // AUDIT_ARCH_X86_64
            (loadWord, 0, 0), (jumpIfEqual, 3, 16),  // ioctl
            (loadWord, 0, 24), (jumpIfEqual, 1, shim_request_run()),
            (leave, 0, UInt32(SCMP_ACT_ALLOW)),
        ]
        return instructions.flatMap { instruction in
            var bytes = [UInt8(instruction.code & 0xff), UInt8(instruction.code >> 8), 0, instruction.ifFalse]
            for shift in stride(from: UInt32(0), to: 32, by: 8) {
                bytes.append(UInt8(instruction.value >> shift & 0xff))
            }
            return bytes
        }
    }

    private static func failure(_ code: Int32, _ message: String) -> SandboxError {
        SandboxError(.confinementFailed, message, underlyingError: Errno(rawValue: -code))
    }
}
#endif
