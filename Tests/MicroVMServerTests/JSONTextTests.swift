#if Server
import Foundation
import MicroVMSupervisor
import Testing

@testable import MicroVMServer

/// Calls as JSON, which they write themselves.
@Suite struct JSONTextTests {
    private static let queued = #"""
        {"accepted": "2026-11-30T06:24:57.123456Z", "function": "f\"\\/\u0001\u001f\b\f\n\r\té🦜", "hasCoreDump": false,
         "id": 18446744073709551615, "labels": {}, "limits": {}, "module": "", "outputBytes": 0, "priority": -3,
         "queuedMicroseconds": 0.125, "returns": "i64", "state": "queued"}
        """#
    private static let ended = #"""
        {"accepted": "2026-11-30T06:24:57.123456Z", "began": "2026-11-30T06:24:57.123457Z",
         "elapsedMicroseconds": 1e300, "ended": "2026-11-30T06:24:57.123458Z", "function": "f", "hasCoreDump": true,
         "id": 1, "labels": {"b": "2", "a": "1", "ab": ""}, "module": "m", "outputBytes": 7, "parent": 3,
         "limits": {"timeMicroseconds": 1.5, "cpuTimeMicroseconds": 9007199254740993, "outputBytes": 3,
                    "queueTimeMicroseconds": 1e-7},
         "outcome": {"kind": "faulted", "result": {"type": "u64", "value": "18446744073709551615"},
                     "fault": {"kind": "pageFault", "vector": 14, "address": "0x10"}, "killedBy": "k", "limit": "l",
                     "place": {"instructionPointer": "0x1", "registers": {"rip": "0x1"}, "backtrace": [],
                               "backtraceIsTruncated": false},
                     "error": {"code": "c", "message": "A \"message\"."}},
         "priority": 0, "queuedMicroseconds": -1234567.25, "returns": "u64", "state": "finished",
         "sample": {"time": "t", "memoryBytes": 4096, "place": "p", "hostFunction": "h", "cpuShare": 0.5,
                    "exitsPerSecond": 12345.678, "hostCallsPerSecond": 0,
                    "statistics": {"durationMicroseconds": 1, "stoppedMicroseconds": 2, "exits": 3, "hostCalls": 4,
                                   "nestedCalls": 5}},
         "statistics": {"durationMicroseconds": 1.001, "stoppedMicroseconds": 2, "cpuTimeMicroseconds": 0.1,
                        "exits": 3, "hostCalls": 4, "nestedCalls": 5}}
        """#

    @Test func `calls write themselves as the encoder writes them`() throws {
        let calls = try [Self.queued, Self.ended].map {
            try JSONDecoder().decode(API.Call.self, from: Data($0.utf8))
        }
        for list in [[], calls, calls.reversed()] {
            let list = API.Calls(calls: list)
            let encoded = try JSONEncoder.ofAnswers.encode(list)
            #expect(String(decoding: list.json, as: UTF8.self) == String(decoding: encoded, as: UTF8.self))
        }
    }

    @Test(
        arguments: [
            .i8(-128), .u16(65535), .i32(-1), .i64(1 << 53), .i64(-(1 << 53) + 1), .u64(.max), .f32(0.1), .f64(1e300),
            .f64(-0.0), .f64(.nan), .f64(-.infinity), .bool(true), .string("a\"b\u{7f}\u{2028}"), .bytes([0, 255, 62]),
            .void,
        ] as [CallValue]
    ) func `values write themselves as the encoder writes them`(value: CallValue) throws {
        let value = API.Value(value)
        let encoded = try JSONEncoder.ofAnswers.encode(value)
        #expect(String(decoding: value.json, as: UTF8.self) == String(decoding: encoded, as: UTF8.self))
    }

    @Test func `a line of a list is read of a call as it is written`() throws {
        let call = try JSONDecoder().decode(API.Call.self, from: Data(Self.ended.utf8))
        let line = try JSONDecoder().decode(API.CallLine.self, from: Data(call.json))
        #expect(line.id == call.id && line.labels == call.labels && line.outcome == call.outcome)
        #expect(line.sample == call.sample && line.statistics == call.statistics && line.state == call.state)
    }
}
#endif
