import CShims
import LinuxKVM

// The layout of a snapshot's file, all numbers little endian:
//
// - 64 bytes of header: the magic number, the version, where and how long the description, the module and the pages
//   are, and the CRC-32C of the two before and of the header itself;
// - the description: sizes, the processor's features, which pages there are, a CRC-32C for each 256 of them, and the
//   registers of a call;
// - the module, byte for byte as it was loaded;
// - from the next multiple of 4096 on the pages, one after the other.
//
// Only pages that the guest can write are there: the library's own come from the library, and code from the module.

enum SnapshotFileLayout {
    static let magic: UInt64 = 0x5053_4d56_4f52_434d  // "MCROVMSP"
    static let version: UInt32 = 5
    static let headerSize = 64
    static let pagesPerChecksum = 256
    static let descriptionMaximum = 1 << 30

    static func checksum(_ bytes: [UInt8]) -> UInt32 {
        // The array outlives the call.
        unsafe bytes.withUnsafeBytes { unsafe shim_checksum(0, $0.baseAddress, $0.count) }
    }
}

extension Registers {
    /// All of them, in the order in which a file has them.
    static var inOrder: [WritableKeyPath<Registers, UInt64>] {
        [
            \.rax, \.rbx, \.rcx, \.rdx, \.rsi, \.rdi, \.rbp, \.rsp, \.r8, \.r9, \.r10, \.r11, \.r12, \.r13, \.r14,
            \.r15, \.rip,
            \.rflags,
        ]
    }
}
