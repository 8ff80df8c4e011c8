#if canImport(Glibc)
import Glibc
#else
import Musl
#endif

/// A symbol's name as a key: two names are the same if their bytes are. (Strings compare by canonical equivalence, by
/// which two different symbols could be one, and which costs a hostile name's length many times over.)
struct SymbolName: Hashable, Sendable {
    let string: String

    init(_ string: String) { self.string = string }

    static func == (left: Self, right: Self) -> Bool {
        guard left.string.utf8.count == right.string.utf8.count else { return false }
        // Both buffers are valid inside the closures, and of the same length.
        let isEqual: Bool?? = unsafe left.string.utf8.withContiguousStorageIfAvailable { left in
            unsafe right.string.utf8.withContiguousStorageIfAvailable { right in
                guard let first = left.baseAddress, let second = right.baseAddress else { return true }
                return unsafe memcmp(first, second, min(left.count, right.count)) == 0
            }
        }
        if case .some(.some(let isEqual)) = isEqual { return isEqual }
        return left.string.utf8.elementsEqual(right.string.utf8)
    }

    func hash(into hasher: inout Hasher) {
        // The buffer is valid inside the closure, which is where it is read.
        let isContiguous: Void? = unsafe string.utf8.withContiguousStorageIfAvailable { bytes in
            unsafe hasher.combine(bytes: UnsafeRawBufferPointer(bytes))
        }
        if isContiguous == nil { for byte in string.utf8 { hasher.combine(byte) } }
    }
}

/// A name out of an untrusted file, fit for a message: in quotation marks, printable ASCII only, not too long.
func quoted(_ name: some StringProtocol) -> String {
    let limit = 120
    var text = "\""
    for scalar in name.unicodeScalars.prefix(limit) { text += scalar.escaped(asASCII: true) }
    if name.unicodeScalars.dropFirst(limit).first != nil { text += "…" }
    return text + "\""
}
