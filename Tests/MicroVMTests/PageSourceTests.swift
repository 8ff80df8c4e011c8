import SystemPackage
import Testing

@testable import MicroVM

@Suite struct PageSourceTests {
    private static let content = (0..<10_000).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8) }

    private static func read(_ source: PageSource, _ offset: Int, _ count: Int) throws -> [UInt8] {
        let available = source.available(at: UInt64(offset), count: count)
        return try #require(try source.storage.read(at: UInt64(offset), count: available))
    }

    @Test func `bytes are what was given, and end where they end`() throws {
        let source = PageSource.bytes(Self.content)
        #expect(source.size == 10_000)
        #expect(try Self.read(source, 0, 4096) == Array(Self.content[..<4096]))
        #expect(try Self.read(source, 8192, 4096) == Array(Self.content[8192...]))
        #expect(source.available(at: 12288, count: 4096) == 0)
        #expect(source.available(at: .max, count: 4096) == 0)
    }

    @Test func `a file is read from an offset, and up to a count`() throws {
        let workshop = try Workshop()
        try workshop.write(Self.content, "pages")
        let path = workshop.folder.appending("pages")
        let whole = try PageSource.file(path)
        #expect(whole.size == 10_000)
        #expect(try Self.read(whole, 8192, 4096) == Array(Self.content[8192...]))
        let part = try PageSource.file(path, offset: 5000, count: 4500)
        #expect(part.size == 4500)
        #expect(try Self.read(part, 4096, 4096) == Array(Self.content[9096..<9500]))
    }

    @Test func `a descriptor stays its owner's`() throws {
        let workshop = try Workshop()
        try workshop.write(Self.content, "pages")
        let descriptor = try FileDescriptor.open(workshop.folder.appending("pages"), .readOnly)
        let source = try PageSource.file(descriptor)
        #expect(try descriptor.seek(offset: 0, from: .current) == 0)
        try descriptor.close()
        #expect(try Self.read(source, 0, 10_000) == Self.content)
    }

    @Test func `a file that is not there, or too short, is refused when the source is made`() throws {
        let workshop = try Workshop()
        try workshop.write(Self.content, "pages")
        let path = workshop.folder.appending("pages")
        let missing = #expect(throws: SandboxError.self) { try PageSource.file(workshop.folder.appending("none")) }
        #expect(missing?.code == .systemCallFailed)
        #expect(missing?.underlyingError as? Errno == .noSuchFileOrDirectory)
        for (offset, count) in [(10_001, nil), (0, 10_001), (10_000, 1), (1, UInt64.max)] as [(UInt64, UInt64?)] {
            let error = #expect(throws: SandboxError.self) { try PageSource.file(path, offset: offset, count: count) }
            #expect(error?.code == .invalidArgument)
        }
        #expect(try PageSource.file(path, offset: 10_000).size == 0)
        let closed = #expect(throws: SandboxError.self) { try PageSource.file(FileDescriptor(rawValue: -1)) }
        #expect(closed?.code == .systemCallFailed)
    }

    @Test func `a file that has become shorter is an error and no zeros`() throws {
        let workshop = try Workshop()
        try workshop.write(Self.content, "pages")
        let source = try PageSource.file(workshop.folder.appending("pages"))
        try workshop.write(Array(Self.content[..<6000]), "pages")
        #expect(try Self.read(source, 0, 4096) == Array(Self.content[..<4096]))
        let error = #expect(throws: SandboxError.self) { try Self.read(source, 4096, 4096) }
        #expect(error?.code == .systemCallFailed)
        #expect(error?.message.contains("shorter") == true)
    }

    @Test func `reading ahead has limits`() {
        #expect(PageSource.bytes([], readAhead: -1).readAhead == 0)
        #expect(PageSource.bytes([], readAhead: .max).readAhead == PageSource.maximumReadAhead)
        #expect(PageSource.Granularity.allCases.map(\.rawValue) == FaultLocator.granularities)
    }
}
