internal import CShims
internal import SystemPackage

/// What the CPUID instruction answers for one leaf, or one subleaf of one (Intel SDM volume 2A, CPUID).
public struct CPUIDEntry: Hashable, Sendable {
    /// The leaf: EAX when CPUID is executed.
    public var function: UInt32
    /// The subleaf: ECX when CPUID is executed, where ``flags`` says that it matters.
    public var index: UInt32
    /// How the entry is found.
    public var flags: Flags
    /// The answer in EAX.
    public var eax: UInt32
    /// The answer in EBX.
    public var ebx: UInt32
    /// The answer in ECX.
    public var ecx: UInt32
    /// The answer in EDX.
    public var edx: UInt32

    /// How an entry is found.
    public struct Flags: OptionSet, Hashable, Sendable {
        /// The kernel's bits.
        public var rawValue: UInt32

        /// The flags with the kernel's bits `rawValue`.
        public init(rawValue: UInt32) {
            self.rawValue = rawValue
        }

        /// The entry answers for one ``CPUIDEntry/index`` only.
        public static let significantIndex = Flags(rawValue: 1 << 0)  // KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    }

    /// An entry; all answers are zero unless said otherwise.
    public init(
        function: UInt32,
        index: UInt32 = 0,
        flags: Flags = [],
        eax: UInt32 = 0,
        ebx: UInt32 = 0,
        ecx: UInt32 = 0,
        edx: UInt32 = 0
    ) {
        self.function = function
        self.index = index
        self.flags = flags
        self.eax = eax
        self.ebx = ebx
        self.ecx = ecx
        self.edx = edx
    }
}

extension CPUIDEntry {
    /// Room for more entries than any kernel had when this was written.
    static let firstCapacity = 256
    /// Where growing ends.
    static let largestCapacity = 4096

    private init(_ entry: kvm_cpuid_entry2) {
        self.init(
            function: entry.function,
            index: entry.index,
            flags: Flags(rawValue: entry.flags),
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx
        )
    }

    private var kernelEntry: kvm_cpuid_entry2 {
        kvm_cpuid_entry2(
            function: function,
            index: index,
            flags: flags.rawValue,
            eax: eax,
            ebx: ebx,
            ecx: ecx,
            edx: edx,
            padding: (0, 0, 0)
        )
    }

    /// Reads entries by `request`, with twice the room each time the kernel says that it is too little.
    static func read(
        firstCapacity: Int,
        request: (UnsafeMutablePointer<kvm_cpuid2>) -> CInt
    ) throws(Errno) -> [CPUIDEntry] {
        var capacity = firstCapacity
        while true {
            var entries: [CPUIDEntry] = []
            // Safe: the buffer holds a header and `capacity` entries, and as many are read as the kernel can have
            // written.
            let result = unsafe TrailingArray<kvm_cpuid2, kvm_cpuid_entry2>.withZeroed(capacity: capacity) {
                header,
                elements in
                unsafe header.pointee.nent = UInt32(capacity)
                // Linux 6.1 for one leaves the count as it was when a virtual CPU's entries are read: what it did not
                // write is known by flags that no entry has.
                for index in 0..<capacity { unsafe elements[index].flags = .max }
                let result = unsafe request(header)
                if result >= 0 {
                    unsafe entries = elements.prefix(Int(header.pointee.nent))
                        .prefix { entry in entry.flags != .max }.map(CPUIDEntry.init)
                }
                return result
            }
            guard result == -Errno.argListTooLong.rawValue, capacity < largestCapacity else {
                try nothingOrErrno(result)
                return entries
            }
            capacity = min(capacity * 2, largestCapacity)
        }
    }

    /// Hands `entries` to `request` in the kernel's form.
    static func write(_ entries: [CPUIDEntry], request: (UnsafeMutablePointer<kvm_cpuid2>) -> CInt) throws(Errno) {
        guard entries.count <= largestCapacity else { throw Errno.argListTooLong }
        // Safe: the buffer has room for all entries.
        let result = unsafe TrailingArray<kvm_cpuid2, kvm_cpuid_entry2>.withZeroed(capacity: entries.count) {
            header,
            elements in
            unsafe header.pointee.nent = UInt32(entries.count)
            for (index, entry) in entries.enumerated() {
                unsafe elements[index] = entry.kernelEntry
            }
            return unsafe request(header)
        }
        try nothingOrErrno(result)
    }
}
