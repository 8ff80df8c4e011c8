extension RunLoop {
    /// What an import is answered with.
    enum Import {
        case hostFunction(HostFunction)
        case library(LibraryFunction)
        /// Code in the trampoline, which needs no answer.
        case threadLocalAddress
        /// A weak import that nobody provides is a null pointer in the guest, so only a forged call gets here.
        case absent

        /// Where it leads to in the guest.
        var target: GuestImage.ImportTarget {
            switch self {
            case .hostFunction, .library: .thunk
            case .threadLocalAddress: .threadLocalAddress
            case .absent: .absent
            }
        }
    }
}
