/// Numbers, one after the other, little endian.
struct ByteWriter {
    var bytes: [UInt8] = []

    var checksum: UInt32 { SnapshotFileLayout.checksum(bytes) }

    mutating func append<Value: FixedWidthInteger>(_ value: Value) {
        for shift in stride(from: 0, to: Value.bitWidth, by: 8) {
            bytes.append(UInt8(truncatingIfNeeded: value >> shift))
        }
    }
}
