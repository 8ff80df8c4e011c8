import Metrics
import Synchronization

/// Metrics that are kept in memory and printed as text, one line each: `label{dimension="value"} number`.
final class MetricsPage: MetricsFactory {
    /// A number that changes in steps or is set.
    private final class Value: CounterHandler, MeterHandler, RecorderHandler, TimerHandler {
        private let storage = Mutex(0.0)
        var value: Double { storage.withLock { $0 } }

        func increment(by amount: Int64) { storage.withLock { $0 += Double(amount) } }
        func increment(by amount: Double) { storage.withLock { $0 += amount } }
        func decrement(by amount: Double) { storage.withLock { $0 -= amount } }
        func reset() { storage.withLock { $0 = 0 } }
        func set(_ value: Int64) { storage.withLock { $0 = Double(value) } }
        func set(_ value: Double) { storage.withLock { $0 = value } }
        func record(_ value: Int64) { set(value) }
        func record(_ value: Double) { set(value) }
        func recordNanoseconds(_ duration: Int64) { set(duration) }
    }

    private let values = Mutex<[String: Value]>([:])

    private func value(_ label: String, _ dimensions: [(String, String)]) -> Value {
        let places = dimensions.map { "\($0)=\"\($1)\"" }.joined(separator: ",")
        let name = label.map { $0 == "." ? "_" : String($0) }.joined() + (places.isEmpty ? "" : "{\(places)}")
        return values.withLock { values in
            let value = values[name] ?? Value()
            values[name] = value
            return value
        }
    }

    /// All metrics, in the order of their names.
    var text: String {
        let lines = values.withLock { $0.map { "\($0) \(Self.number($1.value))\n" } }
        return lines.sorted().joined()
    }

    private static func number(_ value: Double) -> String {
        Int(exactly: value).map(String.init) ?? String(value)
    }

    func makeCounter(label: String, dimensions: [(String, String)]) -> any CounterHandler { value(label, dimensions) }
    func makeMeter(label: String, dimensions: [(String, String)]) -> any MeterHandler { value(label, dimensions) }
    func makeTimer(label: String, dimensions: [(String, String)]) -> any TimerHandler { value(label, dimensions) }

    func makeRecorder(label: String, dimensions: [(String, String)], aggregate: Bool) -> any RecorderHandler {
        value(label, dimensions)
    }

    func destroyCounter(_ handler: any CounterHandler) {}
    func destroyMeter(_ handler: any MeterHandler) {}
    func destroyRecorder(_ handler: any RecorderHandler) {}
    func destroyTimer(_ handler: any TimerHandler) {}
}
