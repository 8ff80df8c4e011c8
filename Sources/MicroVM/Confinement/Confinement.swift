#if Confinement
import CSeccomp
import CShims
import Glibc
import SystemPackage

/// Leaves this process with as few rights as it needs, once everything is open that it needs.
///
/// ```swift
/// let pool = try await SandboxPool(module, size: 4...16)
/// let listener = try listen()
/// try Confinement.apply { $0.permissions = [.makeSandboxes] }
/// ```
///
/// A guest that breaks out of its virtual machine has the rights of the process. After this it has no capability, can
/// gain none by running a program, and every thread makes only the system calls that its role needs: the threads of
/// virtual CPUs, the thread that serves page faults, and all others. Anything else is a violation, which is reported
/// and ends the process or the guest call (``Configuration/violations``).
///
/// Nothing of it can be undone, and all of it holds for programs that the process runs. The article Confining processes
/// has the lists.
public enum Confinement {
    private static let isApplied = Locked(false)

    /// Confines the process, all of its threads at once.
    ///
    /// Call it once, when all has been opened that ``Configuration/permissions`` does not cover: files, sockets,
    /// terminals. What the library itself needs for its guests (`/dev/kvm` among it) is opened here, if it is not open
    /// yet.
    ///
    /// - Parameter configure: changes the configuration before it is applied.
    /// - Returns: what is in force now.
    /// - Throws: ``SandboxError``: `.invalidConfiguration`; `.kvmUnavailable` where sandboxes shall be made and cannot
    ///   be; `.confinementFailed`, after which some of it may be in force: what cannot be confined had better end.
    @discardableResult
    public static func apply(_ configure: (inout Configuration) -> Void = { _ in }) throws(SandboxError) -> State {
        var configuration = Configuration()
        configure(&configuration)
        return try apply(configuration)
    }

    /// Confines the process, all of its threads at once, by a configuration that is ready.
    ///
    /// - Throws: as where it is changed by a closure.
    @discardableResult
    public static func apply(_ configuration: Configuration) throws(SandboxError) -> State {
        try configuration.validate()
        try isApplied.withLock { isApplied throws(SandboxError) in
            guard !isApplied else {
                throw SandboxError(.confinementFailed, "This process has been confined already, which is for good.")
            }
            try applyLocked(configuration)
            isApplied = true
        }
        return .current()
    }

    private static func applyLocked(_ configuration: Configuration) throws(SandboxError) {
        // First everything that can fail without harm, and all that the confined process could not do any more.
        if configuration.permissions.contains(.makeSandboxes) { _ = try Hypervisor.shared().platform() }
        _ = shim_pagemap()
        let filters = configuration.filtersSystemCalls ? try Filters(configuration) : nil
        if filters != nil {
            shim_userfault_confine(configuration.permissions.contains(.makeSandboxes))
            try installHandler(configuration)
            try check(shim_errands_start(), "The thread that does errands for confined ones cannot be begun.")
        }
        for (resource, limit) in configuration.limits.values { try Limits.set(resource, to: limit) }
        var thread: Int32 = 0
        // `thread` outlives the call.
        let code = unsafe shim_give_up_privileges(
            configuration.dropsCapabilities,
            configuration.forbidsNewPrivileges,
            &thread
        )
        try check(code, "Thread \(thread) of this process cannot give up its privileges.")
        guard let filters else { return }
        try filters.install()
    }

    private static func installHandler(_ configuration: Configuration) throws(SandboxError) {
        let names = unsafe (0..<Int32(512)).map { number -> UnsafeMutablePointer<CChar>? in
            // A string of the caller's, or null.
            unsafe seccomp_syscall_resolve_num_arch(seccomp_arch_native(), number)
        }
        defer { unsafe names.forEach { unsafe free($0) } }
        let code = unsafe names.map { unsafe UnsafePointer($0) }.withUnsafeBufferPointer { names in
            // The names are copied.
            unsafe shim_violations_install(
                configuration.reportDescriptor,
                configuration.violations == .endCall,
                names.baseAddress!,
                names.count
            )
        }
        try check(code, "The handler of violations cannot be installed.")
    }

    /// The filters of all roles, in the kernel's form.
    private struct Filters {
        var process: [UInt8]
        var virtualCPU: [UInt8]?
        var pageFaults: [UInt8]

        init(_ configuration: Configuration) throws(SandboxError) {
            let known = configuration.additionalSystemCalls.map { SystemCallRule($0) }
            process = try SystemCallFilter.program(
                SystemCallRule.process(configuration.permissions) + known
            )
            virtualCPU =
                configuration.filtersVirtualCPUThreads
                ? try SystemCallFilter.program(SystemCallRule.virtualCPU) : nil
            pageFaults = try SystemCallFilter.program(SystemCallRule.pageFaults)
        }

        func install() throws(SandboxError) {
            var thread: Int32 = 0
            let code = unsafe process.withUnsafeBytes { bytes in
                // Both outlive the call.
                unsafe shim_filter_process(bytes.baseAddress!, bytes.count, &thread)
            }
            guard thread == 0 else {
                throw SandboxError(
                    .confinementFailed,
                    "Thread \(thread) of this process has a filter of system calls that the others do not have."
                )
            }
            try check(code, "The kernel does not take the filter of system calls; it needs CONFIG_SECCOMP_FILTER.")
            // Only now: a thread that had its own already could not take the process's any more.
            try set(SHIM_ROLE_PAGE_FAULTS, pageFaults)
            if let virtualCPU { try set(SHIM_ROLE_VIRTUAL_CPU, virtualCPU) }
        }

        private func set(_ role: Int32, _ program: [UInt8]) throws(SandboxError) {
            let code = unsafe program.withUnsafeBytes { bytes in
                // The bytes are copied.
                unsafe shim_filter_set(role, bytes.baseAddress!, bytes.count)
            }
            try check(code, "There is no memory for a filter of system calls.")
        }
    }
}

/// What a shim has returned: 0, or an error number.
private func check(_ code: Int32, _ message: @autoclosure () -> String) throws(SandboxError) {
    guard code != 0 else { return }
    throw SandboxError(.confinementFailed, message(), underlyingError: Errno(rawValue: code))
}
#endif
