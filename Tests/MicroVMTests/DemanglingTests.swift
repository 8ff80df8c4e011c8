import Testing

@testable import MicroVM

/// Names as they were in the source, for names that anybody may have made up.
@Suite(.timeLimit(.minutes(5))) struct DemanglingTests {
    /// What `swift demangle --compact` says.
    private static let names: KeyValuePairs<String, String> = [
        "$s4main3FooV3baryyF": "main.Foo.bar() -> ()",
        "$e4main3FooV3baryyF": "main.Foo.bar() -> ()",
        "_$s4main3FooV3baryyF": "main.Foo.bar() -> ()",
        "$S4main3FooV3baryyF": "main.Foo.bar() -> ()",
        "$s4main1gyySi_SStYaKF": "main.g(Swift.Int, Swift.String) async throws -> ()",
        "$s4main4fill_4withySayxGz_xtlF": "main.fill<A>(_: inout [A], with: A) -> ()",
        "$s4main1fyyySiz_SShtYbXEF": "main.f(@Sendable (inout Swift.Int, __shared Swift.String) -> ()) -> ()",
        "$s4main3Foo33_CD46A3D97FDC994AA7C8B181F1B91F74LLV3baryyF":
            "main.(Foo in _CD46A3D97FDC994AA7C8B181F1B91F74).bar() -> ()",
        "$s4main3FooC1xACSi_tcfC": "main.Foo.__allocating_init(x: Swift.Int) -> main.Foo",
        "$s4main3FooC1xACSi_tcfc": "main.Foo.init(x: Swift.Int) -> main.Foo",
        "$s4main3FooC1xACSi_tc33_CD46A3D97FDC994AA7C8B181F1B91F74Llfc":
            "main.Foo.(in _CD46A3D97FDC994AA7C8B181F1B91F74).init(x: Swift.Int) -> main.Foo",
        "$s4main3FooCfD": "main.Foo.__deallocating_deinit",
        "$s4main3FooCfd": "main.Foo.deinit",
        "$s4main3FooV5valueSivg": "main.Foo.value.getter : Swift.Int",
        "$s4main3FooV5valueSivs": "main.Foo.value.setter : Swift.Int",
        "$s4main3FooV5valueSivM": "main.Foo.value.modify : Swift.Int",
        "$s4main3FooV5valueSivp": "main.Foo.value : Swift.Int",
        "$s4main3FooV5valueSivpZfi": "variable initialization expression of static main.Foo.value : Swift.Int",
        "$s4main3FooV5valueSivau": "main.Foo.value.unsafeMutableAddressor : Swift.Int",
        "$s4main5value_WZ": "one-time initialization function for value",
        "$s4main3FooVyS2icig": "main.Foo.subscript.getter : (Swift.Int) -> Swift.Int",
        "$s4main3FooVyS2icip": "main.Foo.subscript(Swift.Int) -> Swift.Int",
        "$s4main3FooV2eeoiySbAC_ACtFZ": "static main.Foo.== infix(main.Foo, main.Foo) -> Swift.Bool",
        "$sSi4mainE7doubledSiyF": "(extension in main):Swift.Int.doubled() -> Swift.Int",
        "$sSTsSL7ElementRpzrlE6sortedSayABGyF":
            "(extension in Swift):Swift.Sequence< where A.Element: Swift.Comparable>.sorted() -> [A.Element]",
        "$s4main1fyySDySSSaySiSgGG_Si1a_Sb1bttF":
            "main.f([Swift.String : [Swift.Int?]], (a: Swift.Int, b: Swift.Bool)) -> ()",
        "$s4main1fyyypXp_ypmSimtF": "main.f(Any.Type, Any.Protocol, Swift.Int.Type) -> ()",
        "$s4main1fyyAA1P_pSi1AAaCPRts_XPF": "main.f(any main.P<Self.main.P.A == Swift.Int>) -> ()",
        "$s4main1fQryF": "main.f() -> some",
        "$s4main1fyyxxQp_tRvzlF": "main.f<each A>(repeat A) -> ()",
        "$s4main1fyyxRi_zlF": "main.f<A where A: ~Swift.Copyable>(A) -> ()",
        "$s4main1fyyScM_ScTySSs5Error_pGtF": "main.f(Swift.MainActor, Swift.Task<Swift.String, Swift.Error>) -> ()",
        "$s4main1gyyFSiSbXEfU0_": "closure #2 (Swift.Bool) -> Swift.Int in main.g() -> ()",
        "$s4main1gyyFSiyXEfu_": "implicit closure #1 () -> Swift.Int in main.g() -> ()",
        "$s4main1gyyF6helperL_yyF": "helper #1 () -> () in main.g() -> ()",
        "$s4main1gyyF6HelperL_V1xSivg": "x.getter : Swift.Int in Helper #1 in main.g() -> ()",
        "$s4main1g1xySi_tFfA_": "default argument 0 of main.g(x: Swift.Int) -> ()",
        "$s4main7genericyyxlFSS_Tg5": "generic specialization <Swift.String> of main.generic<A>(A) -> ()",
        "$s4main7genericyyxlFSi_TG5Tm":
            "merged generic not re-abstracted specialization <Swift.Int> of main.generic<A>(A) -> ()",
        "$s4main7combineyySi_SitFTf4dgX_n":
            "function signature specialization <Arg[0] = Dead, Arg[1] = Owned To Guaranteed and Exploded> "
            + "of main.combine(Swift.Int, Swift.Int) -> ()",
        "$s4main4callyySiyXEF20$s4main1gyyFSiyXEfU_Tf1c_n":
            "function signature specialization <Arg[0] = [Closure Propagated : $s4main1gyyFSiyXEfU_, "
            + "Argument Types : []> of main.call(() -> Swift.Int) -> ()",
        "$s4main4callyySiyXEF20$s4main1gyyFSiyXEfU_Tf3pf_n":
            "function signature specialization <Arg[0] = [Constant Propagated Function : closure #1 () -> "
            + "Swift.Int in main.g() -> ()]> of main.call(() -> Swift.Int) -> ()",
        "$s4main1gyyFSiyXEfU_TA": "partial apply forwarder for closure #1 () -> Swift.Int in main.g() -> ()",
        "$sSiIegd_SiIegr_TR":
            "reabstraction thunk helper from @escaping @callee_guaranteed () -> (@unowned Swift.Int) to "
            + "@escaping @callee_guaranteed () -> (@out Swift.Int)",
        "$sxq_Iegnr_xq_Igyo_r0_lTR":
            "reabstraction thunk helper <A, B> from @escaping @callee_guaranteed (@in_guaranteed A) -> "
            + "(@out B) to @callee_guaranteed (@unowned A) -> (@owned B)",
        "$s4main3FooVAA1PA2aDP3baryyFTW":
            "protocol witness for main.P.bar() -> () in conformance main.Foo : main.P in main",
        "$s4main3FooVWOh": "outlined destroy of main.Foo",
        "$sSayxGlWOe": "outlined consume of [A]<A>",
        "$s4main3FooVMa": "type metadata accessor for main.Foo",
        "$s4main3FooVMn": "nominal type descriptor for main.Foo",
        "$s4main3FooCN": "type metadata for main.Foo",
        "$s4main3FooVWV": "value witness table for main.Foo",
        "$s4main3FooVwxx": "destroy value witness for main.Foo",
        "$sSayxGSTsMc": "protocol conformance descriptor for [A] : Swift.Sequence in Swift",
        "$s4main3FooVAcA1PAAWl":
            "lazy protocol witness table accessor for type main.Foo and conformance main.Foo : main.P in main",
        "$s4main3FooC3baryyFTj": "dispatch thunk of main.Foo.bar() -> ()",
        "$s4main3FooC3baryyFTq": "method descriptor for main.Foo.bar() -> ()",
        "$s4main1fyyYaFTY1_": "(2) suspend resume partial function for main.f() async -> ()",
        "$s4main3FooV3baryyF.llvm.123": "main.Foo.bar() -> () with unmangled suffix \".llvm.123\"",
        "$s4main3FooV3baryyF.resume.0": "main.Foo.bar() -> () with unmangled suffix \".resume.0\"",
        "$s4main0012vergenza_JFayyF": "main.vergüenza() -> ()",
        "$s4main1fyyBi32__BptF": "main.f(Builtin.Int32, Builtin.RawPointer) -> ()",
        "$s4main3FooC5speak3forS2d_tF": "main.Foo.speak(for: Swift.Double) -> Swift.Double",
        "$sSa4mainSiRszlE3sumSiyF": "(extension in main):Swift.Array<A where A == Swift.Int>.sum() -> Swift.Int",
        "$s4main1fyyAA1C_AA1PpSgF": "main.f((main.C & main.P)?) -> ()",
        "$s4main1fyyyXlF": "main.f(Swift.AnyObject) -> ()",
        "$s4main1fyySiXCyF": "main.f() -> @convention(c) (Swift.Int) -> ()",
        "$s4main4fullyyXlSgyF": "main.full() -> Swift.AnyObject?",
        "$s4main1fyySiyXCF": "main.f(@convention(c) () -> Swift.Int) -> ()",
        "$s4main5OuterV5InnerVy_SiGSgD": "main.Outer.Inner<Swift.Int>?",
    ]

    private static let guests: [Guest] = [.swiftBacktrace, .swiftStrings, .swiftTraps, .swiftHostCalls]

    private static func mangledNames(of guest: Guest) throws -> Set<String> {
        let module = try guest.module()
        let names = stride(from: 0, to: module.imageSize, by: 16).compactMap { module.symbol(at: $0)?.name }
        return Set(names.filter { $0.hasPrefix("$") })
    }

    private func demangled(_ name: String) -> String { GuestSymbol(name: name, offset: 0).demangledName }

    @Test func `Swift's names are demangled, all others stay as they are`() {
        for (name, text) in Self.names { #expect(demangled(name) == text) }
        for name in [
            "main", "_ZN3foo3barEv", "", "$", "$s", "s4main", "$e\u{1}abcd", "$sö", "$s 4main", "$s4main", "$s4mainF",
            "$sSi_Si", "$s4main3FooV3baryy", "$s999999999a", "$s9999999999a", "$s1a1fyyq99999999999_F",
            "$s1a1fyyF.\u{1b}",
        ] {
            #expect(demangled(name) == name)
        }
    }

    @Test func `a private initialiser without parameters has its type once`() {
        #expect(demangled("$s4main3FooCACyc4FILELlfc") == "main.Foo.(in FILE).init() -> main.Foo")
    }

    @Test func `names in other scripts cannot act on a terminal`() {
        #expect(demangled("$s4main0012vergenza_JFayyF") == "main.vergüenza() -> ()")
        // Plus signs are fine; escapes, turned text and line breaks are not.
        #expect(demangled("$s4main008abc_FjEpyyF") == "main.ab+c() -> ()")
        for name in ["0012ab31m_cmEyCm", "009abcd_wdHa", "007ab_AdJk", "006ab_yDt"] {
            let mangled = "$s4main\(name)yyF"
            #expect(demangled(mangled) == mangled)
        }
    }

    @Test func `all names of the Swift guests are understood`() throws {
        for guest in Self.guests {
            let names = try Self.mangledNames(of: guest)
            #expect(!names.isEmpty)
            for name in names { #expect(demangled(name) != name) }
        }
    }

    @Test func `a name that doubles itself again and again is left as it is`() {
        /// A function of a `G<T, T>`, where `T` is a `G<T, T>`, and so on.
        func doubled(_ count: Int) -> String {
            func reference(_ index: Int) -> String {
                index < 26
                    ? "A\(UnicodeScalar(UInt8(ascii: "A") + UInt8(index)))" : "A\(index == 26 ? "" : "\(index - 27)")_"
            }
            return "$s1a1hyyAA1GVy" + String(repeating: "ADy", count: count - 1) + "AA3BxyVAFG"
                + (1..<count).map { reference(5 + $0) + "G" }.joined() + "F"
        }
        #expect(demangled(doubled(2)) == "a.h(a.G<a.G<a.Bxy, a.Bxy>, a.G<a.Bxy, a.Bxy>>) -> ()")
        #expect(demangled(doubled(4)).utf8.count == 196)
        for count in [12, 16, 24, 40, 60, 80] { #expect(demangled(doubled(count)) == doubled(count)) }
        for count in [4, 8, 16, 24, 100] {
            #expect(demangled("$s1a1fyyAA1bV_A" + String(repeating: "c", count: count) + "CtF").utf8.count <= 4096)
            #expect(demangled("$s1a1fyyAA1bV_A\(count * 1000)CtF").utf8.count <= 4096)
        }
        // Each of the generic parameters is short, and so is the name.
        let generic = "$s1a1fyyxr" + String(repeating: "99999999_", count: 40) + "lF"
        #expect(demangled(generic) == generic)
    }

    @Test func `what is nested too deeply is left as it is`() {
        func nested(_ depth: Int) -> String {
            "$s1a1fyySi" + String(repeating: "Sg", count: depth) + "F"
        }
        #expect(demangled(nested(20)) == "a.f(Swift.Int" + String(repeating: "?", count: 20) + ") -> ()")
        for depth in [40, 100, 200] { #expect(demangled(nested(depth)) == nested(depth)) }
    }

    @Test func `names that were tampered with do no harm`() async throws {
        var sources = Self.names.map(\.key)
        for guest in Self.guests { sources += try Self.mangledNames(of: guest) }
        sources = Array(Set(sources))
        let letters = Array("AaBbCcDSsTtGgVOF_yx0123456789LlMmQqRrWwXzZnNfEiIdpPk".utf8)
        let all = sources
        // On a thread with little stack, as those of an embedder may have.
        await onThread(stackSize: 512 << 10) {
            var random = SystemRandomNumberGenerator()
            for _ in 0..<(Surroundings.isEmulated ? 2000 : 100_000) {
                var bytes = Array((all.randomElement(using: &random) ?? "").utf8)
                for _ in 0..<Int.random(in: 1...6, using: &random) {
                    let place = Int.random(in: 2...bytes.count, using: &random)
                    let letter = letters.randomElement(using: &random) ?? 0
                    switch UInt8.random(in: 0..<4, using: &random) {
                    case 0 where place < bytes.count: bytes[place] = letter
                    case 1 where place < bytes.count: bytes.remove(at: place)
                    case 2:
                        let count = Int.random(in: 0...min(16, bytes.count - place), using: &random)
                        bytes.insert(contentsOf: bytes[place..<place + count], at: place)
                    default: bytes.insert(letter, at: place)
                    }
                }
                let name = String(decoding: bytes, as: UTF8.self)
                #expect(GuestSymbol(name: name, offset: 0).demangledName.utf8.count <= max(4096, bytes.count))
            }
            // Depth instead of length.
            for operators in ["Sg", "SaySg", "XDc", "yc", "SDyS", "Qrd", "x_t", "_t", "m", "XmT", "Sayx"] {
                let name = "$s1a1f" + String(repeating: operators, count: 400 / operators.count) + "F"
                #expect(GuestSymbol(name: name, offset: 0).demangledName.utf8.count <= 4096)
            }
        }
    }
}
