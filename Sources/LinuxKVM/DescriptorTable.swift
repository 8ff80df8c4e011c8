internal import CShims

/// A descriptor table register: GDTR or IDTR.
public struct DescriptorTable: Hashable, Sendable {
    /// The linear address of the table.
    public var base: UInt64
    /// The table's last byte, counted from its base.
    public var limit: UInt16

    /// A table of `limit` + 1 bytes at `base`.
    public init(base: UInt64 = 0, limit: UInt16 = 0) {
        self.base = base
        self.limit = limit
    }
}

extension DescriptorTable {
    init(_ table: kvm_dtable) {
        self.init(base: table.base, limit: table.limit)
    }

    var kernelTable: kvm_dtable {
        kvm_dtable(base: base, limit: limit, padding: (0, 0, 0))
    }
}
