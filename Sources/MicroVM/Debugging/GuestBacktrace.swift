/// Where a guest call was, function by function: the innermost first.
///
/// Addresses are kept, or what they are found by; names are looked up in the module when they are asked for. Through
/// host calls with nested calls it goes on to the guest functions further out. The library's own code in the guest is
/// left out.
///
/// A guest can make its stack say anything, so a backtrace is a statement of the guest's: good for finding mistakes,
/// not for telling what a hostile guest has done.
public struct GuestBacktrace: Sendable, Hashable, CustomStringConvertible {
    /// One function that was under way.
    public struct Frame: Sendable, Hashable, CustomStringConvertible {
        /// The guest address of the instruction; of a caller, the address to which it would have been returned.
        public var address: UInt64
        /// Whether ``address`` is that of the instruction behind the call.
        public var isReturnAddress: Bool
        /// The distance of ``address`` from the start of the module's image in bytes, where it is inside: what tools
        /// take that read the module's file, for modules whose first segment is at 0.
        public var moduleOffset: UInt64?
        /// The function, as far as the module's symbols tell.
        public var symbol: GuestSymbol?

        /// `0x31004 spin+0x4`, with the name as it was in the source.
        public var description: String {
            let place = "0x" + String(address, radix: 16)
            guard let symbol else { return place }
            let distance = symbol.offset == 0 ? "" : "+0x" + String(symbol.offset, radix: 16)
            return "\(place) \(symbol.demangledName)\(distance)"
        }
    }

    /// How many frames a backtrace has at most.
    public static let maximumFrameCount = 128

    /// What a walk of the stack has found.
    struct Walk: Sendable, Hashable {
        var addresses: [UInt64] = []
        /// Whether the first of the addresses is a return address too.
        var beginsInCaller = false
        var isTruncated = false
    }

    private enum Source: Sendable {
        case walked(Walk)
        /// Walked each time somebody asks: that is seldom, and quick.
        case captured(CapturedStack)
    }

    private let source: Source
    private let module: GuestModule?
    private let imageBase: UInt64

    init(_ walk: Walk, module: GuestModule?, imageBase: UInt64) {
        source = .walked(walk)
        self.module = module
        self.imageBase = imageBase
    }

    init(_ stack: CapturedStack) {
        source = .captured(stack)
        module = stack.module
        imageBase = stack.addressSpace.imageBase
    }

    /// No frames: there was no call.
    static let none = GuestBacktrace(Walk(), module: nil, imageBase: 0)

    private var walk: Walk {
        switch source {
        case .walked(let walk): walk
        case .captured(let stack): stack.walk
        }
    }

    /// Whether the outermost function was not found: there are more frames than ``maximumFrameCount``, or the stack, or
    /// what the module says of it, makes no sense further out.
    public var isTruncated: Bool { walk.isTruncated }

    /// The functions, the innermost first; their names are looked up now.
    public var frames: [Frame] {
        let walk = walk
        return walk.addresses.enumerated().map { index, address in
            let isReturnAddress = index > 0 || walk.beginsInCaller
            // Behind a call that never returns there may be another function.
            let inside = isReturnAddress ? address &- 1 : address
            var symbol = module?.symbol(at: inside, imageBase: imageBase)
            symbol?.offset += address &- inside
            let isInModule = inside >= imageBase && inside - imageBase < module?.imageSize ?? 0
            return Frame(
                address: address,
                isReturnAddress: isReturnAddress,
                moduleOffset: isInModule ? address - imageBase : nil,
                symbol: symbol
            )
        }
    }

    /// One line a frame, beginning with its number.
    public var description: String {
        var lines = frames.enumerated().map { "#\($0) \($1)" }
        if isTruncated { lines.append("…") }
        return lines.joined(separator: "\n")
    }

    // swift-format-ignore: AllPublicDeclarationsHaveDocumentation
    public static func == (left: Self, right: Self) -> Bool {
        left.imageBase == right.imageBase && left.module === right.module && left.walk == right.walk
    }

    // swift-format-ignore: AllPublicDeclarationsHaveDocumentation
    public func hash(into hasher: inout Hasher) {
        hasher.combine(walk)
        hasher.combine(imageBase)
    }
}
