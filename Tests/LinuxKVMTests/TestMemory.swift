import Glibc
import SystemPackage

/// Zeroed pages of this process for a guest.
@safe struct TestMemory: ~Copyable {
    let bytes: UnsafeMutableRawBufferPointer

    init(size: Int) throws(Errno) {
        let address = unsafe mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        guard let address = unsafe address, unsafe address != MAP_FAILED else { throw Errno.noMemory }
        unsafe self.bytes = UnsafeMutableRawBufferPointer(start: address, count: size)
    }

    deinit {
        unsafe munmap(bytes.baseAddress, bytes.count)
    }

    func store(_ content: [UInt8], at offset: Int) {
        unsafe bytes[offset..<offset + content.count].copyBytes(from: content)
    }

    func store(_ word: UInt64, at offset: Int) {
        unsafe bytes.storeBytes(of: word, toByteOffset: offset, as: UInt64.self)
    }

    func load<Value: FixedWidthInteger & BitwiseCopyable>(_ type: Value.Type, at offset: Int) -> Value {
        unsafe bytes.loadUnaligned(fromByteOffset: offset, as: type)
    }
}
