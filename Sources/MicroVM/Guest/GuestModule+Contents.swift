extension GuestModule {
    /// What a symbol stands for.
    public enum SymbolKind: String, Sendable, Hashable {
        /// Code.
        case function
        /// Data.
        case object
        /// Code or data: the module does not say. Most imports are of this kind, because compilers do not note the
        /// type of what they do not see.
        case unspecified
    }

    /// A function or a variable that the module offers.
    public struct Export: Sendable, Hashable {
        /// The name as the module spells it (mangled, for Swift and C++).
        public let name: String
        /// Whether it can be called: ``SymbolKind/function`` or ``SymbolKind/object``.
        public let kind: SymbolKind
        /// The address, in bytes from the start of the image.
        public let address: UInt64
        /// The size in bytes, 0 where the module does not say. Never beyond the end of the segment.
        public let size: UInt64
    }

    /// A symbol that the module leaves to its host.
    public struct Import: Sendable, Hashable {
        /// The name as the module spells it.
        public let name: String
        /// Whether the module can do without: a weak import that nobody provides is a null pointer.
        public let isWeak: Bool
        /// What the module says it is. A variable is always weak here, and always null: only functions are imported.
        public let kind: SymbolKind

        /// Whether the library itself provides it, so that no host function is needed for it, nor possible.
        public var isProvidedByLibrary: Bool { kind != .object && LibraryFunction.provides(name) }
        /// Whether a sandbox cannot be made without a host function of this name.
        public var needsHostFunction: Bool { kind != .object && !isWeak && !isProvidedByLibrary }
    }

    /// What the guest may do with memory.
    public struct Permissions: OptionSet, Sendable, Hashable, CustomStringConvertible {
        // swift-format-ignore: AllPublicDeclarationsHaveDocumentation
        public let rawValue: UInt8

        // swift-format-ignore: AllPublicDeclarationsHaveDocumentation
        public init(rawValue: UInt8) { self.rawValue = rawValue }

        /// Loads (PF_R). The processor cannot refuse them where it allows stores or execution.
        public static let read = Permissions(rawValue: 4)
        /// Stores (PF_W).
        public static let write = Permissions(rawValue: 2)
        /// Instruction fetches (PF_X).
        public static let execute = Permissions(rawValue: 1)

        /// `r-x` and the like.
        public var description: String {
            (contains(.read) ? "r" : "-") + (contains(.write) ? "w" : "-") + (contains(.execute) ? "x" : "-")
        }
    }

    /// A part of the image that comes from the file (PT_LOAD).
    public struct Segment: Sendable, Hashable {
        /// The address, in bytes from the start of the image. Not always page-aligned.
        public let address: UInt64
        /// Where its contents begin in the file.
        public let fileOffset: UInt64
        /// The number of bytes that come from the file, at most ``memorySize``.
        public let fileSize: UInt64
        /// The number of bytes in memory, at least 1; those after the file's are zero.
        public let memorySize: UInt64
        /// What the guest may do there; of a writable segment, ``GuestModule/readOnlyAfterRelocation`` may be excepted.
        public let permissions: Permissions

        var end: UInt64 { address + memorySize }
    }

    /// The block of thread-local variables: it ends where the FS base points, or up to an alignment before
    /// (ELF Handling for Thread-Local Storage, variant II).
    public struct ThreadLocalStorage: Sendable, Hashable {
        /// Where the initial values are in the image, in bytes from its start; relocations can change them there, so
        /// it is from the relocated image that they are to be copied. 0 where there are none.
        public let address: UInt64
        /// Where the initial values are in the file. 0 where there are none.
        public let fileOffset: UInt64
        /// The number of bytes of initial values, at most ``memorySize``. They are all inside one segment.
        public let fileSize: UInt64
        /// The size of the variables in bytes, at least 1, at most 1 MiB; those after the initial values are zero.
        public let memorySize: UInt64
        /// The alignment in bytes that the FS base must have: a power of two, at most 4096.
        public let alignment: UInt64
        /// How far before the FS base the block begins, in bytes: ``memorySize`` and what the alignment adds to it.
        public let distance: UInt64
    }

    /// The functions that run when the module is instantiated: first the function, then those in the array.
    public struct Initializers: Sendable, Hashable {
        /// The address of one initialiser (DT_INIT), in bytes from the start of the image; always in executable memory.
        public let function: UInt64?
        /// The address of an array of 8-byte absolute addresses of initialisers (DT_INIT_ARRAY), in bytes from the
        /// start of the image; all of it inside one segment. Relocations fill it, with anything.
        public let arrayAddress: UInt64
        /// The number of entries in that array.
        public let arrayCount: Int

        /// Whether there is nothing to run.
        public var isEmpty: Bool { function == nil && arrayCount == 0 }
    }

    /// A range of pages of the image and what the guest may do there.
    struct Mapping: Sendable, Hashable {
        var range: Range<UInt64>
        var permissions: Permissions
    }

    /// Eight bytes that are to be written into the image, at any alignment, always inside one writable segment.
    struct Relocation: Sendable, Hashable {
        enum Value: Sendable, Hashable {
            /// The address of the image plus a distance; the sum wraps.
            case image(UInt64)
            /// The address of an import plus an addend; the sum wraps. A weak import nobody provides is at 0.
            case importAddress(index: Int, addend: Int64)
            /// A number that does not depend on where anything is.
            case constant(UInt64)
        }

        private enum Kind: UInt8 { case image, importAddress, constant }

        /// Where, in bytes from the start of the image.
        let offset: UInt64
        // The value in parts, because there are many relocations: 24 bytes each instead of 32.
        private let operand: UInt64
        private let index: UInt32
        private let kind: Kind

        init(offset: UInt64, value: Value) {
            self.offset = offset
            switch value {
            case .image(let distance): (operand, index, kind) = (distance, 0, .image)
            case .importAddress(let index, let addend):
                // A symbol is 24 bytes of the file, so no module has 2^32 of them; nor does this depend on it.
                (operand, self.index, kind) = (
                    UInt64(bitPattern: addend), UInt32(truncatingIfNeeded: index), .importAddress
                )
            case .constant(let number): (operand, index, kind) = (number, 0, .constant)
            }
        }

        /// What is to be written.
        var value: Value {
            switch kind {
            case .image: .image(operand)
            case .importAddress: .importAddress(index: Int(index), addend: Int64(bitPattern: operand))
            case .constant: .constant(operand)
            }
        }
    }
}
