import SystemPackage
import Testing

@testable import MicroVM

/// A core dump as this library writes them, read without any debugger (`<sys/procfs.h>`).
struct CoreFile {
    private let path: FilePath
    private let contents: [UInt8]
    /// NT_PRSTATUS, and NT_FPREGSET.
    private var status: [UInt8] = []
    private var vectorState: [UInt8] = []

    init(_ path: FilePath) throws {
        self.path = path
        // Headers and notes; the rest is large.
        contents = try Self.read(path, 0, 1 << 16)
        let notes = Self.number(contents, 64 + 8, 8)
        var position = notes
        while position < notes + Self.number(contents, 64 + 32, 8) {
            let (name, size) = (Self.number(contents, position, 4), Self.number(contents, position + 4, 4))
            let start = position + 12 + (name + 3) & ~3
            let note = Array(contents[start..<start + size])
            switch Self.number(contents, position + 8, 4) {
            case 1: status = note
            case 2: vectorState = note
            default: break
            }
            position = start + (size + 3) & ~3
        }
        try #require(status.count == 336 && vectorState.count == 512)
    }

    private static func read(_ path: FilePath, _ offset: Int, _ count: Int) throws -> [UInt8] {
        let file = try FileDescriptor.open(path, .readOnly)
        defer { try? file.close() }
        return unsafe try [UInt8](unsafeUninitializedCapacity: count) { buffer, read in
            // As long as is said.
            let bytes = UnsafeMutableRawBufferPointer(buffer)
            read = unsafe try file.read(fromAbsoluteOffset: Int64(offset), into: bytes)
        }
    }

    private static func number(_ bytes: [UInt8], _ offset: Int, _ count: Int) -> Int {
        Int(truncatingIfNeeded: bytes[offset..<offset + count].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) })
    }

    private func word(_ index: Int) -> UInt64 { UInt64(bitPattern: Int64(Self.number(status, 112 + 8 * index, 8))) }

    var signal: Int32 { Int32(Self.number(status, 0, 4)) }
    var selectors: [UInt64] { [word(17), word(20)] }
    var fsBase: UInt64 { word(21) }
    var vectors: [[UInt8]] { (0..<16).map { Array(vectorState[(160 + 16 * $0)...].prefix(16)) } }

    var registers: GuestRegisters {
        var registers = GuestRegisters()
        (registers.r15, registers.r14, registers.r13, registers.r12) = (word(0), word(1), word(2), word(3))
        (registers.rbp, registers.rbx, registers.r11, registers.r10) = (word(4), word(5), word(6), word(7))
        (registers.r9, registers.r8, registers.rax, registers.rcx) = (word(8), word(9), word(10), word(11))
        (registers.rdx, registers.rsi, registers.rdi) = (word(12), word(13), word(14))
        (registers.rip, registers.rflags, registers.rsp) = (word(16), word(18), word(19))
        return registers
    }

    /// The memory at an address of the guest's.
    func bytes(at address: UInt64, count: Int) throws -> [UInt8] {
        for index in 1..<Self.number(contents, 56, 2) {
            let header = 64 + 56 * index
            let start = Self.number(contents, header + 16, 8)
            let end = start + Self.number(contents, header + 32, 8)
            guard (start..<max(start, end)).contains(Int(address)) else { continue }
            let offset = Self.number(contents, header + 8, 8) + Int(address) - start
            return try Self.read(path, offset, count)
        }
        return []
    }
}
