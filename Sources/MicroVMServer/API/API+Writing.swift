#if Server
import FoundationEssentials
import MicroVMSupervisor

// Calls as JSON. What is here is what these declare, in alphabetical order.

extension API.Calls: JSONWritable {
    func write(to text: inout JSONText) {
        text.object { $0.member("calls", calls) { $0.array($1) } }
    }
}

extension API.Call: JSONWritable {
    func write(to text: inout JSONText) {
        text.object { text in
            text.member("accepted", accepted)
            text.member("began", began)
            text.member("elapsedMicroseconds", elapsedMicroseconds)
            text.member("ended", ended)
            text.member("function", function)
            text.member("hasCoreDump", hasCoreDump)
            text.member("id", id)
            text.member("labels", labels) { text, labels in
                text.object { for (name, value) in labels.sorted(by: { $0.key < $1.key }) { $0.member(name, value) } }
            }
            text.member("limits", limits)
            text.member("module", module)
            text.member("outcome", outcome)
            text.member("outputBytes", outputBytes)
            text.member("parent", parent)
            text.member("priority", priority)
            text.member("queuedMicroseconds", queuedMicroseconds)
            text.member("returns", returns)
            text.member("sample", sample)
            text.member("state", state)
            text.member("statistics", statistics)
        }
    }
}

extension API.Limits: JSONWritable {
    func write(to text: inout JSONText) {
        text.object { text in
            text.member("cpuTimeMicroseconds", cpuTimeMicroseconds)
            text.member("outputBytes", outputBytes)
            text.member("queueTimeMicroseconds", queueTimeMicroseconds)
            text.member("timeMicroseconds", timeMicroseconds)
        }
    }
}

extension API.Sample: JSONWritable {
    func write(to text: inout JSONText) {
        text.object { text in
            text.member("cpuShare", cpuShare)
            text.member("exitsPerSecond", exitsPerSecond)
            text.member("hostCallsPerSecond", hostCallsPerSecond)
            text.member("hostFunction", hostFunction)
            text.member("memoryBytes", memoryBytes)
            text.member("place", place)
            text.member("statistics", statistics)
            text.member("time", time)
        }
    }
}

extension API.Outcome: JSONWritable {
    func write(to text: inout JSONText) {
        text.object { text in
            text.member("error", encoding: error)
            text.member("fault", encoding: fault)
            text.member("killedBy", killedBy)
            text.member("kind", kind)
            text.member("limit", limit)
            text.member("place", encoding: place)
            text.member("result", result)
        }
    }
}

extension API.Value: JSONWritable {
    func write(to text: inout JSONText) {
        text.object { text in
            text.member("type", value.type.rawValue)
            func integer(_ value: some FixedWidthInteger) {
                if value.magnitude < 1 << 53 { text.member("value", value) } else { text.member("value", "\(value)") }
            }
            func float(_ value: Double) {
                if value.isFinite {
                    text.member("value", value)
                } else {
                    text.member("value", value.isNaN ? "nan" : value < 0 ? "-inf" : "inf")
                }
            }
            switch value {
            case .i8(let value): integer(value)
            case .u8(let value): integer(value)
            case .i16(let value): integer(value)
            case .u16(let value): integer(value)
            case .i32(let value): integer(value)
            case .u32(let value): integer(value)
            case .i64(let value): integer(value)
            case .u64(let value): integer(value)
            case .f32(let value): float(Double(value))
            case .f64(let value): float(value)
            case .bool(let value): text.member("value", value)
            case .string(let value): text.member("value", value)
            case .bytes(let value): text.member("value", Data(value).base64EncodedString())
            case .void: break
            }
        }
    }
}

extension API.Statistics: JSONWritable {
    func write(to text: inout JSONText) {
        text.object { text in
            text.member("cpuTimeMicroseconds", cpuTimeMicroseconds)
            text.member("durationMicroseconds", durationMicroseconds)
            text.member("exits", exits)
            text.member("hostCalls", hostCalls)
            text.member("nestedCalls", nestedCalls)
            text.member("stoppedMicroseconds", stoppedMicroseconds)
        }
    }
}
#endif
