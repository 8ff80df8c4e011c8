#if Logging
import Logging

@testable import MicroVM

/// Keeps what is logged, with the logger's own metadata in each line.
struct LogRecorder: LogHandler {
    let lines = Recorder<LogEvent>()
    var logLevel = Logger.Level.trace
    var metadata: Logger.Metadata = [:]
    var metadataProvider: Logger.MetadataProvider?

    subscript(metadataKey key: String) -> Logger.MetadataValue? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        var event = event
        event.metadata = metadata.merging(metadataProvider?.get() ?? [:]) { $1 }.merging(event.metadata ?? [:]) { $1 }
        lines.append(event)
    }

    /// A logger whose lines are kept here.
    func logger(_ level: Logger.Level = .trace, provider: Logger.MetadataProvider? = nil) -> Logger {
        var handler = self
        (handler.logLevel, handler.metadataProvider) = (level, provider)
        return Logger(label: "test") { _ in handler }
    }

    /// What the library itself says.
    var own: [LogEvent] { lines.all.filter { $0.source == "MicroVM" } }
    /// What guests say.
    var guests: [LogEvent] { lines.all.filter { $0.source == "guest" } }

    /// The lines that begin with some words.
    func lines(_ words: String) -> [LogEvent] { own.filter { "\($0.message)".hasPrefix(words) } }
}

extension LogEvent {
    var text: String { "\(message)" }
    /// A value of the metadata, as text.
    subscript(_ key: String) -> String? { metadata?[key].map { "\($0)" } }
}
#endif
