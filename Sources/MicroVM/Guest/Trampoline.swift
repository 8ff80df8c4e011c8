import CShims

/// The ring-3 code that carries calls in and out: one page of trampoline, and a thunk for each import.
enum Trampoline {
    /// Where a virtual CPU begins.
    static let entry = UInt64(SHIM_TRAMPOLINE)

    /// The address of an import's thunk.
    static func thunk(_ index: Int) -> UInt64 { UInt64(SHIM_THUNKS) + UInt64(index) * UInt64(SHIM_THUNK_SIZE) }

    /// The code that calls a function of the guest.
    static var invoke: UInt64 { entry + shim_invoke_offset() }

    /// The code that all thunks jump to; from ``reset`` on there is only what the host begins at.
    static var hostCall: UInt64 { entry + shim_host_call_offset() }
    static var reset: UInt64 { entry + shim_reset_offset(false) }
    static var end: UInt64 { unsafe entry + UInt64(shim_trampoline_code().count) }

    /// The addresses of the library's code in ring 3.
    static func pages(importCount: Int) -> Range<UInt64> {
        entry..<thunk(max(importCount, 1)).roundedUp(to: AddressSpace.pageSize)
    }

    /// `__tls_get_addr`, which needs no host.
    static var threadLocalAddress: UInt64 { entry + shim_thread_local_address_offset() }

    /// The instruction that ends a guest call.
    static var returnInstruction: UInt64 { entry + shim_return_offset() }

    /// How the extended state (x87, vectors, and whatever else XSAVE knows) is saved and loaded.
    enum ExtendedState: Sendable {
        case xsave
        /// FXSAVE: x87 and SSE are all there is.
        case legacy

        /// Where a virtual CPU begins after a restore: with no extended state, then as at ``Trampoline/entry``.
        var reset: UInt64 { Trampoline.entry + shim_reset_offset(self == .legacy) }
        /// Stores the extended state at ``AddressSpace/vectorState`` and leaves through the port of a return.
        var save: UInt64 { Trampoline.entry + shim_save_offset(self == .legacy) }
        /// Loads it from there, and leaves.
        var load: UInt64 { Trampoline.entry + shim_load_offset(self == .legacy) }
    }

    /// Writes the trampoline and the thunks. They are never written again, by anybody.
    static func install(in memory: ImageWriter, addressSpace: AddressSpace, importCount: Int) {
        unsafe memory.store(shim_trampoline_code(), at: entry)
        memory.storeWord(addressSpace.stack.upperBound, at: entry + shim_stack_top_offset())
        for index in 0..<importCount {
            // mov $index, %eax; jmp hostCall; int3 for the rest.
            let thunk = thunk(index)
            let distance = UInt64(UInt32(truncatingIfNeeded: hostCall &- (thunk + 10)))
            memory.storeWord(0xb8 | UInt64(UInt32(index)) << 8 | 0xe9 << 40 | distance << 48, at: thunk)
            memory.storeWord(distance >> 16 | 0xcccc_cccc_cccc << 16, at: thunk + 8)
        }
    }
}
