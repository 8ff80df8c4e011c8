import MicroVM
import Testing

@testable import MicroVMCommand

struct ParsingTests {
    @Test(
        arguments: [
            ("64MiB", 64 << 20), ("1GiB", 1 << 30), ("1.5MiB", 3 << 19), ("4096", 4096), ("4096B", 4096),
            ("2 KiB", 2048), ("2kB", 2000), ("3MB", 3_000_000), ("1M", 1 << 20), ("1K", 1024),
        ] as [(String, UInt64)]
    )
    func `sizes are read with their units`(text: String, bytes: UInt64) throws {
        #expect(try ByteCount(parsing: text).bytes == bytes)
    }

    @Test(arguments: [
        "", "MiB", "-1MiB", "0", "1.5", "1e3", "1.2.3KiB", "64Mib", "9999999GiB", ".5MiB", "1.MiB", "٣KiB",
    ])
    func `what is no size is refused`(text: String) {
        #expect(throws: ParsingError.self) { try ByteCount(parsing: text) }
    }

    @Test func `sizes are written exactly`() {
        #expect(ByteCount(64 << 20).description == "64MiB")
        #expect(ByteCount(1044 << 10).description == "1044KiB")
        #expect(ByteCount(1025).description == "1025B")
    }

    @Test(
        arguments: [
            ("500ms", .milliseconds(500)), ("2s", .seconds(2)), ("1.5s", .milliseconds(1500)),
            ("250us", .microseconds(250)), ("250µs", .microseconds(250)), ("7ns", .nanoseconds(7)),
            ("2min", .seconds(120)), ("2m", .seconds(120)), ("1h", .seconds(3600)),
        ] as [(String, Duration)]
    )
    func `times are read with their units`(text: String, duration: Duration) throws {
        #expect(try TimeSpan(parsing: text).duration == duration)
    }

    @Test(arguments: ["", "5", "ms", "-5ms", "0s", "0.1ns", "1e9s", "99999999h", "5 parsecs"])
    func `what is no time is refused`(text: String) {
        #expect(throws: ParsingError.self) { try TimeSpan(parsing: text) }
    }

    @Test func `times are written in the unit that suits them`() {
        #expect(TimeSpan(.nanoseconds(27_440)).description == "27.4 µs")
        #expect(TimeSpan(.microseconds(500_100)).description == "500.1 ms")
        #expect(TimeSpan(.milliseconds(1_204)).description == "1.204 s")
    }

    @Test func `values are read as their types`() throws {
        #expect(try ValueType.i8.parse("-128") as? Int8 == -128)
        #expect(try ValueType.u16.parse("0xffff") as? UInt16 == 65535)
        #expect(try ValueType.i16.parse("-0x8000") as? Int16 == -32768)
        #expect(try ValueType.i32.parse("+7") as? Int32 == 7)
        #expect(try ValueType.u8.parse("0b101") as? UInt8 == 5)
        #expect(try ValueType.u64.parse("18446744073709551615") as? UInt64 == .max)
        #expect(try ValueType.f32.parse("-1.5") as? Float == -1.5)
        #expect(try ValueType.f64.parse("1e300") as? Double == 1e300)
        #expect((try ValueType.f64.parse("nan") as? Double)?.isNaN == true)
        #expect(try ValueType.f64.parse("-inf") as? Double == -.infinity)
        #expect(try ValueType.bool.parse("true") as? Bool == true)
        #expect(try ValueType.string.parse("a:b") as? String == "a:b")
    }

    @Test(
        arguments: [
            (.i8, "128"), (.i8, "-129"), (.u8, "-1"), (.u8, "256"), (.i64, "9223372036854775808"), (.u64, "-1"),
            (.f32, "1e39"), (.f64, "-1e400"),
        ] as [(ValueType, String)]
    )
    func `values out of range are called that`(type: ValueType, text: String) {
        let error = #expect(throws: ParsingError.self) { try type.parse(text) }
        #expect(error?.description.contains("out of range for \(type)") == true)
    }

    @Test(
        arguments: [
            (.i8, ""), (.i8, "-"), (.i32, "1.5"), (.i32, " 1"), (.u32, "0x"), (.i32, "--1"), (.i32, "٣"),
            (.f64, "one"), (.f64, ""), (.bool, "1"), (.bool, ""),
        ] as [(ValueType, String)]
    )
    func `what is no value is refused`(type: ValueType, text: String) {
        #expect(throws: ParsingError.self) { try type.parse(text) }
    }

    @Test func `memory that is asked for is kept, and grows only where nobody has asked`() throws {
        let usual = try MemoryPlan(image: 8192, arguments: 0, memory: nil, stack: nil)
        #expect(usual.memory == 64 << 20)
        #expect(usual.arena == 4096)
        let large = try MemoryPlan(image: 8192, arguments: 100 << 20, memory: nil, stack: nil)
        #expect(large.memory == 8192 + 100 << 20 + 1 << 20 + MemoryPlan.leastHeap)
        let asked = try MemoryPlan(
            image: 8192,
            arguments: 10,
            memory: ByteCount(2 << 20),
            stack: ByteCount(100_000)
        )
        #expect(asked.memory == 2 << 20)
        #expect(asked.stack == 102_400)
        #expect(throws: CommandFailure.self) {
            try MemoryPlan(image: 8192, arguments: 10, memory: ByteCount(1 << 20), stack: nil)
        }
        #expect(throws: CommandFailure.self) {
            try MemoryPlan(image: 8192, arguments: 10, memory: nil, stack: ByteCount(64 << 30))
        }
    }

    @Test func `near names come nearest first`() {
        let names = ["add", "add_i8", "sub", "$s5guest3addyS2i_SitF", "subtract"]
        #expect(NearNames.find("ad", in: names) == ["add"])
        #expect(NearNames.find("Add", in: names).first == "add")
        #expect(NearNames.find("subtrct", in: names) == ["subtract"])
        #expect(NearNames.find("guest", in: names) == ["$s5guest3addyS2i_SitF"])
        #expect(NearNames.find("zzz", in: names) == [])
        #expect(NearNames.find("", in: names) == [])
    }

    @Test func `names from a module cannot write to the terminal`() {
        #expect("a\u{1b}[31mb\n".printable == "a\\u{1B}[31mb\\n")
        #expect("naïve".printable == "naïve")
        #expect("\u{202e}".printable == "\\u{202E}")
    }
}
