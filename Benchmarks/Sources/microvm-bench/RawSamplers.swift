import Glibc
import RawLoops
import SystemPackage

// Every sampler below gets room for `count` samples from `samples`, with a module or a machine that is never freed.

/// Plain C's parsed module, for the life of the process.
@safe
struct RawModule {
    let module: OpaquePointer

    init(path: String) throws(Errno) {
        var module: OpaquePointer?
        // The path is a C string for the length of the call, and the result is set when the call succeeds.
        try check(unsafe raw_module_load(path, &module))
        unsafe self.module = module!
    }

    func coldStart(withCPUID: Bool, count: Int) throws -> [UInt64] {
        try unsafe samples(count) { unsafe raw_cold_start(module, withCPUID, $0, count) }
    }

    func thousand(withThreads: Bool, count: Int) throws -> [UInt64] {
        try raiseDescriptorLimit()
        return try unsafe samples(count) { unsafe raw_thousand(module, withThreads, $0, count) }
    }
}

/// Plain C's machine, for the life of the process.
@safe
struct RawMachine {
    let machine: OpaquePointer

    init(module: RawModule) throws(Errno) {
        var machine: OpaquePointer?
        // The module lives as long as the process, and the result is set when the call succeeds.
        try check(unsafe raw_machine_create(module.module, &machine))
        unsafe self.machine = machine!
    }

    func guestCall(count: Int) throws -> [UInt64] {
        try unsafe samples(count) { unsafe raw_guest_call(machine, $0, count) }
    }

    func streamCalls(count: Int) throws -> [UInt64] {
        try unsafe samples(count) { unsafe raw_stream_calls(machine, $0, count) }
    }

    func guestCallHop(count: Int) throws -> [UInt64] {
        try unsafe samples(count) { unsafe raw_guest_call_hop(machine, $0, count) }
    }

    func hostCall(count: Int) throws -> [UInt64] {
        try unsafe samples(count) { unsafe raw_host_call(machine, $0, count) }
    }

    func foldCall(count: Int) throws -> [UInt64] {
        try unsafe samples(count) { unsafe raw_fold_call(machine, $0, count) }
    }

    func killLatency(count: Int) throws -> [UInt64] {
        try unsafe samples(count) { unsafe raw_kill_latency(machine, $0, count) }
    }

    func stopLatency(count: Int) throws -> [UInt64] {
        try unsafe samples(count) { unsafe raw_stop_latency(machine, $0, count) }
    }

    func continueLatency(count: Int) throws -> [UInt64] {
        try unsafe samples(count) { unsafe raw_continue_latency(machine, $0, count) }
    }
}

/// Plain C's machine for calls without an exit, for the life of the process.
@safe
struct RawHotMachine {
    let machine: OpaquePointer

    init(module: RawModule) throws(Errno) {
        var machine: OpaquePointer?
        // As in `RawMachine`.
        try check(unsafe raw_hot_machine_create(module.module, &machine))
        unsafe self.machine = machine!
    }

    func guestCall(count: Int) throws -> [UInt64] {
        try unsafe samples(count) { unsafe raw_hot_guest_call(machine, $0, count) }
    }

    func hostCall(count: Int) throws -> [UInt64] {
        try unsafe samples(count) { unsafe raw_hot_host_call(machine, $0, count) }
    }

    func foldCall(count: Int) throws -> [UInt64] {
        try unsafe samples(count) { unsafe raw_hot_fold_call(machine, $0, count) }
    }
}

/// Plain C's machine whose pages can be put back, for the life of the process.
@safe
struct RawRestorableMachine: Sendable {
    private nonisolated(unsafe) let machine: OpaquePointer

    init(module: RawModule) throws(Errno) {
        var machine: OpaquePointer?
        // As in `RawMachine`.
        try check(unsafe raw_restorable_create(module.module, &machine))
        unsafe self.machine = machine!
    }

    func guestCall(count: Int) throws -> [UInt64] {
        try unsafe samples(count) { unsafe raw_guest_call(machine, $0, count) }
    }

    func restore(pages: Int) -> Sampler {
        { count in try unsafe samples(count) { unsafe raw_restore(machine, pages, $0, count) } }
    }

    func callWithRestore(pages: Int) -> Sampler {
        { count in try unsafe samples(count) { unsafe raw_call_with_restore(machine, pages, $0, count) } }
    }

    func callWithRefault(pages: Int) -> Sampler {
        { count in try unsafe samples(count) { unsafe raw_call_with_refault(machine, pages, $0, count) } }
    }

    func takeSnapshot(pages: Int) -> Sampler {
        { count in try unsafe samples(count) { unsafe raw_snapshot(machine, pages, $0, count) } }
    }

    func lazyPage(count: Int) throws -> [UInt64] {
        try unsafe samples(count) { unsafe raw_lazy_page(machine, $0, count) }
    }

    func forkFirstCall(withCPUID: Bool) -> Sampler {
        { count in try unsafe samples(count) { unsafe raw_fork_first_call(machine, withCPUID, $0, count) } }
    }
}

/// One round trip between two sleeping threads.
func threadHandoff(count: Int) throws -> [UInt64] {
    try unsafe samples(count) { unsafe raw_thread_handoff($0, count) }
}

func check(_ error: CInt) throws(Errno) {
    if error != 0 {
        throw Errno(rawValue: error)
    }
}

// The pointer that `body` gets has room for `count` samples, and `body` fills them all or returns an error.
private func samples(_ count: Int, body: (UnsafeMutablePointer<UInt64>) -> CInt) throws -> [UInt64] {
    try unsafe [UInt64](unsafeUninitializedCapacity: count) { buffer, filled in
        try check(unsafe body(buffer.baseAddress!))
        filled = count
    }
}
