#if Logging
import Logging

/// Shows the lines that a guest logs on standard error. The library's own would say what the command reports anyway.
struct GuestLogHandler: LogHandler {
    var logLevel = Logger.Level.trace
    var metadata: Logger.Metadata = [:]

    subscript(metadataKey key: String) -> Logger.MetadataValue? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        guard event.source == "guest" else { return }
        StandardStream.error.write("guest \(event.level): \(event.message)\n")
    }

    static let logger = Logger(label: "microvm") { _ in GuestLogHandler() }
}
#endif
