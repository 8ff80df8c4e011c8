import GuestTestRunner
import MicroVM

/// What is in a module, for people and for programs.
struct InspectReport: Encodable {
    struct Export: Encodable {
        var name: String
        var kind: String
        var address: String
        var size: UInt64
    }

    struct Import: Encodable {
        var name: String
        /// `library` or `embedder`.
        var providedBy: String
        var isWeak: Bool
    }

    struct Segment: Encodable {
        var address: String
        var permissions: String
        var size: UInt64
        var fileOffset: UInt64
        var fileSize: UInt64
    }

    struct Range: Encodable {
        var address: String
        var size: UInt64
    }

    struct ThreadLocalStorage: Encodable {
        var size: UInt64
        var initializedSize: UInt64
        var alignment: UInt64
    }

    var module: String
    var isLoadable = true
    var imageSize: UInt64
    var imageAlignment: UInt64
    var exports: [Export]
    var imports: [Import]
    var segments: [Segment]
    var readOnlyAfterRelocation: Range?
    var threadLocalStorage: ThreadLocalStorage?
    var initializers: Int

    init(_ module: GuestModule) {
        self.module = module.name
        imageSize = module.imageSize
        imageAlignment = module.imageAlignment
        exports = module.exports.map {
            Export(name: $0.name, kind: $0.kind.rawValue, address: $0.address.hexadecimal, size: $0.size)
        }
        imports = module.imports.map {
            let provider =
                $0.isProvidedByLibrary ? "library" : GuestTestModule.provides($0.name) ? "testRunner" : "embedder"
            return Import(name: $0.name, providedBy: provider, isWeak: $0.isWeak)
        }
        segments = module.segments.map {
            Segment(
                address: $0.address.hexadecimal,
                permissions: $0.permissions.description,
                size: $0.memorySize,
                fileOffset: $0.fileOffset,
                fileSize: $0.fileSize
            )
        }
        readOnlyAfterRelocation = module.readOnlyAfterRelocation.map {
            Range(address: $0.lowerBound.hexadecimal, size: $0.upperBound - $0.lowerBound)
        }
        threadLocalStorage = module.threadLocalStorage.map {
            ThreadLocalStorage(size: $0.memorySize, initializedSize: $0.fileSize, alignment: $0.alignment)
        }
        initializers = module.initializers.arrayCount + (module.initializers.function == nil ? 0 : 1)
    }

    var text: String {
        var lines = ["\(module.printable): \(ByteCount(imageSize)) in memory, aligned to \(ByteCount(imageAlignment))"]
        func section(_ title: String, _ rows: [[String]], ifNone none: String) {
            lines += ["", title]
            lines += rows.isEmpty ? ["  " + none] : TextTable.lines(rows).map { "  " + $0 }
        }
        section(
            "Exports",
            exports.map { [$0.kind, $0.name.printable, $0.address, $0.size == 0 ? "" : "\($0.size) bytes"] },
            ifNone: "none: there is nothing to call"
        )
        section(
            "Imports",
            imports.map { needed in
                let provider =
                    switch needed.providedBy {
                    case "library": "provided by the library"
                    case "testRunner": "a test runner's"
                    default: "the embedder's"
                    }
                return [needed.name.printable, provider + (needed.isWeak ? ", weak: null if not provided" : "")]
            },
            ifNone: "none"
        )
        section(
            "Segments",
            segments.map { [$0.permissions, $0.address, "\($0.size) bytes", "\($0.fileSize) from the file"] },
            ifNone: "none"
        )
        lines.append("")
        if let range = readOnlyAfterRelocation {
            lines.append("Read-only after relocation: \(range.size) bytes at \(range.address)")
        }
        if let storage = threadLocalStorage {
            lines.append(
                "Thread-local variables: \(storage.size) bytes, \(storage.initializedSize) of them initialised, "
                    + "aligned to \(storage.alignment)"
            )
        }
        lines.append(initializers == 0 ? "Initialisers: none" : "Initialisers: \(initializers)")
        return lines.joined(separator: "\n") + "\n"
    }
}
