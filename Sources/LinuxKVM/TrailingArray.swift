/// A C struct that ends in an array whose length another member says: memory for both.
enum TrailingArray<Header, Element> {
    /// Calls `body` with a zeroed header and `capacity` zeroed elements right after it, valid during the call.
    ///
    /// Both types are C structs without padding between them, for which all zero bits are a value.
    static func withZeroed(
        capacity: Int,
        _ body: (UnsafeMutablePointer<Header>, UnsafeMutableBufferPointer<Element>) -> CInt
    ) -> CInt {
        let headerSize = MemoryLayout<Header>.size
        let size = headerSize + capacity * MemoryLayout<Element>.stride
        return unsafe withUnsafeTemporaryAllocation(byteCount: size, alignment: 16) { bytes in
            // Safe: the allocation has room for the header and the elements, is aligned for any of these structs,
            // and all of it is initialised before anybody reads it.
            unsafe bytes.initializeMemory(as: UInt8.self, repeating: 0)
            let header = unsafe bytes.baseAddress!.bindMemory(to: Header.self, capacity: 1)
            let elements = unsafe (bytes.baseAddress! + headerSize).bindMemory(to: Element.self, capacity: capacity)
            return unsafe body(header, UnsafeMutableBufferPointer(start: elements, count: capacity))
        }
    }
}
