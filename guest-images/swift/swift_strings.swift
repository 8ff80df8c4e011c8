// Strings, arrays and dictionaries in Embedded Swift: allocation, hashing and Unicode tables inside a sandbox.

import MicroVMGuest

/// Holds the bytes of the latest result, which the host copies after the function has returned.
nonisolated(unsafe) private var result: [UInt8] = []

private func bytes(_ base: UnsafePointer<UInt8>?, _ length: Int) -> [UInt8] {
    Array(UnsafeBufferPointer(start: base, count: length))
}

private func text(_ base: UnsafePointer<UInt8>?, _ length: Int) -> String {
    String(decoding: UnsafeBufferPointer(start: base, count: length), as: UTF8.self)
}

private func give(_ bytes: [UInt8]) -> microvm_span {
    result = bytes
    return result.withUnsafeMutableBytes { microvm_span(base: $0.baseAddress, length: $0.count) }
}

@c public func echo(_ base: UnsafePointer<UInt8>?, _ length: Int) -> microvm_span {
    give(bytes(base, length))
}

@c public func uppercase(_ base: UnsafePointer<UInt8>?, _ length: Int) -> microvm_span {
    give(Array(text(base, length).uppercased().utf8))
}

/// Reverses characters (grapheme clusters), not bytes.
@c public func reverse_characters(_ base: UnsafePointer<UInt8>?, _ length: Int) -> microvm_span {
    give(Array(String(text(base, length).reversed()).utf8))
}

@c public func character_count(_ base: UnsafePointer<UInt8>?, _ length: Int) -> Int {
    text(base, length).count
}

/// Sorts bytes.
@c public func sort(_ base: UnsafePointer<UInt8>?, _ length: Int) -> microvm_span {
    give(bytes(base, length).sorted())
}

/// How often the most frequent word, of those that spaces separate, occurs.
@c public func most_frequent(_ base: UnsafePointer<UInt8>?, _ length: Int) -> Int {
    var counts: [String: Int] = [:]
    for word in text(base, length).split(separator: " ") {
        counts[String(word), default: 0] += 1
    }
    return counts.values.max() ?? 0
}

@c public func describe(_ value: Int) -> microvm_span {
    give(Array("the number \(value)".utf8))
}
