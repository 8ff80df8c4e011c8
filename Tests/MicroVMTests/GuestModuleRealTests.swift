import Testing

@testable import MicroVM

@Suite struct GuestModuleRealTests {
    @Test(arguments: realModules().map(\.name))
    func `a linker's module is loaded`(_ name: String) throws {
        let real = try #require(realModules().first { $0.name == name })
        let module = try GuestModule(real.bytes, name: name)
        #expect(module.export(named: "sum")?.kind == .function)
    }
}
