import Testing

@testable import MicroVM

/// Modules as linkers make them.
@Suite struct GuestModuleRealTests {
    @Test(arguments: linkedModules().map(\.name))
    func `a linker's module is loaded`(_ name: String) throws {
        let real = try #require(linkedModules().first { $0.name == name })
        let module = try GuestModule(real.bytes, name: name)
        expectSound(module)
        let sum = try #require(module.export(named: "sum"))
        #expect(sum.kind == .function && sum.size > 0)
        #expect(module.symbol(at: sum.address + 5)?.description == "sum+0x5")
        #expect(module.export(named: "table")?.kind == .object)
        #expect(module.export(named: "not_exported") == nil)
        #expect(module.imports.first { $0.name == "imported" }?.isWeak == false)
        #expect(module.imports.first { $0.name == "maybe" }?.isWeak == true)
        #expect(module.initializers.arrayCount == 1)
        // Two integers, 20 longs and a byte that is aligned to 64.
        let storage = try #require(module.threadLocalStorage)
        #expect(storage.fileSize == 8 && storage.alignment == 64 && storage.distance % 64 == 0)
        #expect(module.readOnlyAfterRelocation != nil)
        for mapping in module.mappings where mapping.permissions.contains(.execute) {
            #expect(mapping.range.contains(sum.address))
        }
    }

    @Test(arguments: Guest.allCases)
    func `every guest is loaded, and knows the names of its functions`(_ guest: Guest) throws {
        let module = try guest.module()
        expectSound(module)
        #expect(module.name == "\(guest.rawValue).so")
        let functions = module.exports.filter { $0.kind == .function }
        #expect(!functions.isEmpty)
        for function in functions {
            let symbol = try #require(module.symbol(at: function.address))
            // Functions with the same code may share an address.
            let same = functions.filter { $0.address == function.address }
            #expect(symbol.offset == 0 && same.contains { $0.name == symbol.name })
        }
        // The runtime is no part of what a module offers.
        #expect(module.export(named: "malloc") == nil && module.export(named: "printf") == nil)
    }
}
