extension GuestSymbol {
    /// The name as it was in the source, for names that Swift has mangled; else ``name``.
    ///
    /// Names come from the module, so they may have been made to keep whoever reads them busy: what is very long, or
    /// would become so, stays as it is, and so does what is seldom met. C++ names stay as they are too; `c++filt`
    /// reads them.
    public var demangledName: String { Demangling.demangle(name) ?? name }
}

/// A demangler for Swift's names (Swift's docs/ABI/Mangling.rst).
///
/// The one in Swift's runtime takes its input for a compiler's, and ends the process over a name that is none. This one
/// takes it for anything: it gives a name's text as `swift demangle --compact` does, or none. Time, memory and depth of
/// the stack have limits that do not depend on the name.
///
/// Not understood are the names of macro expansions, of automatic differentiation and of boxes, as well as the old
/// manglings, which begin with `_T`. One text is different on purpose: an initialiser that is private to a file, and
/// has no parameters, has its type once, at the end.
enum Demangling {
    /// Bytes of a name.
    static let lengthMaximum = 512
    /// Bytes of a result.
    static let resultMaximum = 4096
    /// How many operations of a name may build on one another.
    static let depthMaximum = 32
    private static let prefixes = ["$s", "_$s", "$e", "_$e", "$S", "_$S"]

    static func isMangled(_ name: String) -> Bool { prefixes.contains(where: name.hasPrefix) }

    static func demangle(_ name: String) -> String? { demangle(name, nesting: 0) }

    /// - Parameter nesting: how many names this one is inside of: a specialised function's has those of the functions
    ///   that it was specialised for.
    static func demangle(_ name: String, nesting: Int) -> String? {
        guard nesting < 3, name.utf8.count <= lengthMaximum, name.utf8.allSatisfy({ (0x21...0x7e).contains($0) }),
            let prefix = prefixes.first(where: name.hasPrefix)
        else { return nil }
        var parser = DemanglingParser(name.utf8.dropFirst(prefix.utf8.count), nesting: nesting)
        var printer = DemanglingPrinter(hasSugar: nesting == 0)
        do {
            try printer.print(try parser.symbol())
            return printer.text
        } catch {
            return nil
        }
    }
}
