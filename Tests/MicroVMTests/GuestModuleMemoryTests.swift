import Testing

@testable import MicroVM

/// What the guest may do with each page.
@Suite struct GuestModuleMemoryTests {
    private func module(_ change: (inout ELFBuilder) -> Void) throws -> GuestModule {
        var builder = ELFBuilder()
        change(&builder)
        let module = try GuestModule(builder.build())
        expectSound(module)
        return module
    }

    /// A module whose data segment reaches from 0x2000 to 0x2000 + `size` and after which its tables follow.
    private func relro(
        _ address: UInt64,
        _ size: UInt64,
        data: Range<UInt64> = 0x2000..<0x6000,
        next: UInt64? = nil
    ) throws -> GuestModule {
        try module {
            $0.changeHeaders = {
                $0[ELFBuilder.Header.data].alignment = 1
                $0[ELFBuilder.Header.data].address = data.lowerBound
                $0[ELFBuilder.Header.data].offset = data.lowerBound
                $0[ELFBuilder.Header.data].memorySize = UInt64(data.count)
                $0[ELFBuilder.Header.data].fileSize = 0x2800 - data.lowerBound
                $0[ELFBuilder.Header.tables].address += 0x10000
                $0.append(
                    .init(type: 0x6474_e552, flags: 4, offset: 0, address: address, fileSize: 0, memorySize: size)
                )
                if let next {
                    $0.append(
                        .init(
                            type: 1,
                            flags: 6,
                            offset: next & 0xfff,
                            address: next,
                            fileSize: 0,
                            memorySize: 0x1000,
                            alignment: 1
                        )
                    )
                }
            }
            $0.changeDynamic = { entries in
                entries = entries.map { [4, 5, 6].contains($0.tag) ? ($0.tag, $0.value + 0x10000) : $0 }
            }
        }
    }

    @Test func `whole pages become read-only after relocation`() throws {
        let module = try relro(0x2000, 0x2000)
        #expect(module.readOnlyAfterRelocation == 0x2000..<0x4000)
        #expect(
            module.mappings == [
                .init(range: 0..<0x1000, permissions: .read),
                .init(range: 0x1000..<0x2000, permissions: [.read, .execute]),
                .init(range: 0x2000..<0x4000, permissions: .read),
                .init(range: 0x4000..<0x6000, permissions: [.read, .write]),
                .init(range: 0x13000..<0x14000, permissions: .read),
            ]
        )
        // What is written by relocation only is still where relocations go.
        #expect(module.segments[2].permissions == [.read, .write])
    }

    @Test func `parts of pages stay writable`() throws {
        #expect(try relro(0x2001, 0x2fff).readOnlyAfterRelocation == 0x3000..<0x5000)
        #expect(try relro(0x3000, 0x1fff).readOnlyAfterRelocation == 0x3000..<0x4000)
        #expect(try relro(0x2000, 0xfff).readOnlyAfterRelocation == nil)
        #expect(try relro(0x2f00, 0x10).readOnlyAfterRelocation == nil)
        #expect(try relro(0x2f00, 0).readOnlyAfterRelocation == nil)
    }

    @Test func `the page a segment begins or ends in is protected as linkers mean it`() throws {
        func late(_ change: @escaping @Sendable (inout [ELFBuilder.ProgramHeader]) -> Void = { _ in }) throws
            -> GuestModule
        {
            try module {
                $0.changeHeaders = { headers in
                    headers.append(
                        .init(
                            type: 1,
                            flags: 6,
                            offset: 0,
                            address: 0x7e00,
                            fileSize: 0,
                            memorySize: 0x2000,
                            alignment: 1
                        )
                    )
                    headers.append(
                        .init(type: 0x6474_e552, flags: 4, offset: 0, address: 0x7e00, fileSize: 0, memorySize: 0x1200)
                    )
                    change(&headers)
                }
            }
        }
        #expect(try late().readOnlyAfterRelocation == 0x7000..<0x9000)
        let shared = try late {
            $0.append(.init(type: 1, flags: 6, offset: 0, address: 0x7000, fileSize: 0, memorySize: 0x100))
        }
        #expect(shared.readOnlyAfterRelocation == 0x8000..<0x9000)
        #expect(shared.mappings.suffix(3).map(\.range) == [0x7000..<0x8000, 0x8000..<0x9000, 0x9000..<0xa000])
    }

    @Test func `a range rounded up to the last page counts`() throws {
        #expect(try relro(0x2000, 0x4000, data: 0x2000..<0x5f00).readOnlyAfterRelocation == 0x2000..<0x6000)
        // The next segment's variables are in that page.
        #expect(
            try relro(0x2000, 0x4000, data: 0x2000..<0x5f00, next: 0x5f80).readOnlyAfterRelocation == 0x2000..<0x5000
        )
    }

    @Test func `code and constants may share a page`() throws {
        let module = try module {
            $0.changeHeaders = {
                $0[ELFBuilder.Header.code].address = 0xf00
                $0[ELFBuilder.Header.code].offset = 0xf00
                $0[ELFBuilder.Header.code].alignment = 1
                $0[ELFBuilder.Header.first].memorySize = 0xf00
                $0[ELFBuilder.Header.first].fileSize = 0xf00
            }
        }
        #expect(module.mappings.first == .init(range: 0..<0x2000, permissions: [.read, .execute]))
    }

    @Test func `memory without permissions is not there`() throws {
        let module = try module { $0.changeHeaders = { $0[ELFBuilder.Header.first].flags = 0 } }
        #expect(module.mappings.first?.range.lowerBound == 0x1000)
        #expect(module.segments.first?.permissions == [])
    }

    @Test func `what can be written or run can be read`() throws {
        let module = try module {
            $0.changeHeaders = {
                $0[ELFBuilder.Header.code].flags = 1
                $0[ELFBuilder.Header.data].flags = 2
            }
        }
        #expect(module.segments[1].permissions.description == "r-x")
        #expect(module.segments[2].permissions.description == "rw-")
    }

    @Test func `large zeroed memory costs nothing`() throws {
        let module = try module {
            $0.changeHeaders = {
                $0.append(.init(type: 1, flags: 6, offset: 0, address: 0x10000, fileSize: 0, memorySize: 0xffff_0000))
            }
        }
        #expect(module.imageSize == 1 << 32)
        #expect(module.mappings.last?.range == 0x10000..<1 << 32)
    }
}
