internal import CShims

/// A segment register with its hidden part (AMD64 APM volume 2, 4.5).
public struct Segment: Hashable, Sendable {
    /// The address the segment begins at.
    public var base: UInt64
    /// The segment's last byte, counted from its base, in bytes whatever ``granularity`` says.
    public var limit: UInt32
    /// The register's visible part.
    public var selector: UInt16
    /// The descriptor's type, 4 bits.
    public var type: UInt8
    /// Present (P).
    public var present: Bool
    /// The descriptor's privilege level, 0 to 3 (DPL).
    public var privilegeLevel: UInt8
    /// Operands are of 32 bits unless said otherwise (D/B).
    public var defaultSize32: Bool
    /// A code or data segment, not one of the system's (S).
    public var codeOrData: Bool
    /// 64-bit code (L).
    public var long: Bool
    /// The descriptor's limit counts pages (G).
    public var granularity: Bool
    /// The bit that is left to software (AVL).
    public var available: Bool
    /// Nothing may be addressed through it.
    public var unusable: Bool

    /// A segment; by default everything is zero or false.
    public init(
        base: UInt64 = 0,
        limit: UInt32 = 0,
        selector: UInt16 = 0,
        type: UInt8 = 0,
        present: Bool = false,
        privilegeLevel: UInt8 = 0,
        defaultSize32: Bool = false,
        codeOrData: Bool = false,
        long: Bool = false,
        granularity: Bool = false,
        available: Bool = false,
        unusable: Bool = false
    ) {
        self.base = base
        self.limit = limit
        self.selector = selector
        self.type = type
        self.present = present
        self.privilegeLevel = privilegeLevel
        self.defaultSize32 = defaultSize32
        self.codeOrData = codeOrData
        self.long = long
        self.granularity = granularity
        self.available = available
        self.unusable = unusable
    }
}

extension Segment {
    init(_ segment: kvm_segment) {
        self.init(
            base: segment.base,
            limit: segment.limit,
            selector: segment.selector,
            type: segment.type,
            present: segment.present != 0,
            privilegeLevel: segment.dpl,
            defaultSize32: segment.db != 0,
            codeOrData: segment.s != 0,
            long: segment.l != 0,
            granularity: segment.g != 0,
            available: segment.avl != 0,
            unusable: segment.unusable != 0
        )
    }

    var kernelSegment: kvm_segment {
        kvm_segment(
            base: base,
            limit: limit,
            selector: selector,
            type: type,
            present: present ? 1 : 0,
            dpl: privilegeLevel,
            db: defaultSize32 ? 1 : 0,
            s: codeOrData ? 1 : 0,
            l: long ? 1 : 0,
            g: granularity ? 1 : 0,
            avl: available ? 1 : 0,
            unusable: unusable ? 1 : 0,
            padding: 0
        )
    }
}
