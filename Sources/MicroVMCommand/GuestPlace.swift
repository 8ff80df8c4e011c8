import MicroVM

/// An address in the guest, in words.
enum GuestPlace {
    /// `spin+0x4 (0x31004)`, or the address alone where there is no symbol.
    static func text(_ symbol: GuestSymbol?, _ address: UInt64) -> String {
        symbol.map { "\($0.description.printable) (\(address.hexadecimal))" } ?? address.hexadecimal
    }
}
