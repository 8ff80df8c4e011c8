import Testing

@testable import MicroVM

/// The distribution's zlib, as it is, decompresses what the distribution's gzip has made.
@Suite(.requiresKVM, .timeLimit(.minutes(5))) struct InflateTests {
    private let workshop: Workshop

    init() throws { workshop = try Workshop() }

    private func gzip(_ bytes: [UInt8], _ options: String = "") throws -> [UInt8] {
        try workshop.write(bytes, "plain")
        try #require(workshop.run("gzip -c \(options) plain > packed.gz"))
        return try workshop.read("packed.gz")
    }

    /// Bytes that compress to about a third.
    private static func text(_ count: Int) -> [UInt8] {
        var state: UInt64 = 1
        return (0..<count).map { _ in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            let digit = UInt8(truncatingIfNeeded: state >> 60)
            return digit < 10 ? 48 + digit : 32
        }
    }

    @Test(arguments: [0, 1, 10_000, 100_000])
    func `what gzip has packed comes out as it was`(_ count: Int) async throws {
        let plain = Self.text(count)
        let sandbox = try await Guest.inflate.sandbox()
        for options in ["-1", "-9"] {
            #expect(try await sandbox.call("gunzip", try gzip(plain, options)) == plain)
        }
        #expect(try await sandbox.call("gunzip", try gzip(plain) + gzip(plain)) == plain + plain)
    }

    @Test func `many megabytes come out as they were`() async throws {
        let plain = Self.text(6 << 20)
        let packed = try gzip(plain, "-1")
        #expect(packed.count > 1 << 20)
        let sandbox = try await Guest.inflate.sandbox()
        #expect(try await sandbox.call("gunzip", packed) == plain)
        let zeros = [UInt8](repeating: 0, count: 24 << 20)
        #expect(try await sandbox.call("gunzip", try gzip(zeros)) == zeros)
    }

    @Test func `the version is the distribution's`() async throws {
        let version: String = try await Guest.inflate.sandbox().call("version_of_zlib")
        #expect(version.hasPrefix("1."))
        #expect(try await Guest.inflate.sandbox().call("checksum", "123456789") == UInt32(0xcbf4_3926))
    }

    @Test func `damage is reported in zlib's own words`() async throws {
        let packed = try gzip(Self.text(10_000))
        func message(_ bytes: [UInt8]) async throws -> String? {
            let sandbox = try await Guest.inflate.sandbox()
            let error = await #expect(throws: SandboxError.self) { try await sandbox.call("gunzip", bytes) }
            #expect(error?.fault?.kind == .abort)
            await expectPoisoned(sandbox, "version_of_zlib")
            return error?.fault?.message
        }
        var damaged = packed
        damaged[packed.count - 6] ^= 1
        #expect(try await message(damaged) == "gunzip: incorrect data check")
        damaged = packed
        damaged[packed.count - 2] ^= 1
        #expect(try await message(damaged) == "gunzip: incorrect length check")
        damaged = packed
        damaged[0] = 0
        #expect(try await message(damaged)?.hasPrefix("gunzip: ") == true)
        #expect(try await message(Array(packed.dropLast(100)))?.hasPrefix("gunzip: ") == true)
        #expect(try await message([])?.hasPrefix("gunzip: ") == true)
    }

    @Test func `any byte may be wrong`() async throws {
        let plain = Self.text(2_000)
        let packed = try gzip(plain)
        for place in stride(from: 0, to: packed.count, by: 23) {
            let sandbox = try await Guest.inflate.sandbox()
            var damaged = packed
            damaged[place] ^= 0x55
            do {
                // Names and times in the header do not count; nor does anything behind the last member.
                _ = try await sandbox.call("gunzip", damaged, timeLimit: .seconds(20), returning: [UInt8].self)
            } catch let error as SandboxError {
                #expect(error.fault?.kind == .abort)
            }
        }
    }

    @Test func `what does not fit into memory is an abort of the guest`() async throws {
        let packed = try gzip([UInt8](repeating: 0, count: 24 << 20))
        let sandbox = try await Guest.inflate.sandbox { $0.memoryLimit = 16 << 20 }
        let error = await #expect(throws: SandboxError.self) { try await sandbox.call("gunzip", packed) }
        #expect(error?.fault?.kind == .abort && error?.fault?.message?.contains("memory") == true)
    }
}
