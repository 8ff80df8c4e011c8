import MicroVM
import SystemPackage

/// A module as commands are given it: a path.
enum ModuleFile {
    /// Reads and parses the module.
    ///
    /// - Throws: ``CommandFailure`` with the status of unusable modules, also where the file cannot be read.
    static func load(_ path: String) throws(CommandFailure) -> GuestModule {
        do throws(SandboxError) {
            return try GuestModule(contentsOf: FilePath(path))
        } catch {
            var failure = CommandFailure(error)
            failure.status = .unusable
            throw failure
        }
    }
}

extension GuestModule {
    /// Checks that there is a function of that name.
    ///
    /// - Throws: ``CommandFailure``, which names functions that may have been meant.
    func checkFunction(_ name: String) throws(CommandFailure) {
        if let export = export(named: name) {
            guard export.kind != .function else { return }
            throw CommandFailure(
                .unusable,
                "unknownExport",
                "\(self.name.printable) exports \(name.printable), but as data, not as a function."
            )
        }
        let functions = exports.filter { $0.kind == .function }.map(\.name)
        var message = "\(self.name.printable) exports no function named \(name.printable)."
        let near = NearNames.find(name, in: functions).map(\.printable)
        if functions.isEmpty {
            message += " It exports no functions at all."
        } else if near.isEmpty {
            message += " microvm inspect lists those it has."
        } else {
            message += " Did you mean \(near.joined(separator: ", "))?"
        }
        throw CommandFailure(.unusable, "unknownExport", message)
    }

    /// Checks that the library provides all that the module needs.
    ///
    /// - Throws: ``CommandFailure``, which names all that is missing.
    func checkImports() throws(CommandFailure) {
        let missing = imports.filter(\.needsHostFunction).map(\.name.printable)
        guard missing.isEmpty else {
            throw CommandFailure(
                .unusable,
                "missingImports",
                """
                \(self.name.printable) needs host functions, which only a program that embeds the library can give it: \
                \(missing.joined(separator: ", ")).
                """
            )
        }
    }
}
