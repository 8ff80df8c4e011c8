/// The levels of `microvm_log`, in the order and with the names of swift-log.
enum GuestLogLevel: Int32, CaseIterable {
    case trace, debug, info, notice, warning, error, critical
}
