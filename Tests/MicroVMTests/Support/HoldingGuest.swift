import Testing

@testable import MicroVM

/// What the registers hold that user code can set: the general ones but the stack pointer, MXCSR, and the vectors.
struct HeldRegisters: Equatable {
    /// rax, rbx, rcx, rdx, rsi, rdi, rbp, r8 to r15.
    var general: [UInt64]
    var mxcsr: UInt32
    /// 32 bytes each where the processor has AVX, 16 otherwise.
    var vectors: [[UInt8]]

    private init(general: [UInt64], mxcsr: UInt32, vectors: [[UInt8]]) {
        (self.general, self.mxcsr, self.vectors) = (general, mxcsr, vectors)
    }

    /// As the guest lays them out in its memory.
    init(_ bytes: [UInt8], isWide: Bool) {
        general = (0..<15).map { Self.number(bytes, at: 8 * $0, count: 8) }
        mxcsr = UInt32(Self.number(bytes, at: 120, count: 4))
        vectors = (0..<16).map { Array(bytes[(128 + 32 * $0)...].prefix(isWide ? 32 : 16)) }
    }

    /// As a sandbox's state tells them (Intel SDM volume 1, 13.4: the legacy region, the header, then AVX).
    init(_ state: SandboxState, isWide: Bool) {
        let registers = state.registers
        general = [
            registers.rax, registers.rbx, registers.rcx, registers.rdx, registers.rsi, registers.rdi, registers.rbp,
            registers.r8, registers.r9, registers.r10, registers.r11, registers.r12, registers.r13, registers.r14,
            registers.r15,
        ]
        mxcsr = UInt32(Self.number(state.extendedState, at: 24, count: 4))
        vectors = (0..<16).map { index in
            let low = state.extendedState[(160 + 16 * index)...].prefix(16)
            return Array(isWide ? low + state.extendedState[(576 + 16 * index)...].prefix(16) : low)
        }
    }

    private static func number(_ bytes: [UInt8], at offset: Int, count: Int) -> UInt64 {
        bytes[offset..<offset + count].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// The same without those in which a host call returns its result: rax, rdx and xmm0.
    var withoutResults: HeldRegisters {
        HeldRegisters(
            general: general.enumerated().filter { $0.offset != 0 && $0.offset != 3 }.map(\.element),
            mxcsr: mxcsr,
            vectors: Array(vectors.dropFirst())
        )
    }
}

/// A guest that spins with a known value in every register.
struct HoldingGuest: Sendable {
    let sandbox: Sandbox
    let known: HeldRegisters
    let call: GuestCall<Void>
    /// How often the guest has looked whether it may go on.
    let laps: SharedWord
    private let end: SharedWord

    static var isWide: Bool { get throws { try Hypervisor.shared().features.hasAVX } }

    /// Gives the guest new values, which it is to hold. All exceptions stay masked, and it rounds towards zero.
    static func prepare(_ sandbox: Sandbox) async throws -> HeldRegisters {
        try await sandbox.call("prepare", UInt64.random(in: 0...(.max)), UInt32(0x7f80), isWide)
        return HeldRegisters(try await sandbox.call("known_registers"), isWide: try isWide)
    }

    static func found(_ sandbox: Sandbox) async throws -> HeldRegisters {
        HeldRegisters(try await sandbox.call("found_registers"), isWide: try isWide)
    }

    init() async throws {
        sandbox = try await Guest.registers.sandbox([HostFunction("host_tick") { () in }])
        known = try await Self.prepare(sandbox)
        let words: UInt64 = try await sandbox.call("words_address")
        let begun = try await SharedWord(of: sandbox, at: words)
        end = try await SharedWord(of: sandbox, at: words + 8)
        laps = try await SharedWord(of: sandbox, at: words + 16)
        call = try sandbox.start("hold_registers", false)
        await waitUntil { begun.value == 1 }
    }

    /// Lets the guest go on. What was in its registers after all.
    func release() async throws -> HeldRegisters {
        end.value = 1
        try await call.result
        return try await Self.found(sandbox)
    }
}
